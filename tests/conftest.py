"""What several test modules share: a tiny sandbox policy, made once a session."""

import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import hypothesis
import pytest

# Read when torch is imported, here and in what the tests start: workers share the cores, and leave those they wait on.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# jsonschema compiles a grammar of internet addresses for seconds when nbformat imports it, where it finds one
sys.modules.setdefault("rfc3987_syntax", None)

# how long an example takes says how busy the machine is
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

WARMUP_STEPS = 120  # enough for the format now and then, far too few for arithmetic


@pytest.fixture(scope="session")
def tiny_spec():
    from amir_grpo.sandbox.base import WARMUP_SEEDS
    from amir_grpo.sandbox.policy import SandboxSpec

    return SandboxSpec(warmup_steps=WARMUP_STEPS, seed=WARMUP_SEEDS[0])


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_spec):
    """A folder for run folders, whose cache of base policies holds the tiny one."""
    import torch

    from amir_grpo.sandbox.base import base_policy

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    ours = tmp_path_factory.getbasetemp()
    session = ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours  # shared by all workers
    made = base_policy(tiny_spec, session / "bases")
    shutil.copytree(made, folder / ".cache" / made.name)
    return folder


@pytest.fixture(scope="session")
def base(runs, tiny_spec):
    """Folder of the tiny base policy."""
    return runs / ".cache" / f"base-{tiny_spec.fingerprint()}"


@pytest.fixture(scope="session")
def tiny_policy(base):
    """The tiny base policy in float32 on the CPU, whatever the machine has."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer(base):
    from amir_grpo.policies.loading import load_tokenizer

    return load_tokenizer(str(base))


@pytest.fixture(scope="session")
def tiny_settings():
    """Settings of a run with the tiny policy that takes seconds; changes to the profile sandbox."""
    return {
        "sandbox_warmup_steps": WARMUP_STEPS,
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "dataset_limit": 40,
        "max_completion_length": 24,
        "reward_margin": 0.1,  # below the rewards of form, so that there are pairs
        "benchmarks": ["chain3", "chain6"],
        "eval_limit": 4,
        "eval_max_new_tokens": 24,
    }


@pytest.fixture(scope="session")
def complete_run(runs, tiny_settings):
    """A run with everything in it, from both trainings to its tables and figures; to be read, or copied and then changed.

    Tests that use it belong to the xdist group "complete run", so that it is made once.
    """
    from amir_grpo.runs.run import open_run
    from tests.cells import show_results

    run = open_run("sandbox", runs / "complete", tiny_settings)
    show_results(run.folder)
    return run


# by what the tests run there
_IMPORTED_LATE = (
    "amir_grpo.cli",
    "amir_grpo.policies.engines",
    "amir_grpo.study.kept",
    "torch.distributed.launcher.api",
    "tests.frozen",
)


@pytest.fixture(scope="session")
def server():
    """Forks processes that have imported everything: none waits for torch, and a kill hits work and not imports.

    Tests that use it belong to the xdist group "server", so that it imports once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "amir_grpo.runs.training", "amir_grpo.results.figures", *_IMPORTED_LATE])
    forkserver.ensure_running()  # now, not within a test that has hidden all progress bars
    return context


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this tree, built beside it: the tree itself may not be writable."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    others = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("amir_grpo", "data", "notebooks"):
        shutil.copytree(ROOT / name, source / name, ignore=others)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--wheel-dir", str(place), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A folder that the wheel is installed into, beside the dependencies of the suite; it goes into PYTHONPATH."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def pytest_collection_finish():
    """What is imported by now stays: looking for garbage in it after each training takes longer than a tiny training."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter, config):
    """After the skipped tests and their reasons: which kinds were not chosen, and what runs them."""
    kinds = [line for line in config.getini("markers") if f"not {line.split(':')[0]}" in config.option.markexpr]
    for kind in kinds:
        terminalreporter.write_line(f"Not chosen: tests marked {kind}")
