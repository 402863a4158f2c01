"""Where a policy's weights are, and what of a trained policy is copied."""

import pytest

from amir_grpo.policies.source import PolicySource, copy_policy

POLICY = {"adapter_config.json", "adapter_model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"}
OTHERS = {"stage.json", "log.csv", "rollouts.parquet", "training_args.bin", "optimizer.pt", "trainer_state.json"}


@pytest.fixture
def trained(tmp_path):
    folder = tmp_path / "trained"
    (folder / "checkpoints").mkdir(parents=True)
    for name in POLICY | TOKENIZER | OTHERS:
        (folder / name).write_text(name)
    return folder


def copied(trained, folder, **options):
    copy_policy(trained, folder, **options)
    assert all(path.read_text() == path.name for path in folder.iterdir())
    return {path.name for path in folder.iterdir()}


def test_the_policy_and_nothing_else_is_copied(trained, tmp_path):
    assert copied(trained, tmp_path / "copy") == POLICY | TOKENIZER
    assert copied(trained, tmp_path / "tokenizer", adapter=False) == TOKENIZER


def test_policies_of_one_base_are_told_apart_by_their_weights_pickled_or_not(trained, tmp_path):
    hashes = {PolicySource("base", trained).weights_hash()}
    for name in ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.bin"):
        (trained / name).write_text(f"{name} {len(hashes)}")
        hashes.add(PolicySource("base", trained).weights_hash())
    assert len(hashes) == 4
    (trained / "training_args.bin").write_text("not of the policy")
    assert PolicySource("base", trained).weights_hash() in hashes


def test_a_folder_without_an_adapter_is_refused(trained, tmp_path):
    (trained / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model"):
        copy_policy(trained, tmp_path / "copy")
