"""The snippets of docs/coming-from.md for other frameworks, inside the functions that they change; if they are installed."""

import re
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from amir_grpo.preference import mine_pairs, preference_weights

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text()
# two groups of four, log-probabilities of three tokens, and tokens that the loss sees
REWARDS = torch.tensor([2.8, 0.8, 2.8, 0.8, 0.0, 2.8, 0.8, 0.0])
LOGPS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) / 4 - 0.5
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]] * 4)
ADVANTAGES = torch.cat([(group - group.mean()) / group.std() for group in REWARDS.view(2, 4)])


def snippet(beginning):
    """Run the block that begins so, and return its names."""
    (text,) = (
        block for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if block.startswith(beginning)
    )
    names = {}
    exec(text, names)
    return names


def expected(scores):
    """GRPO's advantages plus λ N w."""
    return ADVANTAGES + 0.01 * 8 * preference_weights(scores, mine_pairs(REWARDS, 4, 1.5), 0.2)


def test_verl():
    core, trainer = (pytest.importorskip(f"verl.trainer.ppo.{name}") for name in ("core_algos", "ray_trainer"))
    from verl import DataProto

    snippet("from verl")
    assert core.get_adv_estimator_fn("amir")
    mixed = torch.tensor([0, 4, 1, 5, 6, 2, 7, 3])  # rows of the two groups in turn
    scores = torch.zeros(8, 3)
    scores[:, 0] = REWARDS
    batch = {"token_level_rewards": scores[mixed], "response_mask": MASK[mixed]}
    data = DataProto.from_dict(batch, non_tensors={"uid": np.array(["b", "a"], object)[(mixed >= 4).int().numpy()]})
    found = trainer.compute_advantage(data, "amir", config={}).batch["advantages"]
    assert torch.allclose(found, (expected(torch.zeros(8))[:, None] * MASK)[mixed], atol=1e-4)


def test_ms_swift():
    trainer = pytest.importorskip("swift.rlhf_trainers.grpo_trainer")
    snippet("from swift")
    given = {"rewards_per_func": REWARDS[:, None], "reward_weights": torch.ones(1), "num_generations": 4}
    found, _ = trainer.compute_advantages(**given, advantage_estimator="grpo", scale_rewards="group")
    assert torch.allclose(found, expected(torch.zeros(8)), atol=1e-3)


_ABSENT = ("flash_attn", "deepspeed", "vllm")


class _StandIn(MetaPathFinder, Loader):
    """Gives empty modules for what a machine without a GPU does not have."""

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in _ABSENT else None

    def create_module(self, spec):
        return MagicMock(__version__="0")

    def exec_module(self, module):
        pass


def test_openrlhf(monkeypatch):
    pytest.importorskip("openrlhf")
    pytest.importorskip("transformers.modeling_utils")  # asks for the real flash-attn first
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _StandIn()])
    snippet("from openrlhf")["install"]()
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    algo = SimpleNamespace(advantage=SimpleNamespace(estimator="group_norm", gamma=1.0))
    args = SimpleNamespace(
        algo=algo, rollout=SimpleNamespace(n_samples_per_prompt=4), reward=SimpleNamespace(clip_range=None)
    )
    args.reward.overlong_buffer_len = args.reward.stop_properly_penalty_coef = None
    maker = RemoteExperienceMaker.__new__(RemoteExperienceMaker)
    maker.args, maker.advantage_estimator = args, "group_norm"
    maker.strategy, maker.kl_ctl = SimpleNamespace(args=args), SimpleNamespace(value=0.0)
    parts = [
        SimpleNamespace(
            index=rows,
            rewards=REWARDS[rows],
            action_log_probs=LOGPS[rows],
            action_mask=MASK[rows].bool(),
            kl=torch.zeros(4, 3),
            info={},
        )
        for rows in ([0, 5, 1, 7], [2, 4, 3, 6])
    ]
    maker.compute_advantages_and_returns(parts)
    scores = (LOGPS * MASK).sum(1) / MASK.sum(1)
    for part in parts:
        assert torch.allclose(part.advantages, expected(scores)[part.index, None] * MASK[part.index], atol=1e-4)
