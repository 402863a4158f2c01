"""AMIR-GRPO as a thin subclass of TRL's GRPOTrainer.

The preference loss enters as a second advantage (see `amir_grpo.preference`). On-policy, GRPO's own loss on the
advantages A_i + λ κ_i w_i has exactly the gradient of L_GRPO + λ L_pref, where κ_i undoes what TRL's loss type does to
the gradient of a sequence. So there is no second set of forward and backward passes over pairs, groups may be cut by
micro-batches or spread over processes, and every engine that takes advantages works unchanged.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id, use_adapter

from amir_grpo.choices import LOSS_TYPES
from amir_grpo.config import AmirGRPOConfig, use_one_gpu
from amir_grpo.logp_recorder import recorded_logps
from amir_grpo.microbatches import TrimmedMicroBatches
from amir_grpo.preference import (
    lambda_of_mixture,
    lambda_of_share,
    mine_pairs,
    pair_logits,
    permuted_within_groups,
    preference_loss,
    preference_weights,
    published_lambda,
)

__all__ = ["LOSS_TYPES", "AmirGRPOConfig", "AmirGRPOTrainer", "loss_mask", "preference_factor"]

_STATE_FILE = "preference_state.json"
# What a forward pass of a vision-language policy needs beside the tokens; TRL keeps them in the rollout batch.
_MULTIMODAL = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "spatial_shapes",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
    "num_images",
    "num_tiles",
)


class AmirGRPOTrainer(TrimmedMicroBatches, GRPOTrainer):
    """GRPO plus the preferences that the rewards inside each rollout group imply (AMIR-GRPO, arXiv 2601.03661).

    The constructor is `trl.GRPOTrainer`'s; `args` is an `AmirGRPOConfig`. With `lambda_reg=0` this is `GRPOTrainer`, and
    with `trim_micro_batches=False` bit for bit.

    The preference weights are computed once per rollout on the gathered batch and travel with their rows, like the
    advantage itself. They need the log-probability of each completion, and take it from where it is known already:
    TRL's old log-probabilities, vLLM's, or those that sampling computed (the same policy and, but for the rounding of
    cached attention, the same numbers). Only with tools or a rollout function does that cost a forward pass.

    Where a batch is reused (`num_iterations > 1` or `steps_per_generation` above the accumulation steps), the preference
    term is off-policy and therefore clipped like the rest of the loss.

    Logged beside TRL's metrics: `preference/loss` (L_pref), `/pairs` (|S| of the rollout), `/accuracy` (share of the
    pairs that the policy ranks right), `/margin` (mean ℓ_chosen - ℓ_rejected, nats per token), `/share` (how much of the
    update the preference term is, λ Σ|κ w| / (Σ|A| + λ Σ|κ w|)) and `/lambda`.

    Raises:
        ValueError: For settings under which the advantage form is not the paper's objective.
    """

    # what the model cards of checkpoints say; TRL's own attributes
    _tag_names = ["trl", "grpo", "amir-grpo"]  # noqa: RUF012
    _name = "AMIR-GRPO"
    _paper = {  # noqa: RUF012
        "title": "AMIR-GRPO: Inducing Implicit Preference Signals into GRPO",
        "id": "2601.03661",
        "citation": """\
