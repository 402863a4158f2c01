"""How far the gradient of a run's trainer is from that of L_GRPO + λ L_pref, by automatic differentiation of the two losses.

One rollout of whole groups is one micro-batch. The trainer's gradient is taken with its preference weights and without them
(GRPO's own); L_pref is written out over the pairs, on a forward pass of its own. The tests do the same with the trainers of
the suite, on a CPU in float32. Here it is whatever trains: Unsloth's trainer on its kernels, in 16 bits as in float32.
`benchmarks/gpu.py` runs it.

Unsloth packs rows into one sequence, and checks by itself that the policy keeps them apart; random weights, to which all
tokens are about as likely, pass that check in any case. Where a gradient is far off, UNSLOTH_GRPO_SEQ_PACKING=0 with
UNSLOTH_GRPO_PREFIX_GROUPER=0 tells whether that is why.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl import GRPOTrainer

from amir_grpo.policies import loading
from amir_grpo.policies.backend import Backend
from amir_grpo.runs import training
from amir_grpo.settings import RunSettings, replace

LAMBDA = 1.0  # a strong preference term, so that a wrong factor shows


def gradient_row(
    settings: RunSettings, base: Path, backend: Backend, problems: Dataset, dtype: torch.dtype
) -> dict[str, Any]:
    """The distances of the trainer's gradient and of GRPO's alone from the explicit one, as shares of that one's norm.

    Args:
        settings: Of the run; its rollout is cut down to one micro-batch, and its policy is not in 4 bits.
        base: Folder of the policy.
        backend: What trains; it has been started.
        problems: As of a training.
        dtype: What the policy is in and computes in.
    """
    one = {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "max_steps": 1, "lambda_reg": LAMBDA}
    settings = replace(settings, **one, load_in_4bit=False, optim="adamw_torch")
    with _computing_in(dtype), tempfile.TemporaryDirectory() as out:
        config = training.trainer_config("amir_grpo", settings, Path(out), backend.name)
        trainer = training.run_trainer(settings, config, str(base), problems, backend)
        found = _watch(trainer, scales=backend.name == "unsloth")
        trainer.train()
    whole, wanted = found["whole"], found["grpo"] + LAMBDA * found["preference"]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "pairs": found["pairs"],
        "off": _off(whole, wanted),
        "off_without_preference": _off(found["grpo"], wanted),
    }


@contextmanager
def _computing_in(dtype: torch.dtype) -> Iterator[None]:
    """While the block runs, policies are loaded and trained in a dtype that may not be the device's usual one."""
    mixed = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    with (
        patch.dict(os.environ, {"ACCELERATE_MIXED_PRECISION": mixed}),  # which Unsloth reads
        patch.object(loading, "compute_dtype", lambda *_: dtype),
        patch.object(training, "compute_dtype", lambda *_: dtype),
    ):
        yield


def _watch(trainer: GRPOTrainer, scales: bool) -> dict[str, Any]:
    """Let a trainer put the gradients of its first micro-batch into what is returned: whole, grpo, preference; and pairs.

    Args:
        trainer: In float16 it has a loss scaler, and all gradients are taken as scaled: else they would underflow.
        scales: Whether its loss has the scaler's factor in its gradient already, as Unsloth's has.
    """
    found: dict[str, Any] = {}
    scaler = getattr(trainer.accelerator, "scaler", None)
    scale = scaler.get_scale() if scaler else 1.0
    missing = 1.0 if scales else scale
    score, reward, loss = trainer._generate_and_score_completions, trainer._calculate_rewards, trainer.compute_loss

    def rewarding(*arguments: Any) -> Tensor:
        found["rewards"] = reward(*arguments)
        return found["rewards"]

    def scoring(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        found["rollout"] = score(inputs)  # in the order of the rewards; TRL shuffles the rows later
        return found["rollout"]

    def comparing(model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **options: Any) -> Tensor:
        if "whole" not in found:
            plain = {name: value for name, value in inputs.items() if name != "preference_weights"}
            preference, found["pairs"] = _preference_loss(trainer, model, found["rollout"], found["rewards"])
            found["preference"] = _gradient(model, scale * preference)
            found["grpo"] = _gradient(model, missing * loss(model, plain, *rest, **options))
            found["whole"] = _gradient(model, missing * loss(model, inputs, *rest, **options))
        # all is known: the step changes nothing
        return 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)

    trainer._calculate_rewards, trainer._generate_and_score_completions = rewarding, scoring
    trainer.compute_loss = comparing
    return found


def _preference_loss(
    trainer: GRPOTrainer, model: torch.nn.Module, rollout: dict[str, Any], rewards: Tensor
) -> tuple[Tensor, int]:
    """L_pref of the rollout's pairs, and their number."""
    args, mask = trainer.args, rollout["completion_mask"]
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    seen = torch.cat([rollout["prompt_mask"], mask], dim=1)
    with patch.dict(
        os.environ, {"UNSLOTH_RETURN_HIDDEN_STATES": "0"}
    ):  # else Unsloth's policies return those as logits
        logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    width = mask.size(1)
    logits = logits[:, -width - 1 : -1].float() / trainer.temperature
    tokens = logits.log_softmax(-1).gather(2, rollout["completion_ids"][..., None])[..., 0]
    means = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)
    of_all = (rewards * trainer.reward_weights.to(rewards.device)).nansum(dim=1)
    terms = [
        -logsigmoid(args.beta_dpo * (means[i] - means[j]))
        for start in range(0, len(means), args.num_generations)
        for i, j in itertools.permutations(range(start, start + args.num_generations), 2)
        if of_all[i] - of_all[j] > args.reward_margin
    ]
    if not terms:
        raise ValueError("The rollout has no pair to compare with: give settings with a smaller reward_margin.")
    return torch.stack(terms).mean(), len(terms)


def _gradient(model: torch.nn.Module, loss: Tensor) -> Tensor:
    """The gradient of the trained weights, as one vector in float32; none is left behind."""
    trained = [p for p in model.parameters() if p.requires_grad]
    loss.backward()  # Unsloth's checkpointing cannot be asked for the gradients alone
    vector = torch.cat([p.grad.float().flatten() for p in trained])
    for parameter in trained:
        parameter.grad = None
    return vector


def _off(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()
