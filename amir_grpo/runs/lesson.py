"""What notebook 01 teaches with: one group of the sandbox's completions, from its rewards to an update, and sliders.

The lesson has a policy of its own, the first base policy of the sandbox, on the CPU and in float64, so that it takes seconds
and shows the same completions whatever the run trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from IPython.display import Image
from torch import Tensor

from amir_grpo.answers import extract_answer
from amir_grpo.policies.engines import TransformersEngine
from amir_grpo.policies.loading import load_policy, load_tokenizer, lora_config
from amir_grpo.policies.sampling import draw_completions, tokenize_prompts
from amir_grpo.policies.source import Loading
from amir_grpo.preference import mine_pairs, preference_weights
from amir_grpo.results import lesson_figures
from amir_grpo.results.style import png
from amir_grpo.rewards import reward_functions
from amir_grpo.runs.drawn_rollouts import draw_adapter
from amir_grpo.sandbox.base import PACKAGED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

BASE = str(PACKAGED / "0")
_LOADING = Loading(dtype="float64", device="cpu")
# What a short training on a CPU wants of TRL's configuration.
ON_A_CPU = {
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
}
_WIDTH = 680  # of a picture, in pixels


def load_base() -> PreTrainedModel:
    """The lesson's policy, as it was before any GRPO."""
    return load_policy(BASE, loading=_LOADING)


def rollout(problems: Dataset, completions: int, max_new_tokens: int = 64, seed: int = 0) -> pd.DataFrame:
    """Completions of the lesson's policy at temperature 1, with what the reward functions give them.

    Args:
        problems: Of the sandbox.
        completions: Per problem.

    Returns:
        One row per completion, the rows of a problem adjacent: the columns that `draw_completions` gives, one for each
        reward function, reward (their sum), answer (as extracted), correct, and seq_logp (ℓ, nats per token).
    """
    engine = TransformersEngine(load_base(), load_tokenizer(BASE))
    options = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": max_new_tokens, "seed": seed}
    drawn = draw_completions(engine, problems, completions, label="one rollout", **options)
    answers = dict(zip(problems["id"], problems["answer"], strict=True))
    wanted = [answers[problem] for problem in drawn["problem_id"]]
    for function in reward_functions():
        drawn[function.__name__] = function(completions=drawn["text"].tolist(), answer=wanted)
    drawn["reward"] = drawn[[function.__name__ for function in reward_functions()]].sum(axis=1)
    drawn["answer"] = [extract_answer(text) or "none" for text in drawn["text"]]
    drawn["correct"] = drawn["correctness"] > 0
    drawn["seq_logp"] = drawn["logprob"] / drawn["tokens"]
    return drawn


@dataclass(frozen=True)
class Update:
    """What pushes the N completions of one group.

    Attributes:
        wins: (N, N) bool, where the row beats the column by more than δ.
        advantages: (N,) A, of GRPO.
        weights: (N,) w of the preference loss.
        bonus: (N,) λκw; κ is N, as for TRL's loss type grpo in a batch of this one group.
    """

    wins: Tensor
    advantages: Tensor
    weights: Tensor
    bonus: Tensor


def group_update(
    rewards: Tensor, seq_logps: Tensor, lambda_reg: float, beta_dpo: float, reward_margin: float
) -> Update:
    """The update that one group asks for.

    Args:
        rewards, seq_logps: (N,) each.
        lambda_reg: λ.
        beta_dpo: β.
        reward_margin: δ.
    """
    number = rewards.numel()
    pairs = mine_pairs(rewards, number, reward_margin)
    wins = torch.zeros(number, number, dtype=torch.bool)
    wins[pairs.chosen, pairs.rejected] = True
    weights = preference_weights(seq_logps, pairs, beta_dpo)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)  # as TRL has it
    return Update(wins, advantages, weights, lambda_reg * number * weights)


def moved(
    problem: Dataset, completion_ids: Sequence[Sequence[int]], advantages: Tensor, learning_rate: float
) -> Tensor:
    """How one update moves ℓ of the completions of a group, (N,) in nats per token: GRPO's loss, by hand.

    On-policy, the gradient of GRPO's loss is that of -mean(A ℓ). A fresh adapter of rank 4 takes one step of AdamW.

    Args:
        problem: One problem of the sandbox.
        completion_ids: Token ids of its N completions, drawn by the lesson's policy.
        advantages: (N,) A, or A + λκw.
        learning_rate: Of the step.
    """
    from peft import get_peft_model

    policy = get_peft_model(load_base(), lora_config(4, 4))
    draw_adapter(policy, seed=0)
    (prompt,) = tokenize_prompts(load_tokenizer(BASE), problem).values()
    before = _seq_logps(policy, prompt, completion_ids)
    optimizer = torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0
    )
    (-(advantages * before).mean()).backward()
    optimizer.step()
    with torch.no_grad():
        return _seq_logps(policy, prompt, completion_ids) - before.detach()


def _seq_logps(policy: PeftModel, prompt: Sequence[int], completion_ids: Sequence[Sequence[int]]) -> Tensor:
    """ℓ of each completion, (N,), with gradient."""
    found = []
    for ids in completion_ids:
        whole = torch.tensor([[*prompt, *ids]])
        logps = policy(input_ids=whole).logits[0, :-1].log_softmax(-1)
        found.append(logps.gather(1, whole[0, 1:, None])[len(prompt) - 1 :].mean())
    return torch.stack(found)


# --- what a cell shows ----------------------------------------------------------------------------------------------


def logged(trainer: Trainer) -> Styler:
    """The log of a short training: a row for each step, with the reward, the pairs and their share of the update."""
    columns = {
        "step": "step",
        "reward": "reward",
        "preference/pairs": "pairs",
        "preference/share": "share of the update",
    }
    log = pd.DataFrame(trainer.state.log_history)[list(columns)].dropna().rename(columns=columns)
    formats = {"step": "{:.0f}", "reward": "{:.2f}", "pairs": "{:.0f}", "share of the update": "{:.2%}"}
    return log.style.hide(axis="index").format(formats)


def as_image(figure: Figure, width: int = _WIDTH) -> Image:
    """A figure as the output of a cell."""
    return Image(png(figure, dpi=160), width=width)


def explorer(group: pd.DataFrame, lambda_reg: float, beta_dpo: float, reward_margin: float) -> Any:
    """Sliders for λ, β, δ and the rewards of a group, above the picture of its pairs and its update.

    Args:
        group: Columns reward, seq_logp and correct, one row per completion.
        lambda_reg, beta_dpo, reward_margin: λ, β and δ at the start.

    Returns:
        A widget. Where no kernel stands behind a page, or ipywidgets is not installed, it shows as the picture alone.
    """
    seq_logps, right = torch.tensor(group["seq_logp"].to_numpy()), group["correct"].tolist()

    def picture(rewards: Sequence[float], lambda_reg: float, beta_dpo: float, reward_margin: float) -> bytes:
        update = group_update(
            torch.tensor(list(rewards), dtype=torch.float64), seq_logps, lambda_reg, beta_dpo, reward_margin
        )
        arrays = (part.numpy() for part in (update.wins, update.advantages, update.bonus))
        return png(lesson_figures.explorer_figure(*arrays, right, reward_margin), dpi=160)

    start = (group["reward"].tolist(), lambda_reg, beta_dpo, reward_margin)
    try:
        from amir_grpo.runs.sliders import sliders
    except ImportError:  # without the extra notebooks
        return Image(picture(*start), width=_WIDTH)
    return sliders(picture, *start, width=_WIDTH)
