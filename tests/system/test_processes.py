"""Several processes train as one does: by the command line under torchrun (gloo, CPU)."""

import importlib.util
import json
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.numpy import load_file

from tests.launching import exit_code, forked, started

ROOT = Path(__file__).parents[2]

# The command line, with rollouts that do not depend on which process draws them: each row has a random stream of its
# own, from its prompt, its place in the group, and how many rollouts there were before.
SAME_ROLLOUTS = textwrap.dedent("""
    import hashlib, sys
    from collections import Counter
    import torch
    from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList
    from amir_grpo.cli import main
    from amir_grpo.policies.engines import _Draw
    from amir_grpo.runs.study_trainer import StudyTrainer

    class Chosen(LogitsProcessor):
        def __init__(self, draw, prompt_tokens):
            self.draw, self.prompt_tokens = draw, prompt_tokens

        def __call__(self, input_ids, scores):
            rows = torch.arange(len(scores))
            token, _ = self.draw(scores, rows, input_ids.shape[1] - self.prompt_tokens)
            return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

    # TRL draws in all of them, as it must where weights are sharded
    StudyTrainer._draws = lambda trainer: False
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


# accelerate takes DeepSpeed for GPUs alone: on a CPU it has to be told the backend, and who takes part
ON_A_CPU = textwrap.dedent("""
    import os
    import torch.distributed as dist
    from accelerate import state
    from transformers import TrainingArguments
    from amir_grpo.runs import training

    training.device = lambda loading: torch.device("cuda")  # so that use_cpu is not set
    plain_state = state.PartialState.__init__

    def with_gloo(self, cpu=False, **options):
        plain_state(self, cpu, **{"backend": "gloo", **options})
        if dist.is_initialized():
            self.num_processes, self.process_index = dist.get_world_size(), dist.get_rank()
            self.local_process_index = self.process_index

    state.PartialState.__init__ = with_gloo
    TrainingArguments.world_size = property(lambda self: int(os.environ["WORLD_SIZE"]))
    TrainingArguments.process_index = property(lambda self: int(os.environ["RANK"]))
""")


# as `accelerate launch --config_file configs/accelerate/zero2.yaml` sets it
def zero(stage):
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_USE_CPU": "false",
    }


def trained(start, runs, script, name, processes, environment, **more):
    """The adapter, the log, the sorted rollouts and the output of three steps of 16 completions, 16 / processes on each."""
    settings = more | {
        "per_device_train_batch_size": 16 // processes,
        "sandbox_warmup_steps": 120,
        "max_steps": 3,
        "dataset_limit": 40,
        "max_completion_length": 24,
        "reward_margin": 0.1,
        "lambda_reg": 5.0,
    }
    words = [word for setting, value in settings.items() for word in (f"--{setting}", str(value))]
    folder, said = runs / f"trained by {name}", runs / f"said by {name}"
    process = start(script, ["train", "--run_dir", str(folder), *words], processes, environment, said)
    assert exit_code(process) == 0, said.read_text()[-3000:]
    assert said.read_text().count("Adapter and log") == 1, "one process speaks"
    assert json.loads((folder / "amir_grpo" / "stage.json").read_text())["processes"] == processes
    log = pd.read_csv(folder / "amir_grpo" / "log.csv")
    rows = pd.read_parquet(folder / "amir_grpo" / "rollouts.parquet")
    rows = rows.sort_values(list(rows.columns[:-1]), ignore_index=True)
    return load_file(folder / "amir_grpo" / "adapter_model.safetensors"), log, rows, said.read_text()


def check_same(one, several):
    (adapter, log, rollouts, _), (other, other_log, other_rollouts, _) = one, several
    assert (log["preference/share"] > 0.1).all(), "the preference is a good part of what is compared"
    same = ["step", "completions", "reward", "preference/pairs", "preference/loss", "preference/share", "grad_norm"]
    assert len(rollouts) == len(other_rollouts) == 3 * 16
    np.testing.assert_allclose(other_rollouts, rollouts, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other_log[same], log[same], rtol=1e-3)
    for name, value in adapter.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "same_rollouts.py"
    path.write_text(SAME_ROLLOUTS)
    return path


@pytest.fixture(scope="module")
def one(server, runs, script):
    """What one process trains."""
    return trained(partial(forked, server), runs, script, "one", 1, {})


@pytest.mark.xdist_group("server")
def test_two_processes_train_as_one(server, runs, script, one):
    check_same(one, trained(partial(forked, server), runs, script, "two", 2, {}))


@pytest.mark.long
@pytest.mark.xdist_group("server")
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_started_by_torchrun_train_as_one(kind, runs, script, one):
    check_same(one, trained(started, runs, script, kind, 2, {"ddp": {}, "fsdp": FSDP}[kind]))


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: see .ci/deepspeed"
)
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_train_as_one_by_deepspeed(runs, tmp_path, stage):
    """In float32: the float64 of the sandbox replaces norms, whose weights ZeRO 3 has cut up by then."""
    scripts = {processes: tmp_path / f"{processes}.py" for processes in (1, 2)}
    scripts[1].write_text(SAME_ROLLOUTS)
    scripts[2].write_text(
        SAME_ROLLOUTS.replace("main(sys.argv[1:])", ON_A_CPU + TELL_THE_STAGE + "main(sys.argv[1:])")
    )
    one = trained(started, runs, scripts[1], f"one beside {stage}", 1, {}, dtype="auto")
    several = trained(started, runs, scripts[2], f"zero {stage}", 2, zero(stage), dtype="auto")
    assert f"DistributedType.DEEPSPEED {stage}" in several[-1]
    check_same(one, several)


TELL_THE_STAGE = textwrap.dedent("""
    from trl import distributed

    plain_backend = distributed.DistributedBackend.__init__

    def telling(self, accelerator):
        plain_backend(self, accelerator)
        print(accelerator.distributed_type, self.zero_stage, file=sys.stderr)

    distributed.DistributedBackend.__init__ = telling
""")


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
    assert f"`{path.stem}`" in (ROOT / "docs" / "cluster.md").read_text()
