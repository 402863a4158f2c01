"""Read the log of a GRPO or AMIR-GRPO training and name what keeps it from learning.

The log is a table with one row per logged step and TRL's own column names, as `log.csv` of a run, or the `log_history` of
the `trainer_state.json` that transformers writes into every checkpoint. See docs/reading-your-log.md for each symptom.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

LEAST_STEPS = 8  # fewer say nothing about a training
_CUT_OFF = 0.5  # share of completions at the length limit above which most of the reward is about length
_UNIFORM = 0.8  # share of groups without any difference above which most of a rollout is wasted
_SMALL_SHARE = 0.01  # share of the update below which the preference term cannot be told from none
_COLLAPSED = 0.1  # entropy relative to that of the first steps


@dataclass(frozen=True)
class Finding:
    """A symptom in a log, its cause, and the setting to change.

    Attributes:
        name: One word for the symptom, as in docs/reading-your-log.md.
        symptom: What the log shows, with the number.
        cause: What that means.
        remedy: The setting to change, and how.
    """

    name: str
    symptom: str
    cause: str
    remedy: str

    @property
    def stops(self) -> bool:
        """Whether a training is warned of it while it runs: nothing is learned, or what was learned is lost."""
        return self.name in ("cut-off", "uniform", "no-pairs", "entropy", "falling")

    def __str__(self) -> str:
        return f"{self.symptom}\n  cause:  {self.cause}\n  remedy: {self.remedy}"


def read_log(path: str | Path) -> dict[str, pd.DataFrame]:
    """Return the logs at a path, by the name of what was trained.

    Args:
        path: A run folder (its methods' `log.csv`), a checkpoint or output folder of transformers (the latest
            `trainer_state.json` in it), or one of these files.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If a file is not a training log.
    """
    path = Path(path)
    if path.is_dir():
        csvs = {file.parent.name: file for file in sorted(path.glob("*/log.csv")) or sorted(path.glob("log.csv"))}
        states = [file for pattern in ("trainer_state.json", "*/trainer_state.json") for file in path.glob(pattern)]
        files = csvs or ({path.name: max(states, key=lambda file: file.stat().st_mtime)} if states else {})
    else:
        files = {path.parent.name if path.name == "log.csv" else path.stem: path} if path.exists() else {}
    if not files:
        raise FileNotFoundError(
            f"There is no training log in {path}.\n"
            "Give a run folder, a folder or checkpoint of TRL with trainer_state.json, or that file."
        )
    return {name: _read(file) for name, file in files.items()}


def _read(file: Path) -> pd.DataFrame:
    try:
        if file.suffix == ".json":
            log = pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))["log_history"])
        else:
            log = pd.read_csv(file)
        return log[log["reward"].notna()].reset_index(drop=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not the log of a GRPO training: it has no steps with a reward ({type(error).__name__}).\n"
            "Give log.csv of a run, or trainer_state.json of a checkpoint."
        ) from error


def diagnose(log: pd.DataFrame) -> list[Finding]:
    """Return what a log shows that keeps a training from learning; an empty list for a healthy one.

    Args:
        log: One row per logged step, with TRL's columns; a missing one is not judged.
    """
    if len(log) < LEAST_STEPS:
        return []
    return [finding for check in _CHECKS if (finding := check(log)) is not None]


def _recent(log: pd.DataFrame, column: str) -> float:
    """Mean over the last quarter of the steps; NaN where nothing was logged."""
    if column not in log:
        return np.nan
    return float(log[column].tail(max(LEAST_STEPS, len(log) // 4)).mean())


def _cut_off(log: pd.DataFrame) -> Finding | None:
    clipped = _recent(log, "completions/clipped_ratio")
    if not clipped > _CUT_OFF:
        return None
    return Finding(
        "cut-off",
        f"{clipped:.0%} of the completions reach max_completion_length.",
        "They are cut off before an answer, or the policy never writes its end token.",
        "Raise max_completion_length; check that the tokenizer's eos_token is the one that the chat template writes.",
    )


def _uniform(log: pd.DataFrame) -> Finding | None:
    uniform = _recent(log, "frac_reward_zero_std")
    if not uniform > _UNIFORM:
        return None
    return Finding(
        "uniform",
        f"In {uniform:.0%} of the groups all completions earn the same reward.",
        "Such a group has no advantage and no pair: the problems are too hard, too easy, or the rewards too coarse.",
        "Choose problems that the policy solves sometimes; raise num_generations or temperature.",
    )


def _no_pairs(log: pd.DataFrame) -> Finding | None:
    pairs, spread = _recent(log, "preference/pairs"), _recent(log, "reward_std")
    if not (pairs < 1 and spread > 0 and _recent(log, "preference/lambda") > 0):
        return None
    return Finding(
        "no-pairs",
        f"No two completions of a group form a pair, though rewards differ (standard deviation {spread:.2g}).",
        "The margin is as large as the differences of the rewards, or larger: the preference term is always 0.",
        "Lower reward_margin below the difference between a right and a wrong completion.",
    )


def _small_share(log: pd.DataFrame) -> Finding | None:
    share, weight = _recent(log, "preference/share"), _recent(log, "preference/lambda")
    if not (share < _SMALL_SHARE and weight > 0):
        return None
    wanted = weight * (0.3 / 0.7) / (share / (1 - share)) if share > 0 else np.nan
    return Finding(
        "share",
        f"The preference term is {share:.2%} of the update (lambda_reg {weight:g}).",
        "Its share is about lambda_reg * beta_dpo / (mean advantage): this run trains like GRPO.",
        f"Raise lambda_reg; {wanted:.2g} would make a share of about 30 %." if share > 0 else "Raise lambda_reg.",
    )


def _format_only(log: pd.DataFrame) -> Finding | None:
    means = [column for column in log if column.startswith("rewards/") and column.endswith("/mean")]
    formats = [column for column in means if "format" in column]
    rights = [column for column in means if "correct" in column or "accuracy" in column]
    if not formats or not rights:
        return None
    form, right = _recent(log, formats[0]), _recent(log, rights[0])
    if not (form > 0.8 * log[formats[0]].max() > 0 and form > 2 * log[formats[0]].head(3).mean() and right < 0.05):
        return None
    return Finding(
        "format",
        f"The format reward has risen to {form:.2f} and the correctness reward stays at {right:.2f}.",
        "The policy has learned the form and earns nothing for the answer: all pairs are about the form.",
        "Weigh correctness more (reward_weights), give easier problems, or look whether the grader reads the answers.",
    )


def _collapse(log: pd.DataFrame) -> Finding | None:
    first = log["entropy"].head(3).mean() if "entropy" in log else np.nan
    last = _recent(log, "entropy")
    if not last < _COLLAPSED * first:
        return None
    return Finding(
        "entropy",
        f"The entropy has fallen from {first:.3g} to {last:.3g} nats per token.",
        "The policy draws nearly the same completion every time, so that groups become uniform.",
        "Lower learning_rate, raise temperature or epsilon_high, or stop earlier.",
    )


def _flat(log: pd.DataFrame) -> Finding | None:
    third = len(log) // 3
    if third < LEAST_STEPS:
        return None
    before, after = log["reward"].head(third), log["reward"].tail(third)
    error = float(np.sqrt(before.var() / third + after.var() / third))
    gain = after.mean() - before.mean()
    if gain > 2 * error:
        return None
    if gain < -2 * error:
        return Finding(
            "falling",
            f"The reward has fallen from {before.mean():.3f} to {after.mean():.3f} (two standard errors: {2 * error:.3f}).",
            "The updates harm the policy: the learning rate is too high, or the policy has left what the reward can judge.",
            "Lower learning_rate or max_grad_norm, and continue from an earlier checkpoint.",
        )
    return Finding(
        "flat",
        f"The reward went from {before.mean():.3f} to {after.mean():.3f}, within two standard errors ({2 * error:.3f}).",
        "Nothing is learned, or the reward is at its maximum. A loss near 0 is not the fault: on-policy it always is.",
        "Mend what is named above first; then raise learning_rate, or train for longer.",
    )


_CHECKS: tuple[Callable[[pd.DataFrame], Finding | None], ...] = (
    _cut_off,
    _uniform,
    _no_pairs,
    _small_share,
    _format_only,
    _collapse,
    _flat,
)
