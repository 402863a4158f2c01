"""Several processes train as one does: by the command line under torchrun (gloo, CPU)."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

# The command line, with rollouts that do not depend on which process draws them: each row has a random stream of its
# own, from its prompt, its place in the group, and how many rollouts there were before.
SAME_ROLLOUTS = textwrap.dedent("""
    import hashlib, sys
    from collections import Counter
    import torch
    from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList
    from amir_grpo.cli import main
    from amir_grpo.policies.engines import _Draw
    from amir_grpo.runs.drawn_rollouts import DrawnRollouts

    class Chosen(LogitsProcessor):
        def __init__(self, draw, prompt_tokens):
            self.draw, self.prompt_tokens = draw, prompt_tokens

        def __call__(self, input_ids, scores):
            rows = torch.arange(len(scores))
            token, _ = self.draw(scores, rows, input_ids.shape[1] - self.prompt_tokens)
            return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

    # TRL draws in all of them, as it must where weights are sharded
    DrawnRollouts.draws_rollouts = property(lambda trainer: False, lambda trainer, value: None)
    plain, rollouts = GenerationMixin.generate, 0

    def generate(self, input_ids, logits_processor=(), generation_config=None, **options):
        global rollouts
        rollouts += 1
        seen, streams = Counter(), []
        for row, mask in zip(input_ids.tolist(), options["attention_mask"].tolist()):
            prompt = tuple(token for token, there in zip(row, mask) if there)
            seen[prompt] += 1
            name = f"{rollouts} {prompt} {seen[prompt]}".encode()
            streams.append(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
        draw = _Draw(streams, 1.0, 1.0, generation_config.max_new_tokens, input_ids.device)
        generation_config.do_sample = False
        processors = LogitsProcessorList([*logits_processor, Chosen(draw, input_ids.shape[1])])
        return plain(self, input_ids, logits_processor=processors, generation_config=generation_config, **options)

    GenerationMixin.generate = generate
    main(sys.argv[1:])
""")


# as `accelerate launch --config_file configs/accelerate/fsdp.yaml` sets it
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def launch(script, folder, processes, environment):
    """Train AMIR-GRPO for three steps of 16 completions, 16 / processes on each."""
    settings = {
        "per_device_train_batch_size": 16 // processes,
        "sandbox_warmup_steps": 120,
        "max_steps": 3,
        "dataset_limit": 40,
        "max_completion_length": 24,
        "reward_margin": 0.1,
        "lambda_reg": 5.0,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    launcher = TORCHRUN if processes == 2 else []
    return subprocess.run(
        [sys.executable, *launcher, *script, "train", "--run_dir", str(folder), *words],
        env=os.environ | environment | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_two_processes_train_as_one_by_ddp_and_by_fsdp(runs, tmp_path):
    script = tmp_path / "same_rollouts.py"
    script.write_text(SAME_ROLLOUTS)
    adapters, logs, rollouts = [], [], []
    for name, processes, environment in (("one", 1, {}), ("ddp", 2, {}), ("fsdp", 2, FSDP)):
        folder = runs / f"trained by {name}"
        done = launch([str(script)], folder, processes, environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Adapter and log") == 1, "one process speaks"
        assert json.loads((folder / "amir_grpo" / "stage.json").read_text())["processes"] == processes
        adapters.append(load_file(folder / "amir_grpo" / "adapter_model.safetensors"))
        logs.append(pd.read_csv(folder / "amir_grpo" / "log.csv"))
        rows = pd.read_parquet(folder / "amir_grpo" / "rollouts.parquet")
        rollouts.append(rows.sort_values(list(rows.columns[:-1]), ignore_index=True))
    assert (logs[0]["preference/share"] > 0.1).all(), "the preference is a good part of what is compared"
    same = ["step", "completions", "reward", "preference/pairs", "preference/loss", "preference/share", "grad_norm"]
    for several in (1, 2):
        assert len(rollouts[0]) == len(rollouts[several]) == 3 * 16
        np.testing.assert_allclose(rollouts[several], rollouts[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(logs[several][same], logs[0][same], rtol=1e-3)
        for name, value in adapters[0].items():
            np.testing.assert_allclose(adapters[several][name], value, rtol=1e-3, atol=1e-5)


def test_other_commands_are_refused_under_a_launcher(monkeypatch, capsys, tmp_path):
    from amir_grpo import cli

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "--run_dir", str(tmp_path / "run")])
    assert caught.value.code == 2
    assert "evaluate runs in one process, and was started in 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_each_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.mixed_precision == "bf16"
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(path.stem, "DEEPSPEED")
    assert config.distributed_type == kind
    assert f"configs/accelerate/{path.name}" in (ROOT / "docs" / "cluster.md").read_text()
