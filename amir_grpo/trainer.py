"""AMIR-GRPO as a subclass of TRL's GRPOTrainer: GRPO's advantages plus one bonus per completion.

The preference loss enters as a second advantage (see `amir_grpo.preference`). On-policy, GRPO's own loss on the
advantages A_i + λ κ_i w_i has exactly the gradient of L_GRPO + λ L_pref, where κ_i undoes what TRL's loss type does to
the gradient of a sequence. So pairs need no forward and backward passes of their own, groups may be split across
micro-batches or processes, and every engine that takes advantages works unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id, use_adapter

from amir_grpo.choices import LOSS_TYPES, check_names
from amir_grpo.preference import STRATEGIES, Pairs, mine_pairs, pair_logits, preference_loss, preference_weights
from amir_grpo.settings import PreferenceTerm, RunSettings, help_of
from amir_grpo.speed import FasterSteps

__all__ = ["LOSS_TYPES", "AmirGRPOConfig", "AmirGRPOTrainer", "loss_mask", "preference_factor"]

logger = logging.get_logger(__name__)
# Inputs of a vision-language policy other than tokens; TRL keeps them in the rollout batch.
_MULTIMODAL = (
    "pixel_values image_grid_thw pixel_attention_mask spatial_shapes image_sizes token_type_ids mm_token_type_ids "
    "image_position_ids num_images num_tiles"
).split()


def _field(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _setting(name: str) -> Any:
    """Return a field with the default and the help of a run's setting."""
    return _field(PreferenceTerm.model_fields[name].default, help_of(name))


