"""The arms of the study, as changes of settings: what is trained, under which rewards, and what theory predicts.

With `lambda_schedule="share"` the preference term is added to GRPO's advantages, so that at a share of 0.6 the update
is up to 2.5 times GRPO's, and a gain could come from the larger step. The arms of the tests are therefore mixtures,
(1 - s) A + s ŵ with ŵ scaled to the L1 norm of A: the objective of the same share, at the size of GRPO's update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amir_grpo.settings import settings_of

PROFILE = "sandbox"  # the profile that the arms change
# Settings of the rewards in each regime; the first has no nuisance.
REGIMES: dict[str, dict[str, Any]] = {
    "clean": {},
    "nuisance": {"nuisance": "noise", "nuisance_size": 0.45, "reward_margin": 1.0},
    "above-margin": {"nuisance": "noise", "nuisance_size": 1.5, "reward_margin": 1.0},
    "outliers": {"nuisance": "outliers", "nuisance_size": 10.0, "nuisance_rate": 1 / 16},
    "format": {"nuisance": "format", "nuisance_size": 1.0},
    "partial": {"nuisance": "partial", "nuisance_size": 1.0},
    "correctness": {"reward_terms": "correctness"},
    "stories": {"max_steps": 30, "claims": True},
    "plain-stories": {"max_steps": 30, "claims": False},
}
TITLES = {
    "clean": "clean rewards",
    "nuisance": "noise below the margin",
    "above-margin": "noise above the margin",
    "outliers": "rare outliers",
    "format": "format reward",
    "partial": "partial credit",
    "correctness": "correctness alone",
    "stories": "stories, claims rewarded",
    "plain-stories": "stories",
}
BASE = "base"
# Regimes that are separate studies: the comparison of methods related to AMIR-GRPO, and a language model.
OWN_STUDIES = ("correctness", "stories", "plain-stories")

_MIXTURE = {"lambda_schedule": "mixture", "preference_share": 0.6}
_PERMUTED = {"pair_mining": "permuted"}
# The paper's λ, β and δ; the rewards are this package's.
_PUBLISHED = {"lambda_reg": 0.01, "beta_dpo": 0.2, "reward_margin": 2.0}
# Two optimizer steps per rollout, so that importance ratios leave 1: with one, GSPO and all clipping rules are GRPO.
_TWO_STEPS = {
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 2,
    "max_steps": 120,
}
_DR_GRPO = {"loss_type": "dr_grpo", "scale_rewards": "none"}
_SWEEP = (0.1, 0.3, 1.0, 3.0, 10.0)  # values of λ
# The largest reward that a completion can earn without a nuisance; in practice one would know this bound, too.
_CLIPPED = {"reward_clip": 3.3}
# The simulation of the sandbox without a nuisance; the last four numbers are from GRPO's rollouts.
_PROMPTS = 16  # prompts per rollout
_SCALE_EPSILON = 1e-4  # TRL adds it to a group's standard deviation
_CORRECT, _PLAIN = 2.0, 0.8  # rewards for being right, and for tags and an integer answer, which every completion has
_STYLE = 0.5  # what a careful solution earns beyond a careless one, for its format and its claims of arithmetic
_CAREFUL = 0.9, 0.35  # shares of the right and of the wrong completions that are careful
_ALIKE = 8.0  # pass rates of problems are Beta-distributed with this sum of both parameters


@dataclass(frozen=True)
class Arm:
    """One way of training under the rewards of a regime. Its runs differ in the seed and the base policy.

    Attributes:
        method: grpo or amir_grpo; base for the policy before training, which is only evaluated.
        about: Description for tables and figures; a percentage is the preference term's part of the update.
        changes: Settings that differ from the profile's, including those of the regime.
    """

    regime: str
    name: str
    method: str
    about: str
    changes: Mapping[str, Any]

    @property
    def path(self) -> str:
        """`regime/arm`."""
        return f"{self.regime}/{self.name}"


def _grpo(path: str, about: str = "GRPO", *changes: Mapping[str, Any], method: str = "grpo") -> Arm:
    regime, _, name = path.partition("/")
    merged = {setting: value for part in (REGIMES[regime], *changes) for setting, value in part.items()}
    return Arm(regime, name, method, about, merged)


def _amir(path: str, about: str, *changes: Mapping[str, Any]) -> Arm:
    return _grpo(path, about, *changes, method="amir_grpo")


def _mixture(regime: str) -> Arm:
    return _amir(f"{regime}/mixture-0.6", "AMIR-GRPO, 60 %", _MIXTURE)


def _variant(name: str, about: str, **changes: Any) -> list[Arm]:
    """Return the arms of a variant with two optimizer steps per rollout: no term, the published one, a mixture."""
    loss, path = _TWO_STEPS | changes, f"clean/two-step-{name}"
    return [
        _grpo(path, f"{about}, two steps", loss),
        _amir(f"{path}-published", f"{about}, two steps, published", loss, _PUBLISHED),
        _amir(f"{path}-mixture", f"{about}, two steps, 60 %", loss, _MIXTURE),
    ]


def _relative(name: str, about: str, beta: float) -> Arm:
    """Return the arm in which a loss of `amir_grpo.family` replaces GRPO's advantages, at the same size of update."""
    alone = {"lambda_schedule": "mixture", "preference_share": 1.0, "beta_dpo": beta}
    loss = {} if name == "amir" else {"pair_loss": name}
    return _amir(f"correctness/{name}", about, alone, loss)


