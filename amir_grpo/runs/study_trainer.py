"""The trainer of all runs: AMIR-GRPO, or GRPO if λ is 0, with the variants of the study and the records of a run.

- Rollouts are drawn by the package's own engine, with one random stream per completion. Every completion that the loss
  has used is recorded with its weight in the update.
- Variants: a λ that keeps a share of the update or follows the published code, the linear pair loss, pairs of permuted
  rewards, and no advantage for uniform groups.
- Reward regimes. A nuisance is a part of the reward that says nothing about correctness, such as a noisy reward model
  or a large reward for style would add. It is a separate reward function, so that TRL logs it in its own column
  (`rewards/nuisance/mean`).
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.models.utils import unwrap_model_for_generation

from amir_grpo.answers import extract_answer, plain_number, plain_text
from amir_grpo.family import FAMILY, family_weights
from amir_grpo.policies.engines import Request, TransformersEngine, stream
from amir_grpo.policies.float64 import device_for_float64
from amir_grpo.policies.loading import is_sharded
from amir_grpo.preference import STRATEGIES, Pairs, mine_pairs, net_pull, pair_logits
from amir_grpo.rewards import Completion, RewardFunction, completion_texts, strict_format
from amir_grpo.system.files import atomic_write, write_checksums
from amir_grpo.trainer import AmirGRPOConfig, AmirGRPOTrainer, loss_mask, preference_factor

ROLLOUTS_FILE = "rollouts.parquet"
WATCHED_FILE = "watched.parquet"
_COLUMNS = ("step", "group", "tokens", "reward", "correct", "advantage", "bonus", "token_weight")
_STATE_FILE = "preference_state.json"
_CREDIT_RANGE = 10  # how far off an answer may be to earn partial credit


@dataclass
class StudyConfig(AmirGRPOConfig):
    """Configuration of `StudyTrainer`; `amir_grpo.settings` explains and checks its settings."""

    max_prompt_length: int = 1024
    own_engine: bool = True  # False: TRL draws
    pair_loss: str = "logistic"
    lambda_schedule: str = "constant"
    preference_share: float = 0.3
    nuisance: str = "none"
    nuisance_size: float = 0.45
    nuisance_rate: float = 1 / 16
    reward_clip: float | None = None
    reward_terms: str = "all"
    drop_uniform_groups: bool = False

    # "permuted" is a negative control: all pairs, from rewards permuted within the group
    _pair_minings: ClassVar[tuple[str, ...]] = (*STRATEGIES, "permuted")


class StudyTrainer(AmirGRPOTrainer):
    """Trainer of a run; `reward_funcs` is a list of functions, one of them named "correctness".

    `rollouts()` has one row per completion that the loss has used: step (of the optimizer), group (a number, unique
    in the run, for the completions drawn together from one prompt), tokens (that the loss sees), reward, correct (1 or
    0), advantage (A_i), bonus (λ κ_i w_i, 0 for GRPO) and token_weight, the factor of the gradient of each token's
    log-probability in the update: (A_i + λ κ_i w_i) / (κ_i |o_i|), before clipping.

    With TRL's `eval_dataset` and `eval_steps`, `watched` has one row per completion of these problems: step,
    problem_id, question, text and correct. All steps draw with the same random numbers; the training is not affected.
    """

    args: StudyConfig

    def __init__(self, model, reward_funcs: list[RewardFunction], args: StudyConfig, *rest, **kwargs):
        functions = with_regime(reward_funcs, args)
        if args.reward_terms == "correctness":
            args.reward_weights = [float(function.__name__ == "correctness") for function in functions]
        super().__init__(model, functions, args, *rest, **kwargs)
        self._correctness = self.reward_func_names.index("correctness")
        self._scores: Tensor | None = None  # (N, functions) of the latest rollout, over all processes
        self._rows: list[np.ndarray] = []
        self.watched: list[dict[str, Any]] = []
        self._rollout = (-1, 0)  # optimizer step of the latest rollout, and its number within that step

    # --- rollouts ------------------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list):
        """Tokenize prompts, cutting the beginning of those longer than `max_prompt_length`, as TRL once did."""
        prompt_ids, *rest = super()._tokenize_prompts(prompts)
        return [ids[-self.args.max_prompt_length :] for ids in prompt_ids], *rest

    def _draws(self) -> bool:
        """Return whether the package's own engine draws: unsharded, and with no options but temperature and top_p."""
        args = self.args
        plain = not args.top_k and not args.min_p and args.repetition_penalty == 1.0 and not args.generation_kwargs
        return args.own_engine and plain and not self.use_vllm and not is_sharded()

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *rest):
        """Draw with one random stream per completion, or let TRL draw.

        A stream is named by the seed, the optimizer step, the rollout within that step, the prompt's place in the
        rollout and the completion's place in its group; in an evaluation, the prompt replaces step, rollout and place.
        So neither an interruption nor the number of processes changes what is drawn, and both methods draw the same
        from the same policy. Each prompt goes through the policy once, and at temperature 1 the log-probabilities of
        the completions are known without a further forward pass.
        """
        if not self._draws():
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, *rest)
        step, before, training = self.state.global_step, self._rollout, self.model.training
        if training:
            self._rollout = (step, before[1] + 1 if before[0] == step else 0)
        first = self.accelerator.process_index * len(prompt_ids)  # of this process's rows among those of all
        requests: list[Request] = []
        for row, ids in enumerate(prompt_ids, start=first):
            place, number = divmod(row, num_generations)
            if number == 0 or row == first:
                requests.append(Request(ids, []))
            drawn_for = ("rollout", *self._rollout, place) if training else ("watched", ids)
            requests[-1].streams.append(stream(self.args.seed, *drawn_for, number))
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as policy:
            engine = TransformersEngine(policy, self._tokenizer)
            drawn = engine.generate(requests, self.temperature, self.args.top_p, self.max_completion_length)
        completions = [completion for group in drawn for completion in group]
        dtype = torch.float64 if policy.dtype == torch.float64 else torch.float32  # as in TRL
        logprobs = [torch.tensor(completion.logprobs, dtype=dtype) for completion in completions]
        padded = torch.nn.utils.rnn.pad_sequence(logprobs, batch_first=True).to(self.accelerator.device)
        self.sampled_logps = padded if self.temperature == 1.0 else None  # the engine's are at temperature 1
        return [completion.ids for completion in completions], None

    def _calculate_rewards(self, *args, **kwargs):
        """Return the rewards, in float64 if the policy computes in it, for means and deviations; pairs use float32."""
        scores = super()._calculate_rewards(*args, **kwargs)
        self._scores = scores.to(torch.promote_types(torch.float32, self.model.dtype))
        return self._scores

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            correct = self._scores[:, self._correctness] > 0  # (N,), over all processes
            first = self.accelerator.process_index * len(inputs)
            mine = slice(first, first + len(inputs))
            if self.args.drop_uniform_groups:
                groups = correct.view(-1, self.num_generations)
                mixed = (groups.any(dim=1) & ~groups.all(dim=1)).repeat_interleave(self.num_generations)
                output["advantages"] = torch.where(mixed[mine], output["advantages"], 0.0)
            output["reward"] = (self._scores * self.reward_weights.to(correct.device)).nansum(dim=1)[mine]
            output["correct"] = correct[mine]
            # number the groups by the first micro-batch that uses this rollout, counted over all steps
            accumulated = self.args.gradient_accumulation_steps
            begun = self.state.global_step * accumulated + self._step % max(1, accumulated)
            row = begun * len(correct) + first + torch.arange(len(inputs), device=correct.device)
            output["group"] = row // self.num_generations
        return output

    def prediction_step(self, model, inputs, *args, **kwargs):
        """Draw, grade and record a batch of an evaluation; its loss would cost a forward pass and say nothing."""
        completions = self._prepare_inputs(inputs)["completion_ids"]
        texts = self.processing_class.batch_decode(completions, skip_special_tokens=True)
        first = self.accelerator.process_index * len(inputs)
        correct = self._scores[first : first + len(inputs), self._correctness] > 0
        rows = [
            {
                "step": self.state.global_step,
                "problem_id": problem["id"],
                "question": problem["question"],
                "text": text,
                "correct": right,
            }
            for problem, text, right in zip(inputs, texts, correct.tolist(), strict=True)
        ]
        self.watched += gather_object(rows)
        return None, None, None

    # --- variants of the study -----------------------------------------------------------------------------------

    def _pairs(self, tokens: Tensor) -> Pairs:
        """Return the pairs of the rollout; for pair_mining "permuted", all pairs of rewards permuted within groups."""
        if self.args.pair_mining != "permuted":
            return super()._pairs(tokens)
        numbers = np.random.default_rng([self.args.seed, self.state.global_step])
        rewards = permuted_within_groups(self._rewards, self.num_generations, numbers).masked_fill(
            tokens == 0, torch.nan
        )
        return mine_pairs(rewards, self.num_generations, self.args.reward_margin, "all", self.args.max_pairs_per_group)

    def _weigh(self, seq_logps, pairs, ref_seq_logps=None):
        """Return weights and loss of the paper's or the linear pair loss, or weights of another method and NaN."""
        args = self.args
        if args.pair_loss == "linear":
            return linear_pair_loss(seq_logps, pairs, args.beta_dpo, ref_seq_logps)
        if args.pair_loss not in FAMILY:
            return super()._weigh(seq_logps, pairs, ref_seq_logps)
        scores = seq_logps if ref_seq_logps is None else seq_logps - ref_seq_logps
        groups = self._rewards.view(-1, self.num_generations)
        # a completion that nothing could score counts as average
        rewards = torch.where(groups.isnan(), groups.nanmean(dim=1, keepdim=True), groups).nan_to_num().flatten()
        weights = family_weights(
            args.pair_loss, rewards, scores, self.num_generations, args.reward_margin, 1 / args.beta_dpo
        )
        return weights, seq_logps.new_tensor(torch.nan)

    def _score_preferences(self, output: dict[str, Any]) -> Tensor:
        """Return the weights; the schedules "share" and "mixture" also set λ, and "mixture" scales the advantages."""
        weights, schedule = super()._score_preferences(output), self.args.lambda_schedule
        if schedule not in ("share", "mixture") or not self._seen["pairs"]:
            return weights
        bonus = preference_factor(self, output) * weights
        sums = torch.stack([output["advantages"].abs().sum(), bonus.abs().sum()])
        advantage_sum, weight_sum = self.accelerator.reduce(sums).tolist()
        share = self.args.preference_share
        if schedule == "share":  # λ Σ|κ w| = share (Σ|A| + λ Σ|κ w|)
            self.lambda_reg = share / (1 - share) * advantage_sum / weight_sum
        else:  # (1 - share) times the update at that share, so that it stays as large as GRPO's
            self.lambda_reg = share * advantage_sum / weight_sum
            output["advantages"] = (1 - share) * output["advantages"]
        return weights

    def _may_regroup(self) -> bool:
        # the published rule looks at the loss of the first micro-batch, which must stay a random one
        return not self._follows_published_rule() and super()._may_regroup()

    def _follows_published_rule(self) -> bool:
        return self.args.lambda_reg > 0 and self.args.lambda_schedule == "published"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "correct" in inputs and "preference_weights" not in inputs:  # GRPO
            self._record(inputs, preference_factor(self, inputs), torch.zeros_like(inputs["advantages"]))
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "preference_weights" in inputs and self._follows_published_rule():
            self._move_lambda(loss, inputs["preference_weights"])
        return loss

    def _move_lambda(self, loss: Tensor, weights: Tensor) -> None:
        """Change λ as the published code does: from GRPO's loss on the first micro-batch of each optimizer step.

        On-policy, the bonus adds -(N/M) λ Σ w to the value of a micro-batch's loss, whatever the loss type.
        """
        if self._step % self.current_gradient_accumulation_steps == 0:
            added = -self.args.generation_batch_size / len(weights) * self.lambda_reg * weights.sum()
            value = loss.detach() * self.current_gradient_accumulation_steps - added
            self._grpo_loss = self.accelerator.reduce(value, reduction="mean").item()
        if self.accelerator.sync_gradients:
            self.lambda_reg = published_lambda(self.lambda_reg, self._seen["loss"], self._grpo_loss)

    # --- records of a run ----------------------------------------------------------------------------------------

    def _with_bonus(self, inputs: dict[str, Any], factor: Tensor) -> dict[str, Any]:
        whole = super()._with_bonus(inputs, factor)
        self._record(inputs, factor, whole["bonus"])
        return whole

    def _record(self, inputs: dict[str, Any], factor: Tensor, bonus: Tensor) -> None:
        """Record the rows of a micro-batch; `factor` (M,) is κ_i, and `bonus` (M,) is λ κ_i w_i."""
        tokens, advantage = loss_mask(inputs).sum(-1), inputs["advantages"]
        weight = (advantage + bonus) / (factor * tokens.clamp(min=1))
        step = torch.full_like(advantage, self.state.global_step + 1)
        columns = (step, inputs["group"], tokens, inputs["reward"], inputs["correct"], advantage, bonus, weight)
        exact = device_for_float64(tokens.device)
        rows = torch.stack([column.to(exact).double() for column in columns], dim=1)
        self._rows.append(self.accelerator.gather(rows).cpu().numpy())

    def rollouts(self) -> pd.DataFrame:
        """Return all rows so far, in the order of use."""
        rows = np.concatenate(self._rows) if self._rows else np.empty((0, len(_COLUMNS)))
        kinds = {"step": int, "group": int, "tokens": int, "correct": int}
        return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(kinds)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes files of its own
        if self.args.should_save:
            folder = self.checkpoint_folder(trial)
            if self.args.lambda_schedule != "constant":
                (folder / _STATE_FILE).write_text(json.dumps({"lambda": self.lambda_reg}))
            self.write_records(folder)  # with them, the checkpoint counts as whole
            write_checksums(folder)

    def write_records(self, folder: Path) -> None:
        """Write the records of the training so far: rollouts, and watched completions if there are any."""
        if self.watched:
            atomic_write(folder / WATCHED_FILE, pd.DataFrame(self.watched).to_parquet)
        atomic_write(folder / ROLLOUTS_FILE, self.rollouts().to_parquet)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint) / _STATE_FILE).is_file():
            self.lambda_reg = json.loads(file.read_text())["lambda"]
        if checkpoint is not None and (file := Path(checkpoint) / ROLLOUTS_FILE).is_file():
            self._rows.append(pd.read_parquet(file).to_numpy(dtype=float))
        if checkpoint is not None and (file := Path(checkpoint) / WATCHED_FILE).is_file():
            self.watched = pd.read_parquet(file).to_dict("records")


