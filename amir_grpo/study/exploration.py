"""What is compared beside the tests of the plan: exploratory, with one correction for all, wherever a row is shown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from amir_grpo.metrics import holm
from amir_grpo.study.gains import outcomes, test_arms, uncorrected_gains
from amir_grpo.study.plan import Plan
from amir_grpo.study.regime_tables import arms_of_regimes
from amir_grpo.study.results import TRAINED, Studies

Pair = tuple[str, str]  # the new arm and the old one, as `regime/arm`
# Settings and rivals, each against GRPO of its regime or the arm that it changes: (new, old).
KNOBS: list[Pair] = [
    ("clean/group-4", "clean/grpo"),
    ("clean/group-16", "clean/grpo"),
    ("clean/lr-x2", "clean/grpo"),
    ("clean/published-schedule", "clean/grpo"),
    ("clean/mixture-0.6", "clean/grpo"),
    ("clean/share-0.6", "clean/mixture-0.6"),
    ("clean/mixture-0.6-permuted", "clean/grpo"),
    ("clean/mixture-0.6-linear", "clean/mixture-0.6"),
    ("clean/mixture-0.6-beta-10", "clean/mixture-0.6"),
    ("clean/group-4-mixture", "clean/group-4"),
    ("clean/group-16-mixture", "clean/group-16"),
    ("nuisance/dr_grpo", "nuisance/grpo"),
    ("nuisance/correctness-only", "nuisance/grpo"),
    ("nuisance/grpo-unscaled", "nuisance/grpo"),
    ("nuisance/uniform-dropped", "nuisance/grpo"),
    ("outliers/dr_grpo", "outliers/grpo"),
    ("outliers/dr_grpo-clipped", "outliers/grpo"),
    ("outliers/mixture-0.6", "outliers/grpo"),
]
# Rewards of which the plan has no test and the theory no simulation: they depend on what a completion says.
OTHER_REWARDS: list[Pair] = [("format/mixture-0.6", "format/grpo"), ("partial/mixture-0.6", "partial/grpo")]
# What is simpler than pairs and may do the same.
RIVALS: list[Pair] = [
    ("nuisance/mixture-0.6", "nuisance/dr_grpo"),
    ("nuisance/mixture-0.6", "nuisance/correctness-only"),
    ("outliers/mixture-0.6", "outliers/dr_grpo"),
    ("outliers/mixture-0.6", "outliers/dr_grpo-clipped"),
]


def against_grpo(plan: Plan) -> list[Pair]:
    """The arms that one theory covers, each against GRPO with the same rewards."""
    pairs = [(path, f"{path.partition('/')[0]}/grpo") for path in arms_of_regimes(plan)]
    return [(new, old) for new, old in pairs if new != old]


def exploratory_gains(studies: Studies, plan: Plan) -> pd.DataFrame:
    """The gains in pass@1 of all exploratory pairs that have runs, with p_holm, one correction for all (`corrected`)."""
    pairs = list(dict.fromkeys([*KNOBS, *against_grpo(plan), *OTHER_REWARDS, *RIVALS]))
    return corrected(uncorrected_gains(studies, pairs, plan, ks=(1,)), studies, plan)


def corrected(table: pd.DataFrame, studies: Studies, plan: Plan) -> pd.DataFrame:
    """A table of gains with p_holm, one correction for all.

    A row that is also a test of the confirmation has in p_holm the p-value that it has there, NaN where its turn did not
    come: what corrects it is the fixed sequence.
    """
    confirmed = outcomes(studies.main, plan) if studies.main.name == "confirmation" else []
    tested = {frozenset(test_arms(outcome.test)): outcome.tested for outcome in confirmed if outcome.comparison}
    pairs = [frozenset(f"{row.regime}/{arm}" for arm in (row.new, row.old)) for row in table.itertuples()]
    is_test = pd.Series([pair in tested for pair in pairs], table.index, dtype=bool) & (table["benchmarks"] == TRAINED)
    had_its_turn = is_test & pd.Series([tested.get(pair, False) for pair in pairs], table.index, dtype=bool)
    explored = holm(table["p_value"].mask(is_test))
    return table.assign(p_holm=table["p_value"].where(had_its_turn, explored))


def rows_of(gains: pd.DataFrame, pairs: Sequence[Pair]) -> pd.DataFrame:
    """The rows of some pairs, in their order."""
    found = list(zip(gains["regime"] + "/" + gains["new"], gains["regime"] + "/" + gains["old"], strict=True))
    return gains.iloc[[place for pair in pairs for place, row in enumerate(found) if row == pair]].reset_index(
        drop=True
    )
