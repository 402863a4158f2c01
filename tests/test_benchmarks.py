"""The benchmark of a GPU, tried without one."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure the GPU"),
]


def benchmark(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_it_goes_through_all_parts_at_a_tiny_shape_and_keeps_nothing(tmp_path):
    done = benchmark("--steps", "2", "--results", str(tmp_path / "gpu"))
    assert done.returncode == 0, done.stderr
    rows = [ast.literal_eval(line.replace("nan", "None")) for line in done.stdout.splitlines() if line.startswith("{")]
    gradients = {row["dtype"]: row for row in rows if "dtype" in row}
    assert float(gradients["float32"]["off"]) < 1e-5
    assert float(gradients["bfloat16"]["off"]) < 0.03
    assert all(float(row["off_without_preference"]) > 0.1 for row in gradients.values())
    assert [row["method"] for row in rows if "method" in row] == 2 * ["grpo", "amir_grpo"]
    assert sum("ratio" in row for row in rows) == 2
    assert not (tmp_path / "gpu").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "Qwen/Qwen2.5-0.5B-Instruct"], "--shapes needs an NVIDIA GPU"),
        pytest.param(
            ["--backend", "unsloth"],
            "backend='unsloth' cannot be used",
            marks=pytest.mark.skipif(importlib.util.find_spec("unsloth") is not None, reason="it has a CPU backend"),
        ),
    ],
)
def test_what_needs_a_gpu_is_refused(arguments, said):
    done = benchmark(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