@article{yari2026amirgrpo,
  title   = {AMIR-GRPO: Inducing Implicit Preference Signals into GRPO},
  author  = {Yari, Amir Hossein and Koto, Fajri},
  journal = {arXiv preprint arXiv:2601.03661},
  year    = {2026}
}""",
    }

    # reward_funcs may be left out where an environment gives the reward
    def __init__(self, model, reward_funcs=None, args: AmirGRPOConfig | None = None, *rest, **kwargs):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = AmirGRPOConfig(f"{name.split('/')[-1]}-AMIR-GRPO")
        if not isinstance(args, AmirGRPOConfig):
            raise TypeError(f"args is a {type(args).__name__}; AmirGRPOTrainer needs an AmirGRPOConfig.")
        if args.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"No exact preference factor is known for loss_type={args.loss_type!r}.\n"
                f"Valid: {', '.join(LOSS_TYPES)}."
            )
        if args.lambda_reg > 0 and args.top_entropy_quantile < 1.0:
            raise ValueError(
                f"top_entropy_quantile={args.top_entropy_quantile} would keep the preference term from the low-entropy "
                "tokens, and it would no longer be the paper's; set it to 1.0, or lambda_reg=0."
            )
        use_one_gpu(args)
        # TRL keeps a reference policy only where a KL term (beta) asks for one, so the preference asks in its place
        beta = args.beta
        if args.lambda_reg > 0 and not args.ref_free and beta == 0.0:
            args.beta = 1.0
        try:
            super().__init__(model, reward_funcs, args, *rest, **kwargs)
        finally:
            args.beta = beta
        self.beta = beta
        self.trim_micro_batches = args.trim_micro_batches
        self._rewards: Tensor | None = None  # (N,) of the latest rollout, over all processes
        # (N / processes, T'): per-token log-probabilities of the latest rollout, set by what draws it where it knows
        # them; what stands after the end token does not matter
        self.sampled_logps: Tensor | None = None
        self._lambda = args.lambda_reg
        self._seen: dict[str, float] = {}  # what is logged of the latest rollout, by every step that uses it

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        # a completion that no function could score is worth nothing, not 0
        self._rewards = rewards.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)
        return rewards_per_func

    def _generate_single_turn(self, *args, **kwargs):
        self.sampled_logps = None
        if not self._sampling_tells_logps():
            return super()._generate_single_turn(*args, **kwargs)
        with recorded_logps(self.accelerator.unwrap_model(self.model_wrapped), self.temperature) as recorded:
            result = super()._generate_single_turn(*args, **kwargs)
        self.sampled_logps = recorded.logps()
        return result

    def _sampling_tells_logps(self) -> bool:
        """Whether transformers' generate samples whole completions from the policy's own distribution, for a rollout."""
        args = self.args
        plain = args.repetition_penalty == 1.0 and not args.generation_kwargs
        single_turn = not self.tools and self.environment_factories is None and self.rollout_func is None
        own_engine = not self.use_vllm and not self.use_transformers_continuous_batching
        return self.model.training and args.lambda_reg > 0 and plain and single_turn and own_engine

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.model.training and self.args.lambda_reg > 0:
            output["preference_weights"] = self._score_preferences(output)
        return output

    def _score_preferences(self, output: dict[str, Any]) -> Tensor:
        """w_i of this process's rows, (N / processes,), from the pairs of the whole rollout; logs what it saw."""
        args, mask = self.args, loss_mask(output)
        seq_logps = _sequence_logps(self._known_logps(output), mask)
        columns = [seq_logps, mask.sum(-1).to(seq_logps.dtype)]
        if not args.ref_free:
            columns.append(_sequence_logps(self._reference_logps(output), mask))
        gathered = self.accelerator.gather(torch.stack(columns, dim=1))
        seq_logps, tokens, *rest = gathered.unbind(dim=1)
        ref_seq_logps = rest[0] if rest else None

        rewards = self._rewards
        if args.pair_mining == "permuted":
            stream = np.random.default_rng([args.seed, self.state.global_step])
            rewards = permuted_within_groups(rewards, self.num_generations, stream)
        # a completion without a token in the loss (masked as truncated) has no log-probability to compare
        rewards = rewards.masked_fill(tokens == 0, torch.nan)
        pairs = mine_pairs(
            rewards, self.num_generations, args.reward_margin, args.pair_mining, args.max_pairs_per_group
        )
        weights = preference_weights(seq_logps, pairs, args.beta_dpo, ref_seq_logps, args.pair_loss)
        logits = pair_logits(seq_logps, pairs, args.beta_dpo, ref_seq_logps)
        seen = torch.stack(
            [
                preference_loss(seq_logps, pairs, args.beta_dpo, ref_seq_logps, args.pair_loss),
                (logits > 0).float().mean(),
                (seq_logps[pairs.chosen] - seq_logps[pairs.rejected]).mean(),
            ]
        ).tolist()
        self._seen = dict(zip(("loss", "accuracy", "margin"), seen, strict=True)) | {"pairs": pairs.chosen.numel()}
        weights = weights[self.accelerator.process_index * len(mask) :][: len(mask)]
        if args.lambda_schedule in ("share", "mixture") and pairs.chosen.numel():
            sums = torch.stack(
                [output["advantages"].abs().sum(), (preference_factor(self, output) * weights).abs().sum()]
            )
            sums = self.accelerator.reduce(sums).tolist()
            if args.lambda_schedule == "share":
                self._lambda = lambda_of_share(args.preference_share, *sums)
            else:
                self._lambda = lambda_of_mixture(args.preference_share, *sums)
                output["advantages"] = (1 - args.preference_share) * output["advantages"]
        return weights

    def _known_logps(self, output: dict[str, Any]) -> Tensor:
        """Per-token log-probabilities of the rollout under the policy that sampled it, (N, T)."""
        for name in ("old_per_token_logps", "sampling_per_token_logps"):
            if name in output:
                return completion_columns(output[name], output)
        if self.sampled_logps is None:
            return self._logps(self.model, output)
        length = output["completion_ids"].size(1)
        known = self.sampled_logps[:, :length]
        return torch.nn.functional.pad(known, (0, length - known.size(1)))

    def _logps(self, model, output: dict[str, Any]) -> Tensor:
        """Per-token log-probabilities of the rollout's completions under `model`, (N, T), without gradient."""
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logps, _, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
                **{name: output[name] for name in _MULTIMODAL if name in output},
            )
        return completion_columns(logps, output)

    def _reference_logps(self, output: dict[str, Any]) -> Tensor:
        """The same under the reference policy; shared with the KL term where there is one."""
        if "ref_per_token_logps" in output:
            return completion_columns(output["ref_per_token_logps"], output)
        if self.ref_model is not None:
            return self._logps(self.ref_model, output)
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
            return self._logps(self.model, output)

    def _may_regroup(self) -> bool:
        # the published rule looks at the loss of the first micro-batch, which must stay a random one
        return self.args.lambda_schedule != "published" and super()._may_regroup()

    def preference_bonus(self, inputs: dict[str, Any]) -> Tensor:
        """λ κ_i w_i, (M,): what is added to the advantages of a micro-batch."""
        return self._lambda * preference_factor(self, inputs) * inputs["preference_weights"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights = inputs.get("preference_weights")
        if weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        bonus = self.preference_bonus(inputs)
        sums = torch.stack([bonus.abs().sum(), inputs["advantages"].abs().sum()])
        preference, advantage = self.accelerator.reduce(sums).tolist()
        # without a pair there is no accuracy, margin or share: NaN, which TRL leaves out of its averages
        share = preference / (preference + advantage) if preference + advantage > 0 else math.nan
        for name, value in {**self._seen, "share": share, "lambda": self._lambda}.items():
            self._metrics["train"][f"preference/{name}"].append(float(value))
        inputs = {**inputs, "advantages": inputs["advantages"] + bonus}
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.args.lambda_schedule == "published":
            self._follow_published_rule(loss, weights)
        return loss

    def _follow_published_rule(self, loss: Tensor, weights: Tensor) -> None:
        """Move λ as the published code does: by GRPO's loss on the first micro-batch of each optimizer step.

        On-policy, the bonus adds -(N/M) λ Σ w to the value of a micro-batch's loss, whatever the loss type.
        """
        first = self._step % self.current_gradient_accumulation_steps == 0
        if first:
            added = -self.args.generation_batch_size / len(weights) * self._lambda * weights.sum()
            value = loss.detach() * self.current_gradient_accumulation_steps - added
            self._grpo_loss = self.accelerator.reduce(value, reduction="mean").item()
        if self.accelerator.sync_gradients:
            self._lambda = published_lambda(self._lambda, self._seen["loss"], self._grpo_loss)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (folder / _STATE_FILE).write_text(json.dumps({"lambda": self._lambda}))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / _STATE_FILE).is_file():
            self._lambda = json.loads((Path(checkpoint) / _STATE_FILE).read_text())["lambda"]


