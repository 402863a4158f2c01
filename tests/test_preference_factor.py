"""What the trainer makes of rows with few tokens, or none, by hand."""

from types import SimpleNamespace

import pytest
import torch

from amir_grpo.trainer import _sequence_logps, preference_factor


@pytest.mark.parametrize(
    ("loss_type", "factors"),
    [
        ("grpo", [8, 8]),
        ("dr_grpo", [8 * 6 / 1, 8 * 6 / 3]),
        ("bnpo", [8 * 4 / 2 / 1, 8 * 4 / 2 / 3]),  # 4 tokens in this micro-batch of 2
        ("dapo", [20 / 1, 20 / 3]),  # 20 tokens in all
        ("cispo", [20 / 1 / 0.5, 20 / 3 / 0.5]),
        ("luspo", [8 / 1, 8 / 3]),
    ],
)
def test_the_factor_of_a_completion_of_one_token(loss_type, factors):
    args = SimpleNamespace(generation_batch_size=8)
    trainer = SimpleNamespace(loss_type=loss_type, args=args, max_completion_length=6, epsilon_high=0.5)
    inputs = {
        "completion_mask": torch.tensor([[1, 0, 0], [1, 1, 1]]),
        "advantages": torch.zeros(2),
        "num_items_in_batch": torch.tensor(20.0),
    }
    assert preference_factor(trainer, inputs).tolist() == pytest.approx(factors)


def test_a_sequence_counts_its_known_tokens_alone():
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0], [-1.0, torch.nan, -2.0], [-9.0, -9.0, -9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
    assert _sequence_logps(logps, mask).tolist() == [-1.5, -3.0, -1.5, 0.0]
