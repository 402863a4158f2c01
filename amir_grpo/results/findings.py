"""What one run says of its two policies. It has one training seed per method, so that it gives no verdict on a method."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from amir_grpo.choices import POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results import old_tables as tables
from amir_grpo.results.formatting import p_equals, p_text, signed
from amir_grpo.results.verdicts import MARGIN_SHARE

FINDING_COLUMNS = ["claim", "quantity", "result", "interval", "p"]


def findings_table(
    main: pd.DataFrame, coverage: pd.DataFrame, margins: pd.DataFrame, logs: pd.DataFrame
) -> pd.DataFrame:
    """Each quantity that the paper makes a claim about, as text: columns `FINDING_COLUMNS`.

    Intervals and p-values are over problems; they do not cover a new training seed.

    Args:
        main, coverage, margins: Tables of the run (`amir_grpo.results.tables`).
        logs: The training logs of both methods, with a column method.
    """
    rows = [("Gain in pass@k", "AMIR-GRPO − GRPO", _gains(main), "–", "–")]
    share = tables.preference_share(logs[logs["method"] == "amir_grpo"])
    if not np.isnan(share):
        result = f"{100 * share:.2f} % (median of the steps)"
        rows.append(("Richer supervision", "share of the update that the preference makes", result, "–", "–"))
    shared = margins[margins["reading"] == "shared"]
    if shared["method"].nunique() == 2:
        gain = tables.shared_margin_gain(margins)
        mean, low, high = (signed(gain[end], 4) for end in ("gain", "gain_low", "gain_high"))
        quantity = f"margin on shared completions, AMIR-GRPO − GRPO, {_problems(gain['problems'])}"
        interval = f"{low} to {high}"
        result = f"{mean} nats per token ({relative_margin(gain)} of GRPO's)"
        rows.append(("Sharper decision boundary", quantity, result, interval, p_text(gain["p_value"])))
    test = tables.coverage_test(coverage)
    quantity = "problems solved by AMIR-GRPO and not GRPO, and the other way round (McNemar)"
    result = f"{test['only_amir_grpo']} and {test['only_grpo']}"
    rows.append(("Broader coverage", quantity, result, "–", p_text(test["p_value"])))
    return pd.DataFrame(rows, columns=FINDING_COLUMNS)


def _gains(main: pd.DataFrame) -> str:
    up, down = _clear_gains(main)
    first = main[main["k"] == main["k"].min()]
    result = f"{signed(first['gain'].mean())} points on average at k = {main['k'].min()}; "
    return result + f"of {len(main)} gains {up} clearly above 0, {down} clearly below"


def main_sentence(main: pd.DataFrame) -> str:
    """What the main table says about these two policies, in one sentence."""
    up, down = _clear_gains(main)
    scope = (
        "on these problems, for these two policies; another training seed may differ by more than these intervals say."
    )
    if not up and not down:
        least, most = signed(main["gain"].min()), signed(main["gain"].max())
        return (
            f"None of the {len(main)} gains of AMIR-GRPO over GRPO, which range from {least} to {most} points, is "
            f"distinguishable from 0 (Holm-corrected p < {SIGNIFICANCE}) {scope}"
        )
    return (
        f"Of the {len(main)} gains of AMIR-GRPO over GRPO, {up} are above 0 and {down} below (Holm-corrected p < "
        f"{SIGNIFICANCE}) {scope}"
    )


def _clear_gains(main: pd.DataFrame) -> tuple[int, int]:
    clear = main.loc[main["p_holm"] < SIGNIFICANCE, "gain"]
    return int((clear > 0).sum()), int((clear < 0).sum())


# --- titles of figures: the finding, as these tables have it ------------------------------------------------------


def main_title(main: pd.DataFrame) -> str:
    """What the main figure shows."""
    up, down = _clear_gains(main)
    if up and down:
        return f"Of {len(main)} gains of AMIR-GRPO over GRPO, {up} are above 0 and {down} below"
    if up or down:
        return f"AMIR-GRPO is {'above' if up else 'below'} GRPO in {up or down} of {len(main)} comparisons"
    return "No gain of AMIR-GRPO over GRPO is distinguishable from 0"


def coverage_title(coverage: pd.DataFrame) -> str:
    """What the coverage figure shows; the test is McNemar's."""
    test = tables.coverage_test(coverage)
    ours, theirs = test["only_amir_grpo"], test["only_grpo"]
    if not ours + theirs:
        return "AMIR-GRPO and GRPO solve the same problems"
    counted = f"AMIR-GRPO alone solves {_problems(ours)}, GRPO alone {theirs}"
    if test["p_value"] < SIGNIFICANCE:
        return f"{counted} (p {p_equals(test['p_value'])})"
    return f"{counted}: a difference is not shown (p {p_equals(test['p_value'])})"