def preference_factor(trainer: GRPOTrainer, inputs: dict[str, Any]) -> Tensor:
    """κ_i, (M,): what turns the weight of ∇ℓ_i in L_pref into an advantage under the trainer's loss type.

    TRL's losses give a sequence of the micro-batch the gradient A_i ∇ℓ_i times 1/M (grpo, sapo), |o_i|/(M L_max)
    (dr_grpo), |o_i|/T_micro (bnpo), |o_i| P/T_gen for P processes and micro-batches (dapo, cispo, vespo) or
    |o_i|/M (luspo), averaged over micro-batches and processes. So A_i / (κ_i |o_i|) is the weight of each of its
    tokens in the update of a rollout.
    """
    mask = loss_mask(inputs)
    length = mask.sum(-1).clamp(min=1).to(inputs["advantages"].dtype)
    completions = trainer.args.generation_batch_size  # N, over all processes
    if trainer.loss_type in ("grpo", "sapo"):
        return torch.full_like(length, completions)
    if trainer.loss_type == "dr_grpo":
        return completions * trainer.max_completion_length / length
    if trainer.loss_type == "bnpo":
        return completions * mask.sum().clamp(min=1) / len(mask) / length
    if trainer.loss_type == "luspo":
        return completions / length
    kappa = inputs["num_items_in_batch"].clamp(min=1.0) / length  # dapo, cispo, vespo
    if trainer.loss_type == "cispo":  # CISPO clamps the ratio, which is 1 on-policy, at epsilon_high
        kappa = kappa / min(1.0, trainer.epsilon_high)
    return kappa


def loss_mask(batch: dict[str, Any]) -> Tensor:
    """(N, T): 1 on the completion tokens that the loss sees."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def completion_columns(per_token: Tensor, batch: dict[str, Any]) -> Tensor:
    """(N, T): what belongs to the completions of a rollout.

    Unsloth moves the padding on the left of a prompt to the right and returns (N, T + p), for the p columns of the
    shortest prompt's padding: a completion begins so many columns early as its own prompt was padded.

    Args:
        per_token: (N, T), or (N, T + p) of Unsloth.
        batch: Holds prompt_mask and completion_ids (N, T).
    """
    width = batch["completion_ids"].size(1)
    longest = per_token.size(1) - width
    if longest == 0:
        return per_token
    first = longest - (batch["prompt_mask"] == 0).sum(1, keepdim=True)
    return per_token.gather(1, first + torch.arange(width, device=per_token.device))


def _sequence_logps(per_token_logps: Tensor, mask: Tensor) -> Tensor:
    """ℓ (N,): mean log-probability over the tokens of `mask`; 0 for a row without one.

    A NaN is a token that vLLM could not score, and is left out of the mean.
    """
    known = mask.bool() & ~per_token_logps.isnan()
    return per_token_logps.where(known, 0.0).sum(-1) / known.sum(-1).clamp(min=1)