# --- λ and pairs ------------------------------------------------------------------------------------------------


def published_lambda(lambda_reg: float, preference_loss: float, grpo_loss: float) -> float:
    """Return λ of the next step by the rule of the published code, which compares the values of the two losses.

    ratio = λ L_pref / max(1e-9, L_GRPO): below 0.3, λ ← min(0.05, 1.25 λ); above 0.7, λ ← max(0.005, 0.8 λ). On-policy
    the value of L_GRPO is about 0, since advantages add up to 0, so the ratio depends on its rounding and its sign.
    """
    ratio = lambda_reg * preference_loss / max(1e-9, grpo_loss)
    if ratio < 0.3:
        return min(0.05, 1.25 * lambda_reg)
    if ratio > 0.7:
        return max(0.005, 0.8 * lambda_reg)
    return lambda_reg


def linear_pair_loss(
    seq_logps: Tensor, pairs: Pairs, beta: float, ref_seq_logps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return weights (N,) and value of the pair loss log 2 - z/2, the tangent of -log σ(z) at z = 0.

    With length-normalised log-probabilities z is small, so the paper's loss is nearly this one. Its weights,
    β/(2|S|) (wins - losses), do not depend on the policy. Arguments as in `amir_grpo.preference.preference_weights`.
    """
    logits = pair_logits(seq_logps, pairs, beta, ref_seq_logps)
    pull = torch.full_like(logits.detach(), 0.5) * (beta / max(logits.numel(), 1))
    loss = (math.log(2.0) - logits / 2).mean() if logits.numel() else seq_logps.sum() * 0.0
    return net_pull(seq_logps.detach(), pairs, pull), loss


def permuted_within_groups(rewards: Tensor, group_size: int, generator: np.random.Generator) -> Tensor:
    """Return rewards (N,) shuffled within each group of `group_size` adjacent rows, so that their pairs are random."""
    order = [start + generator.permutation(group_size) for start in range(0, rewards.numel(), group_size)]
    return rewards[torch.from_numpy(np.concatenate(order)).to(rewards.device)]


# --- reward regimes ---------------------------------------------------------------------------------------------


def with_regime(functions: Sequence[RewardFunction], args: StudyConfig) -> list[RewardFunction]:
    """Return the reward functions, then the nuisance, if any, then, if the reward is clipped, what that takes off."""
    functions = list(functions)
    if args.nuisance != "none":
        functions.append(_nuisance(args))
    if args.reward_clip is not None:
        functions.append(_clip(args.reward_clip, list(functions)))
    return functions


def _nuisance(args: StudyConfig) -> RewardFunction:
    kind, size = args.nuisance, args.nuisance_size

    def nuisance(completions: Sequence[Completion], **columns: Any) -> list[float]:
        if kind == "format":
            return [size if reward else 0.0 for reward in strict_format(completions)]
        if kind == "partial":
            texts = completion_texts(completions)
            return [size * _closeness(*pair) for pair in zip(texts, columns["answer"], strict=True)]
        numbers = _numbers(args.seed, columns["trainer_state"].global_step, columns["id"])
        if kind == "outliers":
            return [size if number < args.nuisance_rate else 0.0 for number in numbers]
        return [size * (2 * number - 1) for number in numbers]

    return nuisance


def _numbers(seed: int, step: int, ids: Sequence[str]) -> list[float]:
    """Return a number in [0, 1) per completion, by its problem and place in the group: equal in all arms of a seed."""
    place: Counter[str] = Counter()
    numbers = []
    for problem in ids:
        generator = np.random.default_rng([seed, step, zlib.crc32(problem.encode()), place[problem]])
        numbers.append(float(generator.random()))
        place[problem] += 1
    return numbers


def _closeness(text: str, golds: str | Sequence[str]) -> float:
    """Return 1 for the right answer, falling to 0 at a distance of `_CREDIT_RANGE`; 0 if either is not a number."""
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
