"""What the theory of the preference term predicts in each regime, by simulation of rewards alone: no policy, no training.

How much of an update is about correctness? Its cosine with correctness centred in each group, the advantage of Dr. GRPO for
rewards that are nothing else. A nuisance lowers it: group normalisation blows it up in groups that are all right or all
wrong; pairs with a margin above the nuisance do not see it; a clipped reward bounds it. Training is expected to go better
where the cosine is higher. Whether it does is what the runs of a regime say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amir_grpo.settings import settings_of
from amir_grpo.study.regimes import ARMS
from amir_grpo.study.schedule import PROFILE

_CORRECT = 2.0  # reward of a right completion
_PROMPTS = 16  # of a rollout
_SCALE_EPSILON = 1e-4  # that TRL adds to a group's standard deviation


@dataclass(frozen=True)
class RewardModel:
    """How completions of the sandbox are rewarded, apart from a regime's nuisance; the numbers are those of GRPO's rollouts.

    Attributes:
        spread: How alike problems are: their pass rates are Beta-distributed with this sum of both parameters.
        plain: What every completion earns, for its tags and its integer answer.
        style: What a careful solution, with its format and its claims of arithmetic, earns over a careless one.
        careful_right, careful_wrong: How many of the right and of the wrong completions are careful.
    """

    spread: float = 8.0
    plain: float = 0.8
    style: float = 0.5
    careful_right: float = 0.9
    careful_wrong: float = 0.35


def simulated_rewards(
    settings: Mapping[str, Any], pass_rate: float, rollouts: int, generator: np.random.Generator, model: RewardModel
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correctness (0 or 1) and reward of simulated completions: (rollouts, prompts, G) each.

    `settings`: num_generations, nuisance, nuisance_size, nuisance_rate, reward_clip and reward_terms of a run.
    Raises ValueError for a nuisance that depends on what a completion says.
    """
    group = settings["num_generations"]
    shape = (rollouts, _PROMPTS, group)
    rates = generator.beta(pass_rate * model.spread, (1 - pass_rate) * model.spread, shape[:2])
    correct = (generator.random(shape) < rates[..., None]).astype(float)
    reward = _CORRECT * correct
    if settings["reward_terms"] == "correctness":
        return correct, reward
    careful = np.where(correct > 0, model.careful_right, model.careful_wrong)
    reward = reward + model.plain + model.style * (generator.random(shape) < careful)
    size = settings["nuisance_size"]
    if settings["nuisance"] == "noise":
        reward = reward + size * (2 * generator.random(shape) - 1)
    elif settings["nuisance"] == "outliers":
        reward = reward + size * (generator.random(shape) < settings["nuisance_rate"])
    elif settings["nuisance"] != "none":
        raise ValueError(f"A {settings['nuisance']} nuisance depends on what a completion says: it is not simulated.")
    if settings["reward_clip"] is not None:
        reward = np.minimum(reward, settings["reward_clip"])
    return correct, reward


def advantages(reward: NDArray[np.float64], scaled: bool) -> NDArray[np.float64]:
    """GRPO's advantages over the last axis, or Dr. GRPO's where they are not scaled by the standard deviation."""
    centred = reward - reward.mean(axis=-1, keepdims=True)
    return centred / (reward.std(axis=-1, ddof=1, keepdims=True) + _SCALE_EPSILON) if scaled else centred


def wins_minus_losses(reward: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """How many of its group each completion beats by more than the margin, minus how many beat it so; last axis: group."""
    gap = reward[..., :, None] - reward[..., None, :]
    return (gap > margin).sum(axis=-1) - (gap < -margin).sum(axis=-1).astype(float)


def update_of(settings: Mapping[str, Any], reward: NDArray[np.float64], preference: bool) -> NDArray[np.float64]:
    """Advantages, plus the preference term at its share where there is one; rollouts on the first axis.

    The pair loss is its linear limit, which the settings of the study hardly leave.
    """
    advantage = advantages(reward, settings["scale_rewards"] == "group")
    if not preference:
        return advantage
    weight = wins_minus_losses(reward, settings["reward_margin"])
    norms = [np.abs(values).sum(axis=(1, 2), keepdims=True) for values in (advantage, weight)]
    share = settings["preference_share"]
    return (1 - share) * advantage + share * weight * np.divide(
        norms[0], norms[1], out=np.zeros_like(norms[0]), where=norms[1] > 0
    )


def predicted_cosine(
    arm: str, pass_rate: float, model: RewardModel = RewardModel(), rollouts: int = 400, seed: int = 0
) -> float:
    """Mean over rollouts of the cosine of an arm's update with centred correctness.

    Args:
        arm: `regime/arm`, GRPO or a mixture.
        pass_rate: Mean share of right completions.
        model, rollouts, seed: Of the simulation.
    """
    settings = settings_of(PROFILE, ARMS[arm].changes).flat()
    correct, reward = simulated_rewards(settings, pass_rate, rollouts, np.random.default_rng(seed), model)
    update = update_of(settings, reward, ARMS[arm].method == "amir_grpo")
    wanted = advantages(correct, scaled=False)
    products, squares, wished = (
        (a * b).sum(axis=(1, 2)) for a, b in ((update, wanted), (update, update), (wanted, wanted))
    )
    told = (squares > 0) & (wished > 0)
    return float(np.mean(products[told] / np.sqrt(squares[told] * wished[told])))


def cosine_table(arms: Sequence[str], pass_rates: Sequence[float]) -> pd.DataFrame:
    """The prediction for each arm and pass rate: columns regime, arm, about, pass_rate, cosine."""
    rows = []
    for arm in arms:
        for rate in pass_rates:
            names = {"regime": ARMS[arm].regime, "arm": ARMS[arm].name, "about": ARMS[arm].about}
            rows.append(names | {"pass_rate": rate, "cosine": predicted_cosine(arm, rate)})
    return pd.DataFrame(rows)