@dataclass
class AmirGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig`, with TRL's defaults also under Unsloth, plus the preference term with published defaults.

    Raises:
        ValueError: If a setting of the preference term is out of bounds, or another one would change its objective.
    """

    lambda_reg: float = _setting("lambda_reg")
    reward_margin: float = _setting("reward_margin")
    beta_dpo: float = _setting("beta_dpo")
    pair_mining: str = _field("all", "Which pairs of a group: 'all', or 'topk', the best completion against the rest.")
    max_pairs_per_group: int | None = _setting("max_pairs_per_group")
    ref_free: bool = _setting("ref_free")
    trim_micro_batches: bool = _field(
        True,
        "Sort the rows of an optimizer step by length and trim their padding: the same gradient up to rounding, "
        "for policies with relative positions (RoPE). False keeps TRL's micro-batches, bit for bit.",
    )

    _pair_minings: ClassVar[tuple[str, ...]] = STRATEGIES

    def __post_init__(self) -> None:
        super().__post_init__()
        RunSettings.of({name: getattr(self, name) for name in (*PreferenceTerm.model_fields, "loss_type")})
        check_names("pair_mining", [self.pair_mining], self._pair_minings)
        if self.lambda_reg > 0 and self.top_entropy_quantile < 1.0:
            raise ValueError(
                f"top_entropy_quantile={self.top_entropy_quantile} would keep the preference term from low-entropy tokens:\n"
                "set it to 1.0, or lambda_reg to 0."
            )


class AmirGRPOTrainer(FasterSteps, GRPOTrainer):
    """GRPO plus the preferences that the rewards inside each rollout group imply (AMIR-GRPO, arXiv 2601.03661).

    The constructor is that of `trl.GRPOTrainer`, but `args` is an `AmirGRPOConfig`. With `lambda_reg=0` this trainer
    is `GRPOTrainer`; with `trim_micro_batches=False` as well, bit for bit.

    The preference weights are computed once per rollout on the gathered batch and stay with their rows. They need the
    log-probability of each completion: TRL's old one, or the one computed while sampling. They take an extra forward
    pass only with tools, a rollout function, or settings of `generate` that change what tokens are drawn from (a
    penalty, suppressed tokens, beams). If a batch is reused, the preference term is clipped like the rest of the loss.

    A resumed training ends like an uninterrupted one: later epochs are shuffled in the same way, and a partly used
    rollout is kept with the checkpoint. TRL's trainer does neither.

    Logged with TRL's metrics: `preference/loss` (L_pref), `/pairs` (|S| of the rollout), `/accuracy` (share of pairs
    that the policy ranks right), `/margin` (mean ℓ_chosen - ℓ_rejected, nats per token), `/share` (share of the
    preference term in the update, λ Σ|κ w| / (Σ|A| + λ Σ|κ w|)) and `/lambda`.

    Raises:
        TypeError: If `args` is not an `AmirGRPOConfig`.
    """

    # TRL's attributes for model cards
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

    # reward_funcs may be left out if an environment gives the reward
    def __init__(self, model, reward_funcs=None, args: AmirGRPOConfig | None = None, *rest, **kwargs):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = AmirGRPOConfig(f"{name.split('/')[-1]}-AMIR-GRPO")
        if not isinstance(args, AmirGRPOConfig):
            raise TypeError(f"args is a {type(args).__name__}; AmirGRPOTrainer needs an AmirGRPOConfig.")
        use_one_gpu(args)
        # TRL keeps a reference policy only for a KL term (beta), so set beta if only the preference needs one
        beta = args.beta
        if args.lambda_reg > 0 and not args.ref_free and beta == 0.0:
            args.beta = 1.0
        try:
            super().__init__(model, reward_funcs, args, *rest, **kwargs)
        finally:
            args.beta = beta
        for function in self.reward_funcs:
            if check := getattr(function, "check_dataset", None):  # all rows, before the first step
                check(self.train_dataset)
        self.beta = beta
        self.lambda_reg = args.lambda_reg  # λ of the next step
        self.trim_micro_batches = args.trim_micro_batches
        self.record_logps = args.lambda_reg > 0
        self._rewards: Tensor | None = None  # (N,) of the latest rollout, over all processes
        self._sums = torch.zeros(2, dtype=torch.float64)  # |λ κ w| and |A| of the update's micro-batches so far
        self._seen: dict[str, float] = {}  # metrics of the latest rollout, logged by every step that uses it
        self._sampler = None  # of the training set, if it can be indexed
        self.add_callback(_OrderOfEpochs(self))

    # --- from the rewards of a rollout to a weight per completion ---------------------------------------------------

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        # a completion that no function could score has no reward, not a reward of 0
        self._rewards = rewards.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.model.training and self.args.lambda_reg > 0:
            output["preference_weights"] = self._score_preferences(output)
        return output

    def _score_preferences(self, output: dict[str, Any]) -> Tensor:
        """Return w_i of this process's rows, (N / processes,), from pairs of the whole rollout; keep its metrics."""
        mask = loss_mask(output)
        seq_logps = sequence_logps(self._known_logps(output), mask)
        columns = [seq_logps, mask.sum(-1).to(seq_logps.dtype)]
        if not self.args.ref_free:
            columns.append(sequence_logps(self._reference_logps(output), mask))
        gathered = self.accelerator.gather(torch.stack(columns, dim=1))
        seq_logps, tokens, *reference = gathered.unbind(dim=1)
        pairs = self._pairs(tokens)
        weights, loss = self._weigh(seq_logps, pairs, *reference)
        logits = pair_logits(seq_logps, pairs, self.args.beta_dpo, *reference)
        margin = (seq_logps[pairs.chosen] - seq_logps[pairs.rejected]).mean()
        seen = torch.stack([loss, (logits > 0).float().mean(), margin]).tolist()
        self._seen = dict(zip(("loss", "accuracy", "margin"), seen, strict=True)) | {"pairs": pairs.chosen.numel()}
        return weights[self.accelerator.process_index * len(mask) :][: len(mask)]

    def _pairs(self, tokens: Tensor) -> Pairs:
        """Return the pairs of the rollout; a completion with 0 `tokens` (N,) in the loss forms none."""
        rewards, args = self._rewards.masked_fill(tokens == 0, torch.nan), self.args
        return mine_pairs(
            rewards, self.num_generations, args.reward_margin, args.pair_mining, args.max_pairs_per_group
        )

    def _weigh(self, seq_logps: Tensor, pairs: Pairs, ref_seq_logps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the weights w, (N,), and L_pref of the rollout."""
        of = seq_logps, pairs, self.args.beta_dpo, ref_seq_logps
        return preference_weights(*of), preference_loss(*of)

    def _known_logps(self, output: dict[str, Any]) -> Tensor:
        """Return per-token log-probabilities of the rollout under the policy that drew it, (N, T)."""
        if "old_per_token_logps" in output:
            return completion_columns(output["old_per_token_logps"], output)
        if self.sampled_logps is None:
            return self._logps(self.model, output)
        length = output["completion_ids"].size(1)
        return torch.nn.functional.pad(self.sampled_logps, (0, length - self.sampled_logps.size(1)))  # or truncate

    def _logps(self, model, output: dict[str, Any]) -> Tensor:
        """Return per-token log-probabilities of the rollout's completions under `model`, (N, T), without gradient."""
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
        """Return the same under the reference policy, from the KL term if it has them."""
        if "ref_per_token_logps" in output:
            return completion_columns(output["ref_per_token_logps"], output)
        if self.ref_model is not None:
            return self._logps(self.ref_model, output)
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
            return self._logps(self.model, output)

    # --- from the weights into the loss -----------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "preference_weights" in inputs:
            inputs = self._with_bonus(inputs, preference_factor(self, inputs))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _with_bonus(self, inputs: dict[str, Any], factor: Tensor) -> dict[str, Any]:
        """Return a micro-batch of M rows with the bonus λ κ_i w_i, (M,), in its advantages; `factor` is κ_i, (M,)."""
        bonus = self.lambda_reg * factor * inputs["preference_weights"]
        sums = torch.stack([bonus.abs().sum(), inputs["advantages"].abs().sum()])
        self._sums += self.accelerator.reduce(sums).cpu().double()  # Apple's GPU has no float64
        # accuracy and margin are NaN without a pair, and share without an update; TRL's averages leave NaN out
        seen = {**self._seen, "lambda": self.lambda_reg}
        if self.accelerator.sync_gradients:  # the last micro-batch of the update
            preference, whole = self._sums[0].item(), self._sums.sum().item()
            seen["share"] = preference / whole if whole > 0 else math.nan
            self._sums.zero_()
        for name, value in seen.items():
            self._metrics["train"][f"preference/{name}"].append(float(value))
        return {**inputs, "advantages": inputs["advantages"] + bonus, "bonus": bonus}

    # --- resumption -------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset=None):
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _save_checkpoint(self, model, trial):
        file = self.checkpoint_folder(trial) / self._rollout_file()
        file.unlink(missing_ok=True)  # of an earlier training in the same folder
        if self._step % (self.args.steps_per_generation * self.num_iterations):  # the rollout will be used again
            file.parent.mkdir(parents=True, exist_ok=True)
            rollout = {"step": self._step, "inputs": self._buffered_inputs, "seen": self._seen}
            torch.save(rollout, file)  # before trainer_state.json, which completes a checkpoint
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint) / self._rollout_file()).is_file():
            rollout = torch.load(file, map_location=self.accelerator.device, weights_only=True)
            if len(rollout["inputs"]) == self.args.steps_per_generation:
                self._step, self._buffered_inputs, self._seen = rollout["step"], rollout["inputs"], rollout["seen"]

    def _rollout_file(self) -> str:
        """Return the file name of this process's part of a rollout; another number of processes ignores the file."""
        return f"rollout_{self.accelerator.process_index}_of_{self.accelerator.num_processes}.pt"

    def checkpoint_folder(self, trial) -> Path:
        """Return the checkpoint folder of this step."""
        return Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"


class _OrderOfEpochs(TrainerCallback):
    """A callback that shuffles each epoch as in an uninterrupted training, even after a resumption.

    TRL draws the orders of all epochs from one stream, which restarts whenever a training is resumed.
    """

    def __init__(self, trainer: AmirGRPOTrainer) -> None:
        self.trainer = trainer
        self.epoch: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.epoch = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch = int(state.epoch or 0) if self.epoch is None else self.epoch + 1
        sampler = self.trainer._sampler
        if sampler is not None and getattr(sampler, "shuffle", False) and sampler.seed is not None:
            sampler.generator.manual_seed(sampler.seed)
            for _ in range(self.epoch):
                torch.randperm(sampler.num_samples, generator=sampler.generator)


def use_one_gpu(args: TrainingArguments) -> None:
    """Limit a process to one GPU: nn.DataParallel would make batches larger than configured, and κ wrong."""
    if args.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible; this process trains on the first. To train on all: accelerate launch.", args.n_gpu
        )
        args._n_gpu = 1


def preference_factor(trainer: GRPOTrainer, inputs: dict[str, Any]) -> Tensor:
    """Return κ_i, (M,), which turns the weight of ∇ℓ_i in L_pref into an advantage under the trainer's loss type.

    TRL's losses give a sequence of the micro-batch the gradient A_i ∇ℓ_i times 1/M (grpo, sapo), |o_i|/(M L_max)
    (dr_grpo), |o_i|/T_micro (bnpo), |o_i| P/T_gen for P processes and micro-batches (dapo, cispo, vespo) or
    |o_i|/M (luspo), averaged over micro-batches and processes. So A_i / (κ_i |o_i|) is the weight of each of its
    tokens in the update of a rollout.
    """
    mask = loss_mask(inputs)
    length = mask.sum(-1).clamp(min=1).to(inputs["advantages"].dtype)
    completions = trainer.args.generation_batch_size  # N, over all processes
    match trainer.loss_type:
        case "grpo" | "sapo":
            return torch.full_like(length, completions)
        case "dr_grpo":
            return completions * trainer.max_completion_length / length
        case "bnpo":
            return completions * mask.sum().clamp(min=1) / len(mask) / length
        case "luspo":
            return completions / length
        case "dapo" | "vespo":
            return inputs["num_items_in_batch"].clamp(min=1.0) / length
        case "cispo":  # clamps the ratio, which is 1 on-policy, at epsilon_high
            return inputs["num_items_in_batch"].clamp(min=1.0) / length / min(1.0, trainer.epsilon_high)
        case other:
            raise ValueError(f"No preference factor is known for loss_type={other!r}.")


def loss_mask(batch: dict[str, Any]) -> Tensor:
    """Return (N, T): 1 on the completion tokens that the loss sees."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def completion_columns(per_token: Tensor, batch: dict[str, Any]) -> Tensor:
    """Return the columns of the completions, (N, T), of values (N, T), or (N, T + p) from Unsloth.

    Unsloth moves the padding of prompts from left to right, and p is the padding of the shortest prompt: a completion
    begins as many columns early as its own prompt was padded.
    """
    width = batch["completion_ids"].size(1)
    longest = per_token.size(1) - width
    if longest == 0:
        return per_token
    first = longest - (batch["prompt_mask"] == 0).sum(1, keepdim=True)
    return per_token.gather(1, first + torch.arange(width, device=per_token.device))


def sequence_logps(per_token_logps: Tensor, mask: Tensor) -> Tensor:
    """Return ℓ (N,): the mean log-probability over the tokens of `mask`; 0 for a row without any."""
    return per_token_logps.where(mask.bool(), 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
