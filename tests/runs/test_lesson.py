"""What notebook 01 computes beside the package's own functions: one group, one update, and the sliders' picture."""

import base64

import pandas as pd
import pytest
import torch

from amir_grpo.preference import preference_loss
from amir_grpo.problems import load_problems
from amir_grpo.results.tables import mixed_problem
from amir_grpo.runs import lesson

pytestmark = pytest.mark.xdist_group("lesson")


@pytest.fixture(scope="module")
def problems():
    return load_problems("sandbox", "train", limit=6)


@pytest.fixture(scope="module")
def rollout(problems):
    return lesson.rollout(problems, completions=4)


@pytest.fixture(scope="module")
def group(rollout):
    return rollout[rollout["problem_id"] == mixed_problem(rollout)]


def test_a_rollout_has_rewards_answers_and_log_probabilities(problems, rollout):
    assert len(rollout) == 6 * 4
    parts = ["correctness", "integer_answer", "strict_format", "xml_tags", "arithmetic_claims"]
    assert rollout["reward"].tolist() == pytest.approx(rollout[parts].sum(axis=1).tolist())
    gold = dict(zip(problems["id"], problems["answer"], strict=True))
    for row in rollout.itertuples():
        assert row.correct == ([row.answer] == gold[row.problem_id])
        assert row.seq_logp == pytest.approx(row.logprob / row.tokens)


def test_a_rollout_is_the_same_each_time(problems, rollout):
    pd.testing.assert_frame_equal(lesson.rollout(problems, completions=4), rollout)


def test_the_update_is_trls_advantage_and_the_gradient_of_the_preference_loss():
    rewards = torch.tensor([0.5, 3.3, 2.9, 0.8], dtype=torch.float64)
    seq_logps = torch.tensor([-0.4, -0.1, -0.2, -0.3], dtype=torch.float64, requires_grad=True)
    update = lesson.group_update(rewards, seq_logps, 0.5, 2.0, 1.0)
    assert update.wins.nonzero().tolist() == [[1, 0], [1, 3], [2, 0], [2, 3]]
    torch.testing.assert_close(update.advantages, (rewards - rewards.mean()) / (rewards.std() + 1e-4))
    pairs = lesson.mine_pairs(rewards, 4, 1.0)
    (gradient,) = torch.autograd.grad(preference_loss(seq_logps, pairs, 2.0), seq_logps)
    torch.testing.assert_close(update.bonus, -0.5 * 4 * gradient)


def test_an_update_moves_completions_by_their_advantage(problems, group):
    place = problems["id"].index(group["problem_id"].iloc[0])
    one = torch.zeros(4, dtype=torch.float64)
    one[2] = 1.0
    moved = lesson.moved(problems.select([place]), group["completion_ids"], one, learning_rate=1e-3)
    assert moved[2] > 0
    torch.testing.assert_close(
        lesson.moved(problems.select([place]), group["completion_ids"], 0 * one, 1e-3), 0 * one, rtol=0, atol=1e-12
    )


def test_log_probabilities_are_those_of_the_sampling(problems, group):
    (prompt,) = lesson.tokenize_prompts(
        lesson.load_tokenizer(lesson.BASE), problems.select([problems["id"].index(group["problem_id"].iloc[0])])
    ).values()
    scored = lesson._seq_logps(lesson.load_base(), prompt, group["completion_ids"])
    assert scored.tolist() == pytest.approx(group["seq_logp"].tolist(), abs=1e-6)


def test_a_slider_redraws_the_picture_and_the_button_restores_it(group):
    pytest.importorskip("ipywidgets", reason="needs the extra notebooks")
    box = lesson.explorer(group, 0.01, 0.2, 1.5)
    sliders, _, rewards, image = box.children
    *settings, again = sliders.children
    assert [slider.description for slider in settings] == ["λ", "β", "δ"]
    assert [slider.value for slider in settings] == pytest.approx([0.01, 0.2, 1.5])
    first = bytes(image.value)
    assert first.startswith(b"\x89PNG")
    for slider, value in ((settings[0], 3.0), (settings[2], 0.1), (rewards.children[0], 3.4)):
        before = bytes(image.value)
        slider.value = value
        assert bytes(image.value) != before
    again.click()
    assert bytes(image.value) == first
    assert [slider.value for slider in rewards.children] == pytest.approx(group["reward"].tolist())


def test_a_page_without_a_kernel_has_the_picture(group):
    pytest.importorskip("ipywidgets", reason="needs the extra notebooks")
    box = lesson.explorer(group, 0.01, 0.2, 1.5)
    bundle = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == bytes(box.picture.value)
    assert bytes(box.picture.value).startswith(b"\x89PNG")


def test_without_ipywidgets_there_is_the_picture_alone(group, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "amir_grpo.runs.sliders", None)
    shown = lesson.explorer(group, 0.01, 0.2, 1.5)
    assert shown.data.startswith(b"\x89PNG")
