"""Stand-in, until the command `evaluate` calls the functions of tables itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from amir_grpo.results import tables


@dataclass(frozen=True)
class EvaluationResults:
    """What completions say of their policies."""

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
