"""Read the log of a GRPO or AMIR-GRPO training and name what keeps it from learning.

The log has one row per logged step and TRL's column names: `log.csv` of a run, or `log_history` in the
`trainer_state.json` that transformers writes into every checkpoint. docs/reading-your-log.md explains each symptom.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

LEAST_STEPS = 8  # a shorter log is not judged


class Finding(NamedTuple):
    """A symptom in a log, named as in docs/reading-your-log.md, with its cause and the setting to change."""

    name: str
    symptom: str
    cause: str
    remedy: str

    @property
    def stops(self) -> bool:
        """Whether a running training warns of it: nothing is learned, or what was learned is lost."""
        return self.name in ("cut-off", "uniform", "no-pairs", "entropy", "falling")

    def __str__(self) -> str:
        return f"{self.symptom}\n  cause:  {self.cause}\n  remedy: {self.remedy}"


def read_log(path: str | Path) -> dict[str, pd.DataFrame]:
    """Return the logs at a path, by the name of their folder, such as the method.

    Args:
        path: A run folder (its methods' `log.csv`), a checkpoint or output folder of transformers (the latest
            `trainer_state.json` in it), or one of these files.

    Raises:
        FileNotFoundError: If the path holds no log.
        ValueError: If a file is not a training log.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*/log.csv")) or sorted(path.glob("log.csv"))
    if not files:
        states = [*path.glob("trainer_state.json"), *path.glob("*/trainer_state.json")]
        files = sorted(states, key=lambda file: file.stat().st_mtime)[-1:]
    if not files:
        raise FileNotFoundError(
            f"There is no training log in {path}.\n"
            "Give a run folder, a folder or checkpoint of TRL with trainer_state.json, or that file."
        )
    return {file.parent.name or file.stem: _read(file) for file in files}


def _read(file: Path) -> pd.DataFrame:
    try:
        is_state = file.suffix == ".json"
        log = pd.DataFrame(json.loads(file.read_text("utf-8"))["log_history"]) if is_state else pd.read_csv(file)
        return log[log["reward"].notna()].reset_index(drop=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not the log of a GRPO training, or no step with a reward is logged yet.\n"
            "Give log.csv of a run, or trainer_state.json of a checkpoint; lower logging_steps in a short training."
        ) from error


def diagnose(log: pd.DataFrame) -> list[Finding]:
    """Return the symptoms in a log that keep a training from learning; an empty list if it is healthy.

    Args:
        log: One row per logged step, with TRL's columns. A value that was not logged causes no finding.
    """
    if len(log) < LEAST_STEPS:
        return []
    part, third = max(LEAST_STEPS, len(log) // 4), len(log) // 3
    numbers = log.select_dtypes("number")
    first, last, most = numbers.head(3).mean(), numbers.tail(part).mean(), numbers.max()
    means = [name for name in numbers if name.startswith("rewards/") and name.endswith("/mean")]
    form = next((name for name in means if "format" in name), None)
    right = next((name for name in means if "correct" in name or "accuracy" in name), None)
    share, weight = last.get("preference/share", np.nan), last.get("preference/lambda", np.nan)
    before, after = (log["reward"].iloc[rows] for rows in (slice(third), slice(-third, None)))
    gain = after.mean() - before.mean() if third >= LEAST_STEPS else np.nan
    errors = 2 * np.sqrt((before.var() + after.var()) / third)
    rewards = f"from {before.mean():.3f} to {after.mean():.3f}"
    symptoms = (
        (
            last.get("completions/clipped_ratio", 0) > 0.5,
            "cut-off",
            f"{last.get('completions/clipped_ratio', 0):.0%} of the completions reach max_completion_length.",
            "They are cut off before an answer, or the policy never writes its end token.",
            "Raise max_completion_length; check that the tokenizer's eos_token is the one that the chat template writes.",
        ),
        (
            last.get("frac_reward_zero_std", 0) > 0.8,
            "uniform",
            f"In {last.get('frac_reward_zero_std', 0):.0%} of the groups all completions earn the same reward.",
            "Such a group has no advantage and no pair: the problems are too hard, too easy, or the rewards too coarse.",
            "Choose problems that the policy solves sometimes; raise num_generations or temperature.",
        ),
        (
            numbers.tail(part).max().get("preference/pairs", 1) == 0 and last.get("reward_std", 0) > 0 and weight > 0,
            "no-pairs",
            "No two completions of a group form a pair, though rewards differ "
            f"(standard deviation {last.get('reward_std', 0):.2g}).",
            "The margin is at least as large as the differences of the rewards: the preference term is always 0.",
            "Lower reward_margin below the difference between a right and a wrong completion.",
        ),
        (
            0 < share < 0.01 and weight > 0,
            "share",
            f"The preference term is {share:.2%} of the update (lambda_reg {weight:g}).",
            "Its share is about lambda_reg * beta_dpo / (mean advantage): this run trains like GRPO.",
            f"Raise lambda_reg; {weight * (3 / 7) * (1 / max(share, 1e-9) - 1):.2g} would make a share of about 30 %.",
        ),
        (
            form and right and last[form] > max(0.8 * most[form], 2 * first[form]) > 0 and last[right] < 0.05,
            "format",
            f"The format reward has risen to {last.get(form, 0):.2f}, but the correctness reward stays below 0.05.",
            "The policy has learned the form and earns nothing for the answer: all pairs are about the form.",
            "Weigh correctness more (reward_weights), use easier problems, or check that the grader reads answers.",
        ),
        (
            last.get("entropy", 1) < 0.1 * first.get("entropy", 0),
            "entropy",
            f"The entropy has fallen from {first.get('entropy', 0):.3g} to {last.get('entropy', 0):.3g} nats per token.",
            "The policy draws nearly the same completion every time, so that groups become uniform.",
            "Lower learning_rate, raise temperature or epsilon_high, or stop earlier.",
        ),
        (
            gain < -errors,
            "falling",
            f"The reward has fallen {rewards} (two standard errors: {errors:.3f}).",
            "The updates harm the policy: the learning rate is too high, or the policy has left what the reward can judge.",
            "Lower learning_rate or max_grad_norm, and continue from an earlier checkpoint.",
        ),
        (
            abs(gain) <= errors,
            "flat",
            f"The reward went {rewards}, within two standard errors ({errors:.3f}).",
            "Nothing is learned, or the reward is at its maximum. A loss near 0 is no fault: on-policy it always is.",
            "First fix what is named above, if anything; then raise learning_rate, or train longer.",
        ),
    )
    return [Finding(*texts) for shown, *texts in symptoms if shown]
