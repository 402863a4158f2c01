"""What a training keeps of its rollouts: one row per completion, with what the update made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from amir_grpo.system.files import atomic_write, write_checksums
from amir_grpo.trainer import loss_mask, preference_factor


class RolloutRecord:
    """A trainer's mixin that keeps one row per completion used by the loss: its reward, and what the update made of it.

    Columns: step (of the optimizer), group (a number of its own in the run for the completions drawn together from one
    prompt), tokens (that the loss sees), reward, correct (1 or 0), advantage (A_i), bonus (λ κ_i w_i, 0 for GRPO) and
    token_weight, what stands before the gradient of each token's log-probability in the update:
    (A_i + λ κ_i w_i) / (κ_i |o_i|), before clipping.
    """

    COLUMNS = ("step", "group", "tokens", "reward", "correct", "advantage", "bonus", "token_weight")
    FILE = "rollouts.parquet"

    def rollouts(self) -> pd.DataFrame:
        """All rows so far, in the order of use."""
        rows = np.concatenate(self._rows()) if self._rows() else np.empty((0, len(self.COLUMNS)))
        kinds = {"step": int, "group": int, "tokens": int, "correct": int}
        return pd.DataFrame(rows, columns=list(self.COLUMNS)).astype(kinds)

    def _rows(self) -> list[np.ndarray]:
        self.__dict__.setdefault("_recorded_rows", [])
        return self._recorded_rows

    def _calculate_rewards(self, *args, **kwargs):
        self._scores = super()._calculate_rewards(*args, **kwargs)  # (N, functions), over all processes
        return self._scores

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            local = len(output["advantages"])
            first = self.accelerator.process_index * local
            scores = self._scores[first:][:local]
            output["reward"] = (scores * self.reward_weights.to(scores.device)).nansum(dim=1)
            # micro-batches so far, of this and earlier steps: the number of the first that uses this rollout, times its rows
            begun = self.state.global_step * self.args.gradient_accumulation_steps + self._step % max(
                1, self.args.gradient_accumulation_steps
            )
            row = begun * len(self._scores) + first + torch.arange(local, device=scores.device)
            output["group"] = row // self.num_generations
            output["correct"] = scores[:, self.reward_func_names.index("correctness")] > 0
        return output

    def compute_loss(self, model, inputs, *args, **kwargs):
        if "correct" in inputs:
            tokens, factor = loss_mask(inputs).sum(-1), preference_factor(self, inputs)
            advantage = inputs["advantages"]
            bonus = self.preference_bonus(inputs) if "preference_weights" in inputs else torch.zeros_like(advantage)
            weight = (advantage + bonus) / (factor * tokens.clamp(min=1))
            step = torch.full_like(advantage, self.state.global_step + 1)
            columns = (step, inputs["group"], tokens, inputs["reward"], inputs["correct"], advantage, bonus, weight)
            rows = torch.stack([column.double() for column in columns], dim=1)
            self._rows().append(self.accelerator.gather(rows).cpu().numpy())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes a file of its own
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            atomic_write(folder / self.FILE, self.rollouts().to_parquet)  # the checkpoint is whole
            write_checksums(folder)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / self.FILE).is_file():
            self._rows().append(pd.read_parquet(Path(checkpoint) / self.FILE).to_numpy(dtype=float))
