"""Base policies: the package's own where the spec is theirs and their files are whole, else made once into a cache."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from amir_grpo.choices import SANDBOXES, STORIES
from amir_grpo.sandbox import base as base_policies
from amir_grpo.sandbox.base import WARMUP_SEEDS, base_policy, check_files, main, make_packaged, warmup_seed
from amir_grpo.sandbox.policy import SPECS
from amir_grpo.sandbox.problems import TRAINED_ON
from amir_grpo.study.plan import PLANS, read_plan


def never(spec, folder):
    raise AssertionError("made again")


def test_a_base_policy_is_made_once(base, tiny_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(base_policies, "make_base_policy", never)
    assert base_policy(tiny_spec, base.parent) == base
    main([base_policies._json(tiny_spec), str(base.parent)])  # as several processes have it made by one
    with pytest.raises(AssertionError, match="made again"):
        base_policy(replace(tiny_spec, seed=WARMUP_SEEDS[1]), tmp_path)
    assert not list(tmp_path.iterdir()), "an unfinished one is left behind"


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """Base policies made as those of the package are, with a warm-up of a few steps."""
    folder = tmp_path_factory.mktemp("base policies")
    make_packaged(
        replace(SPECS["sandbox"], warmup_steps=4), folder, WARMUP_SEEDS[1::-1]
    )  # numbered by seed, not by place
    return folder


@pytest.fixture
def in_place(packaged, monkeypatch):
    monkeypatch.setattr(base_policies, "PACKAGED", packaged)
    monkeypatch.setattr(base_policies, "make_base_policy", never)


def test_the_packages_own_is_taken_where_the_spec_is_its(packaged, in_place, tiny_spec, tmp_path):
    spec = replace(tiny_spec, warmup_steps=4)
    assert base_policy(spec, tmp_path) == packaged / "0"
    assert base_policy(replace(spec, seed=WARMUP_SEEDS[1]), tmp_path) == packaged / "1"
    for other in (replace(spec, seed=WARMUP_SEEDS[2]), replace(spec, slip=0.3)):
        with pytest.raises(AssertionError, match="made again"):
            base_policy(other, tmp_path)


def test_the_packages_own_are_float32_and_load(packaged):
    weights = [load_file(packaged / seed / "model.safetensors") for seed in "01"]
    assert {tensor.dtype for tensor in weights[0].values()} == {torch.float32}
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert AutoModelForCausalLM.from_pretrained(packaged / "0").num_parameters() > 100_000


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_is_not_the_published_one_is_named(packaged, in_place, tiny_spec, tmp_path, name):
    path = packaged / "0" / name
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{name} has changed: its SHA-256 should be"):
            base_policy(replace(tiny_spec, warmup_steps=4), tmp_path)
        path.unlink()
        with pytest.raises(ValueError, match=rf"{name} is missing"):
            base_policy(replace(tiny_spec, warmup_steps=4), tmp_path)
    finally:
        path.write_bytes(content)
    check_files(packaged / "0")


def test_every_base_seed_of_the_settings_has_a_base_policy():
    assert len(WARMUP_SEEDS) == 6
    fresh = read_plan(PLANS["fresh"]).run_grid("fresh", "clean/grpo")  # those of the second plan come as they are made
    packaged = {int(path.name) for path in base_policies.PACKAGED.glob("[0-9]*")}
    assert {*range(6)} <= packaged <= {*range(6), *(base for base, _ in fresh)}
    assert tuple(SPECS) == SANDBOXES
    assert tuple(TRAINED_ON) == (*SANDBOXES, STORIES)


@pytest.mark.parametrize("folder", sorted(base_policies.PACKAGED.glob("[0-9]*")), ids=lambda path: path.name)
def test_what_the_package_holds_is_whole(folder):
    check_files(folder)
    assert json.loads((folder / "recipe.json").read_text())["spec"]["seed"] == warmup_seed(int(folder.name))
