"""The random choices of a training that must not depend on the machine: its rollouts, and the first weights of its adapter.

What else is random in a training is the order of problems and of the rows of a rollout: permutations that torch makes
with integers alone, so the same everywhere.
"""

from __future__ import annotations

import numpy as np
import torch
from trl.models.utils import unwrap_model_for_generation

from amir_grpo.policies.engines import Request, TransformersEngine, stream


class DrawnRollouts:
    """A trainer's mixin that draws rollouts with the engine of the evaluation: one random stream per completion.

    A stream is named by the seed, the optimizer step, the rollout within that step, the prompt's place in the rollout
    and the completion's place in its group. So neither an interruption nor the number of processes changes what is
    drawn, and both methods draw the same from the same policy. Each prompt goes through the policy once, and the
    log-probabilities of the completions are known without a further forward pass. Runs train at temperature 1.

    Where `draws_rollouts` is False, TRL draws.
    """

    draws_rollouts: bool = False
    _rollout: tuple[int, int] = (-1, 0)  # optimizer step, and number within it

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *rest):
        if not (self.draws_rollouts and self.model.training):
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, *rest)
        step, before = self.state.global_step, self._rollout
        self._rollout = (step, before[1] + 1 if before[0] == step else 0)
        first = self.accelerator.process_index * len(prompt_ids)  # of this process's rows among those of all
        requests: list[Request] = []
        for row, ids in enumerate(prompt_ids, start=first):
            place, number = divmod(row, num_generations)
            if number == 0 or row == first:
                requests.append(Request(ids, []))
            requests[-1].streams.append(stream(self.args.seed, "rollout", *self._rollout, place, number))
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as policy:
            engine = TransformersEngine(policy, self._tokenizer)
            drawn = engine.generate(requests, self.temperature, self.args.top_p, self.max_completion_length)
        completions = [completion for group in drawn for completion in group]
        dtype = torch.float64 if policy.dtype == torch.float64 else torch.float32  # as TRL's own are
        logprobs = [torch.tensor(completion.logprobs, dtype=dtype) for completion in completions]
        padded = torch.nn.utils.rnn.pad_sequence(logprobs, batch_first=True)
        self.sampled_logps = padded.to(self.accelerator.device)
        return [completion.ids for completion in completions], None


@torch.no_grad()
def draw_adapter(policy: torch.nn.Module, seed: int) -> None:
    """Draw the first weights of a LoRA adapter again: PEFT's uniform distribution, from numbers that no library rounds.

    torch draws other numbers in another precision, and may in another build. The second matrix of each pair is zero.

    Args:
        policy: With fresh adapters. Weights that another process holds (on the meta device, or cut by ZeRO-3) stay as they
            are.
    """
    for name, weight in policy.named_parameters():
        if ".lora_A." in name and not weight.is_meta and not hasattr(weight, "ds_id"):
            # as kaiming_uniform_ with a = √5, without a multiplication that could be fused with an addition
            numbers = np.random.Generator(np.random.PCG64(stream(seed, "adapter", name))).random(tuple(weight.shape))
            drawn = (numbers * 2 - 1) / np.sqrt(weight.shape[1])
            weight.copy_(torch.from_numpy(drawn.astype(np.float32)))