def _sweep(regime: str) -> list[Arm]:
    """Return arms at ten to a thousand times the published λ; δ is the regime\'s, not the paper\'s."""
    return [_amir(f"{regime}/lambda-{value:g}", f"λ = {value:g}", {"lambda_reg": value}) for value in _SWEEP]


def _group_size(size: int) -> Arm:
    changes = {"num_generations": size, "per_device_train_batch_size": 16 * size}
    return _grpo(f"clean/group-{size}", f"GRPO, G = {size}", changes)


def _stories(regime: str, published: Mapping[str, Any]) -> list[Arm]:
    """Return the arms of a study on a language model."""
    return [
        _grpo(f"{regime}/{BASE}", "base policy", method=BASE),
        _grpo(f"{regime}/half-grpo", "GRPO, half of the steps", {"max_steps": 15}),
        _grpo(f"{regime}/grpo"),
        _amir(f"{regime}/published", "AMIR-GRPO, published", published),
        _mixture(regime),
    ]


# First the arms of the plan's tests, then the others in the order in which they are worth their time.
_ALL = [
    _grpo(f"clean/{BASE}", "base policy", method=BASE),
    _grpo("clean/grpo"),
    _amir("clean/published", "AMIR-GRPO, published", _PUBLISHED),
    _mixture("clean"),
    _amir("clean/mixture-0.6-permuted", "60 %, rewards permuted", _MIXTURE, _PERMUTED),
    *(_grpo(f"{regime}/grpo") for regime in ("nuisance", "outliers", "above-margin")),
    *(_mixture(regime) for regime in ("nuisance", "outliers", "above-margin")),
    _grpo("nuisance/dr_grpo", "Dr. GRPO", _DR_GRPO),
    _grpo("nuisance/correctness-only", "GRPO, correctness reward only", {"reward_terms": "correctness"}),
    _grpo("outliers/dr_grpo", "Dr. GRPO", _DR_GRPO),
    _grpo("outliers/dr_grpo-clipped", "Dr. GRPO, clipped reward", _DR_GRPO, _CLIPPED),
    _amir("clean/published-schedule", "published λ schedule", _PUBLISHED, {"lambda_schedule": "published"}),
    _grpo("clean/lr-x2", "GRPO, learning rate × 2", {"learning_rate": 2e-3}),
    *_variant("grpo", "GRPO"),
    *_variant("dr_grpo", "Dr. GRPO", **_DR_GRPO),
    *_variant("dapo", "DAPO's loss", loss_type="dapo", epsilon_high=0.28, mask_truncated_completions=True),
    *_variant("gspo", "GSPO", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
    _grpo("nuisance/grpo-unscaled", "GRPO without division", {"scale_rewards": "none"}),
    _grpo("nuisance/uniform-dropped", "GRPO, uniform groups dropped", {"drop_uniform_groups": True}),
    _amir("clean/mixture-0.6-linear", "60 %, linear pairs", _MIXTURE, {"pair_loss": "linear"}),
    _group_size(4),
    _group_size(16),
    # where λ begins to matter; a clipped reward and the term in all combinations; learning rates; more steps
    *_sweep("clean"),
    _grpo("outliers/grpo-clipped", "GRPO, clipped reward", _CLIPPED),
    _amir("outliers/mixture-0.6-clipped", "60 %, clipped reward", _MIXTURE, _CLIPPED),
    _amir("nuisance/dr_grpo-mixture", "Dr. GRPO, 60 %", _MIXTURE, _DR_GRPO),
    *_sweep("nuisance"),
    _amir("clean/mixture-0.6-lr-x2", "60 %, learning rate × 2", _MIXTURE, {"learning_rate": 2e-3}),
    _grpo("clean/lr-x4", "GRPO, learning rate × 4", {"learning_rate": 4e-3}),
    _amir("clean/mixture-0.6-lr-x4", "60 %, learning rate × 4", _MIXTURE, {"learning_rate": 4e-3}),
    _grpo("clean/lr-x8", "GRPO, learning rate × 8", {"learning_rate": 8e-3}),
    _amir("clean/mixture-0.6-lr-x8", "60 %, learning rate × 8", _MIXTURE, {"learning_rate": 8e-3}),
    _grpo("clean/steps-x4", "GRPO, steps × 4", {"max_steps": 240}),
    *(arm for regime in ("format", "partial") for arm in (_grpo(f"{regime}/grpo"), _mixture(regime))),
    # methods related to AMIR-GRPO, with correctness as the only reward
    _grpo(f"correctness/{BASE}", "base policy", method=BASE),
    _grpo("correctness/grpo"),
    _grpo("correctness/two-step-grpo", "GRPO, two steps", _TWO_STEPS),
    _relative("amir", "AMIR-GRPO's term alone", 0.2),
    _relative("listwise", "listwise", 2.0),  # a right answer is worth 2: with τ = 1/2, 4 units of log-probability
    _relative("infonce", "InfoNCE", 1.0),
    _relative("dr_grpo", "Dr. GRPO", 1.0),
    *_stories("stories", _PUBLISHED),
    _amir("stories/mixture-0.6-permuted", "60 %, rewards permuted", _MIXTURE, _PERMUTED),
    # without claims a right answer is worth 2.0 more than a wrong one, which does not exceed δ = 2
    *_stories("plain-stories", {**_PUBLISHED, "reward_margin": 1.5}),
]
ARMS: dict[str, Arm] = {arm.path: arm for arm in _ALL}


def about(path: str) -> str:
    """Describe an arm, given as `regime/arm`, for tables and figures."""
    return ARMS[path].about if path in ARMS else path


# --- what theory predicts of them -----------------------------------------------------------------------------------
# How much of an update is about correctness? Its cosine with correctness centred in each group, which is Dr. GRPO's
# advantage if correctness is the only reward. A nuisance lowers it: group normalisation amplifies the nuisance in
# groups that are all right or all wrong; pairs with a larger margin do not see it; a clipped reward bounds it.


def simulated_rewards(
    settings: Mapping[str, Any], pass_rate: float, rollouts: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Simulate correctness (0 or 1) and rewards, (rollouts, prompts, G) each; `settings` are those of a run, flat."""
    shape = (rollouts, _PROMPTS, settings["num_generations"])
    rates = generator.beta(pass_rate * _ALIKE, (1 - pass_rate) * _ALIKE, shape[:2])
    correct = (generator.random(shape) < rates[..., None]).astype(float)
    reward = _CORRECT * correct
    if settings["reward_terms"] == "correctness":
        return correct, reward
    careful = np.where(correct > 0, *_CAREFUL)
    reward = reward + _PLAIN + _STYLE * (generator.random(shape) < careful)
    nuisance, size = settings["nuisance"], settings["nuisance_size"]
    if nuisance == "noise":
        reward = reward + size * (2 * generator.random(shape) - 1)
    elif nuisance == "outliers":
        reward = reward + size * (generator.random(shape) < settings["nuisance_rate"])
    return correct, reward if settings["reward_clip"] is None else np.minimum(reward, settings["reward_clip"])


def group_advantages(reward: NDArray[np.float64], scaled: bool) -> NDArray[np.float64]:
    """Return GRPO's advantages over the last axis, or Dr. GRPO's if not scaled by the standard deviation."""
    deviation = reward - reward.mean(axis=-1, keepdims=True)
    return deviation / (reward.std(axis=-1, ddof=1, keepdims=True) + _SCALE_EPSILON) if scaled else deviation


def wins_minus_losses(reward: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """Return each completion's wins minus losses in its group (last axis); a win is by more than the margin."""
    gap = reward[..., :, None] - reward[..., None, :]
    return (gap > margin).sum(axis=-1) - (gap < -margin).sum(axis=-1).astype(float)


def simulated_update(
    settings: Mapping[str, Any], reward: NDArray[np.float64], preference: bool
) -> NDArray[np.float64]:
    """Return advantages, mixed with linear pairs at their share if `preference`; rollouts are on the first axis."""
    advantage = group_advantages(reward, settings["scale_rewards"] == "group")
    if not preference:
        return advantage
    weight, share = wins_minus_losses(reward, settings["reward_margin"]), settings["preference_share"]
    sizes = [np.abs(values).sum(axis=(1, 2), keepdims=True) for values in (advantage, weight)]
    scale = np.divide(sizes[0], sizes[1], out=np.zeros_like(sizes[0]), where=sizes[1] > 0)
    return (1 - share) * advantage + share * weight * scale


def predicted_cosine(path: str, pass_rate: float, rollouts: int = 400, seed: int = 0) -> float:
    """Return the mean cosine of an arm's update with centred correctness over simulated rollouts, without a policy.

    `path`: GRPO or a mixture, with a nuisance that does not depend on the text of a completion.
    """
    settings = settings_of(PROFILE, ARMS[path].changes).flat()
    correct, reward = simulated_rewards(settings, pass_rate, rollouts, np.random.default_rng(seed))
    update = simulated_update(settings, reward, ARMS[path].method == "amir_grpo")
    wanted = group_advantages(correct, scaled=False)
    products, squares, wished = (
        (a * b).sum(axis=(1, 2)) for a, b in ((update, wanted), (update, update), (wanted, wanted))
    )
    told = (squares > 0) & (wished > 0)
    return float(np.mean(products[told] / np.sqrt(squares[told] * wished[told])))
