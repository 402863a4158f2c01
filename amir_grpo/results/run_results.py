"""What a run shows: every table, every figure and the findings, each computed once, when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from amir_grpo.choices import METHODS, POLICY_NAMES
from amir_grpo.results import old_figures as figures
from amir_grpo.results import old_tables as tables
from amir_grpo.results import training_figures
from amir_grpo.results.findings import (
    coverage_title,
    findings_table,
    main_sentence,
    main_title,
    margin_title,
    reward_title,
)
from amir_grpo.results.formatting import visible

_EXAMPLES = 3  # completions of either kind


@dataclass(frozen=True)
class EvaluationResults:
    """What completions say of their policies, whichever those are.

    Attributes:
        samples: n graded completions of each problem (`amir_grpo.results.tables`); with calibration they have a column
            confidence.
        greedy: One greedy completion of each problem.
        ks: The k of pass@k.
    """

    samples: pd.DataFrame
    greedy: pd.DataFrame
    ks: Sequence[int]

    @cached_property
    def policies(self) -> pd.DataFrame:
        """Each policy on each benchmark."""
        return tables.policy_summary(self.samples, self.ks, self.greedy)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Every two policies, paired by problem."""
        return tables.comparison_table(self.samples, self.ks, self.greedy)

    @cached_property
    def reliability(self) -> pd.DataFrame | None:
        """Stated confidence and success; None where no confidence was asked for."""
        return tables.reliability_table(self.samples) if "confidence" in self.samples else None

    def table_names(self) -> list[str]:
        """Which of the attributes are tables to save, under their own names."""
        return ["policies", "comparisons", *(["reliability"] if "confidence" in self.samples else [])]

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """The figures by the names of their files, each drawn when it is called."""
        if self.reliability is None:
            return {}
        return {"reliability": lambda: figures.reliability_figure(self.reliability, "Stated confidence and success")}


@dataclass(frozen=True)
class RunResults(EvaluationResults):
    """What a run of both methods shows.

    Attributes:
        scores: Log-probabilities under both methods, as `tables.margin_table` takes them.
        logs: The training logs of both methods, with a column method.
        questions: Of the problems, by their ids.
        profile: Name of the run's profile, for titles.
        model: The policy's name, for the main table.
    """

    scores: pd.DataFrame
    logs: pd.DataFrame
    questions: Mapping[str, str]
    profile: str
    model: str

    @cached_property
    def main(self) -> pd.DataFrame:
        """pass@k of GRPO and AMIR-GRPO with the gain between them."""
        return tables.main_table(self.samples, self.ks, model=self.model)

    @cached_property
    def coverage(self) -> pd.DataFrame:
        """Which of the three policies solve a problem, over all benchmarks."""
        return tables.coverage_table(self.samples)

    @cached_property
    def margins(self) -> pd.DataFrame:
        """Log-probability margins between right and wrong completions, by problem."""
        return tables.margin_table(self.scores)

    @cached_property
    def margin_summary(self) -> pd.DataFrame:
        """The margins' means."""
        return tables.margin_summary(self.margins)

    @cached_property
    def findings(self) -> pd.DataFrame:
        """What the run says of each quantity that the paper makes a claim about."""
        return findings_table(self.main, self.coverage, self.margins, self.logs)

    @property
    def sentence(self) -> str:
        """What the main table says, in one sentence."""
        return main_sentence(self.main)

    def table_names(self) -> list[str]:
        """Which of the attributes are tables to save, under their own names."""
        return ["main", "coverage", "margins", "margin_summary", *super().table_names()]

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """The figures by the names of their files, each drawn when it is called."""
        own = {
            "main": lambda: figures.main_figure(self.main, main_title(self.main)),
            "coverage": lambda: figures.coverage_figure(self.coverage, coverage_title(self.coverage)),
            "margin": lambda: figures.margin_figure(self.margins, self.margin_summary, margin_title(self.margins)),
            "reward": lambda: training_figures.reward_figure(self.logs, reward_title(self.logs)),
        }
        return own | super().figures()


def examples(samples: pd.DataFrame, questions: Mapping[str, str]) -> list[dict[str, str]]:
    """Some right and some wrong completions of AMIR-GRPO: kind, problem, question and text of each."""
    own = samples[samples["policy"] == "amir_grpo"]
    return [
        _example(f"{POLICY_NAMES['amir_grpo']}, {label}", row, questions)
        for label, part in (("right", own[own["correct"]]), ("wrong", own[~own["correct"]]))
        for row in part.drop_duplicates("problem_id").head(_EXAMPLES).itertuples()
    ]


def furthest_apart(samples: pd.DataFrame, questions: Mapping[str, str]) -> dict[str, Any] | None:
    """The problem on which the shares of right completions of the two methods differ most; None where none does.

    Keys problem, question, shares (of each method: policy, right, samples) and completions: of each method one that is right
    if it has the larger share, and wrong if the smaller.
    """
    right = samples.pivot_table(index="problem_id", columns="policy", values="correct", aggfunc="mean", sort=False)
    gaps = (right["amir_grpo"] - right["grpo"]).dropna()
    if not gaps.any():
        return None
    problem = gaps.abs().idxmax()
    better = "amir_grpo" if gaps[problem] > 0 else "grpo"
    shares, completions = [], []
    for policy in METHODS:
        own = samples[(samples["policy"] == policy) & (samples["problem_id"] == problem)]
        shares.append({"policy": POLICY_NAMES[policy], "right": int(own["correct"].sum()), "samples": len(own)})
        row = next(own[own["correct"] == (policy == better)].itertuples())
        kind = f"{POLICY_NAMES[policy]}, {'right' if row.correct else 'wrong'}"
        completions.append(_example(kind, row, questions))
    question = visible(questions.get(problem, ""))
    return {"problem": problem, "question": question, "shares": shares, "completions": completions}


def _example(kind: str, row: Any, questions: Mapping[str, str]) -> dict[str, str]:
    question = visible(questions.get(row.problem_id, ""))
    return {"kind": kind, "problem": row.problem_id, "question": question, "text": visible(row.text)}
