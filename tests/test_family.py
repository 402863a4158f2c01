"""The weights of each loss against the gradient that autograd finds for the loss as its paper writes it."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch

from amir_grpo.choices import PAIR_LOSSES
from amir_grpo.family import FAMILY, family_weights, weight_curve

G = 6


def rollout(seed, graded):
    stream = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 4 if graded else 2, (5, G), generator=stream).double()
    rewards[0] = 1.0  # a group of one class
    seq_logps = -torch.rand(5, G, generator=stream, dtype=torch.float64) * 2
    return rewards, seq_logps


def explicit_loss(name, rewards, scores, margin, tau):
    """The loss over Python loops, group by group."""
    losses, pairs = [], []
    for r, s in zip(rewards.tolist(), scores, strict=True):
        right = [i for i in range(G) if r[i] - min(r) > margin]
        wrong = [i for i in range(G) if i not in right]
        mean = sum(r) / G
        deviation = math.sqrt(sum((x - mean) ** 2 for x in r) / (G - 1)) + 1e-4
        group = scores.sum() * 0
        if name in ("amir", "group_pairs"):
            beaten = [(i, j) for i, j in itertools.permutations(range(G), 2) if r[i] - r[j] > margin]
            of_group = [-torch.nn.functional.logsigmoid((s[i] - s[j]) / tau) for i, j in beaten]
            pairs += of_group
            group = torch.stack(of_group).mean() if of_group else group
        elif name == "ranks":
            for i in range(G):
                rank = 1 + sum(x > r[i] + margin for x in r) + (sum(abs(x - r[i]) <= margin for x in r) - 1) / 2
                group = group - (2 - (rank - 1) * 4 / (G - 1)) * s[i] / G
        elif name == "infonce" and right:
            e = torch.exp(s / tau)
            group = torch.stack([-torch.log(e[i] / (e[i] + sum(e[j] for j in wrong))) for i in right]).mean()
        elif name == "listwise":
            target = torch.softmax(s.detach() + torch.tensor(r, dtype=s.dtype) / tau, 0)
            group = (target * (target.log() - torch.log_softmax(s, 0))).sum()
        elif name == "real" and right:
            relative = s - s.detach()
            group = torch.log(1 + sum(torch.exp(-relative[i] / tau) for i in right))
            group = group + torch.log(1 + sum(torch.exp(relative[j] / tau) for j in wrong))
        elif name == "grpo":
            group = -sum((x - mean) / deviation * s[i] for i, x in enumerate(r)) / G
        elif name == "dr_grpo":
            group = -sum((x - mean) * s[i] for i, x in enumerate(r)) / G
        elif name == "two":
            for a in range(0, G, 2):
                half = (r[a] - r[a + 1]) / 2
                group = group - half / (math.sqrt(2) * abs(half) + 1e-4) * (s[a] - s[a + 1]) / G
        losses.append(group)
    if name == "amir":
        return torch.stack(pairs).mean()
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(("graded", "margin", "tau"), [(False, 0.0, 1.0), (True, 1.5, 1.0), (True, 0.0, 0.4)])
def test_weights_are_the_gradient_of_the_loss(name, graded, margin, tau):
    rewards, seq_logps = rollout(3, graded)
    leaf = seq_logps.clone().requires_grad_()
    explicit_loss(name, rewards, leaf, margin, tau).backward()
    weights = family_weights(name, rewards.flatten(), seq_logps.flatten(), G, margin, tau)
    torch.testing.assert_close(weights.view_as(seq_logps), -leaf.grad, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", sorted(set(FAMILY) - {"real"}))
def test_weights_of_a_group_sum_to_zero(name):
    rewards, seq_logps = rollout(5, graded=True)
    weights = family_weights(name, rewards.flatten(), seq_logps.flatten(), G, 0.5, 0.7).view(-1, G)
    assert weights.sum(1).abs().max() < 1e-15
    assert weights[0].abs().max() < 1e-15  # a group of one class
    assert weights.abs().sum() > 0


# closed forms of f(m) up to a factor, from the gradients at equal scores
CURVES = {
    "amir": lambda m, g: 1.0,
    "ranks": lambda m, g: 1.0,
    "dr_grpo": lambda m, g: 1.0,
    "grpo": lambda m, g: 1 / math.sqrt(m * (g - m)),
    "group_pairs": lambda m, g: 1 / (m * (g - m)),
    "infonce": lambda m, g: 1 / (m * (1 + g - m)),
    "real": lambda m, g: 1 / (1 + m) + 1 / (1 + g - m),
    "listwise": lambda m, g: 1 / (g / (math.e - 1) + m),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("group_size", [4, 8])
def test_curve_is_the_closed_form(name, group_size):
    m, f, cosine = weight_curve(name, group_size).T
    expected = torch.tensor([CURVES[name](k, group_size) for k in m.tolist()], dtype=torch.float64)
    torch.testing.assert_close(f / f[0], expected / expected[0], atol=0, rtol=1e-3)
    if name == "real":
        assert 0.9 < cosine.min() < 0.999
    else:
        torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_groups_of_two_weight_like_dr_grpo_on_average():
    stream = torch.Generator().manual_seed(0)
    ratios = []
    for m in range(1, 8):
        correct = torch.tensor([1.0] * m + [0.0] * (8 - m), dtype=torch.float64)
        order = torch.stack([torch.randperm(8, generator=stream) for _ in range(4000)])
        rewards = correct[order]
        weights = family_weights("two", rewards.flatten(), torch.zeros(rewards.numel(), dtype=torch.float64), 8)
        direction = rewards - rewards.mean(1, keepdim=True)
        ratios.append(((weights.view_as(rewards) * direction).sum() / direction.square().sum()).item())
    assert max(ratios) / min(ratios) < 1.06


@pytest.mark.parametrize(
    ("name", "count", "size", "said"),
    [("amri", 8, 4, "Unknown loss 'amri'"), ("amir", 10, 4, "10 rewards"), ("two", 9, 3, "cut into twos")],
)
def test_bad_input_is_refused(name, count, size, said):
    with pytest.raises(ValueError, match=said):
        family_weights(name, torch.ones(count), torch.zeros(count), size)


def test_settings_name_the_family():
    assert {*PAIR_LOSSES} == {"logistic", "linear", *FAMILY} - {"amir"}


def test_the_curves_on_the_page_of_the_method_are_the_functions():
    text = (Path(__file__).parents[1] / "docs" / "method.md").read_text()
    rows = [line.split("|")[1:-1] for line in text[text.index("## Relatives") :].splitlines() if line.startswith("| ")]
    found = {}
    for cells in rows:
        for name in re.findall(r"`(\w+)`", cells[0]):
            found[name] = cells[2:]
    for name, cells in found.items():
        if name in FAMILY:
            f = weight_curve(name, 8, tau=0.25 if name == "listwise" else 1.0)[:, 1]
            assert [float(cell) for cell in cells] == [round((f[m - 1] / f.max()).item(), 2) for m in (1, 4, 7)], name
    assert len(set(found) & set(FAMILY)) == 7
    cosines = [weight_curve(name, 8, 0.5)[:, 2].mean() for name in FAMILY if name != "two"]
    assert min(cosines) > 0.93


def test_the_share_is_the_closed_form_and_below_its_bound():
    """share = λβ / (λβ + mean |A|) for two classes of rewards at equal scores, and at most that with 2β."""
    stream = torch.Generator().manual_seed(2)
    for beta, spread in ((0.2, 0.0), (0.2, 0.5), (3.0, 1.0)):
        rewards = torch.randint(0, 2, (8, 8), generator=stream).double()
        scores = spread * torch.randn(64, generator=stream, dtype=torch.float64)
        weights = family_weights("amir", rewards.flatten(), scores, 8, 0.5, 1 / beta)
        size = (64 * family_weights("grpo", rewards.flatten(), scores, 8)).abs().mean()
        share = 0.01 * 64 * weights.abs().sum() / (64 * size + 0.01 * 64 * weights.abs().sum())
        assert share < 0.02 * beta / (0.02 * beta + size)
        if not spread:
            assert share == pytest.approx((0.01 * beta / (0.01 * beta + size)).item())
