"""Reward regimes: what a run's reward holds beside the published functions, and rivals that treat it differently.

A nuisance is a part of the reward that says nothing about correctness, as a noisy reward model or a weighty style
would add it. It is a reward function of its own, so that TRL logs it in a column of its own (`rewards/nuisance/mean`).
All regimes are off by default.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from amir_grpo.answers import extract_answer, plain_number, plain_text
from amir_grpo.rewards import Completion, RewardFunction, completion_texts, reward_functions, strict_format
from amir_grpo.settings import RunSettings

_CREDIT_RANGE = 10  # how far off an answer may be to earn partial credit


def rewards_of(settings: RunSettings) -> tuple[list[RewardFunction], list[float]]:
    """The reward functions of a run, and the weight of each in the reward.

    The published ones come first. A nuisance follows as `nuisance`, and where the reward is clipped, what that takes off
    follows as `clip`. With `reward_terms="correctness"` all others are logged, but weigh nothing.
    """
    functions = reward_functions(settings.data.calibration)
    if settings.study.nuisance != "none":
        functions.append(_nuisance(settings))
    if settings.study.reward_clip is not None:
        functions.append(_clip(settings.study.reward_clip, list(functions)))
    only = settings.study.reward_terms == "correctness"
    return functions, [0.0 if only and function.__name__ != "correctness" else 1.0 for function in functions]


def _nuisance(settings: RunSettings) -> RewardFunction:
    kind, size = settings.study.nuisance, settings.study.nuisance_size

    def nuisance(completions: Sequence[Completion], **columns: Any) -> list[float]:
        if kind == "format":
            return [size if reward else 0.0 for reward in strict_format(completions)]
        if kind == "partial":
            texts = completion_texts(completions)
            return [size * _closeness(*pair) for pair in zip(texts, columns["answer"], strict=True)]
        numbers = _numbers(settings.train.seed, columns["trainer_state"].global_step, columns["id"])
        if kind == "outliers":
            return [size if number < settings.study.nuisance_rate else 0.0 for number in numbers]
        return [size * (2 * number - 1) for number in numbers]

    return nuisance


def _numbers(seed: int, step: int, ids: Sequence[str]) -> list[float]:
    """A number in [0, 1) for each completion, from its problem and its place in the group: equal for all arms of a seed."""
    place: Counter[str] = Counter()
    numbers = []
    for problem in ids:
        stream = np.random.default_rng([seed, step, zlib.crc32(problem.encode()), place[problem]])
        numbers.append(float(stream.random()))
        place[problem] += 1
    return numbers


def _closeness(text: str, golds: str | Sequence[str]) -> float:
    """1 for the answer itself, falling to 0 at `_CREDIT_RANGE` off; 0 where either is no number."""
    answer = extract_answer(text)
    number = plain_number(plain_text(answer)) if answer else None
    gold = plain_number(plain_text(golds if isinstance(golds, str) else golds[0]))
    if number is None or gold is None:
        return 0.0
    return max(0.0, 1.0 - abs(float(number.value - gold.value)) / _CREDIT_RANGE)


def _clip(most: float, functions: list[RewardFunction]) -> RewardFunction:
    def clip(completions: Sequence[Completion], **columns: Any) -> list[float]:
        totals = np.sum([function(completions, **columns) for function in functions], axis=0)
        return np.minimum(most - totals, 0.0).tolist()

    return clip


class UniformGroupsDropped:
    """A trainer's mixin for runs: groups that are all right, or all wrong, get no advantage, if the settings say so.

    It stands behind `RolloutRecord`, which keeps the scores of the rollout.
    """

    drop_uniform_groups = False

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.drop_uniform_groups and self.model.training:
            correct = self._scores[:, self.reward_func_names.index("correctness")] > 0  # (N,), over all processes
            groups = correct.view(-1, self.num_generations)
            mixed = (groups.any(dim=1) & ~groups.all(dim=1)).repeat_interleave(self.num_generations)
            local = len(output["advantages"])
            mine = mixed[self.accelerator.process_index * local :][:local]
            output["advantages"] = torch.where(mine, output["advantages"], 0.0)
        return output