def margin_title(margins: pd.DataFrame) -> str:
    """What the margin figure shows: the difference on shared completions where both methods scored them."""
    shared = margins[margins["reading"] == "shared"]
    if len(shared["method"].unique()) < 2:
        return "Margins of right over wrong completions"
    gain = tables.shared_margin_gain(margins)
    if margins_are_equal(gain):
        within = f"{100 * MARGIN_SHARE:g} % ({relative_margin(gain)})"
        return f"Margins on the same completions are equal to within {within}"
    if not gain["p_value"] < SIGNIFICANCE:
        p = f" (p {p_equals(gain['p_value'])})" if np.isfinite(gain["p_value"]) else ""
        return f"In this run a difference between the methods' margins on the same completions is not shown{p}"
    larger = "larger" if gain["gain"] > 0 else "smaller"
    size = f"{abs(gain['gain']):.2g} nats per token"
    p = p_equals(gain["p_value"])
    return f"In this run AMIR-GRPO's margin on the same completions is {size} {larger} than GRPO's (p {p})"


def published_margin_title(published: pd.DataFrame) -> str:
    """What the published means show: how far apart they are. Whether by chance nothing published tells.

    Args:
        published: Columns method and mean (nats per token), one row per method.
    """
    means = published.set_index("method")["mean"]
    gain = means["amir_grpo"] - means["grpo"]
    size = f"{abs(gain):.2g} nats per token {'larger' if gain > 0 else 'smaller'}"
    return f"Published: AMIR-GRPO's mean margin is {size}; no interval is published"


def margins_are_equal(gain: Mapping[str, float]) -> bool:
    """Whether the interval of a difference of margins lies within the smallest one of interest, whatever its p-value.

    `gain`: from `tables.shared_margin_gain`.
    """
    return max(abs(gain["gain_low"]), abs(gain["gain_high"])) < MARGIN_SHARE * abs(gain["level"])


def relative_margin(gain: Mapping[str, float]) -> str:
    """A difference of margins in percent of GRPO's, as +0.05 %; `gain` from `tables.shared_margin_gain`."""
    if not gain["level"]:  # of a policy that finds all completions of a problem equally likely
        return f"{signed(gain['gain'], 2)} nats"
    return f"{signed(100 * gain['gain'] / abs(gain['level']), 2)} %"


def reward_title(logs: pd.DataFrame) -> str:
    """What the reward figure shows: where each training began and ended, a tenth of its steps each."""
    told = []
    for method, log in logs.dropna(subset=["reward"]).groupby("method", sort=False):
        ends = tables.reward_ends(log)
        told.append(f"{POLICY_NAMES.get(method, method)} {ends.first:.2f} → {ends.last:.2f}")
    return f"Reward: {', '.join(told)}" if told else "No step was logged"


def share_title(share: pd.Series) -> str:
    """What the share figure shows; `share` of the update (0 to 1) at each step."""
    share = share.dropna()
    if share.empty or not share.median() > 0:
        return "Preference term: share of the update"
    return f"The preference term is {100 * share.median():.2g} % of the update"


def _problems(number: int) -> str:
    return f"{number} problem{'s' * (number != 1)}"
