import dataclasses
import shutil

import pytest

from amir_grpo.study.arms import ARMS
from amir_grpo.study.running import run_study

SMALL_STUDY = ["grpo", "amir_grpo", "two-step-dr_grpo-amir"]


@pytest.fixture(scope="session")
def small_study(runs, tiny_settings, tmp_path_factory):
    """A small study of three arms and two seeds, beside the cache that holds the tiny base policy."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(runs / ".cache", folder / ".cache")
    arms = [dataclasses.replace(ARMS[name], seeds=2) for name in sorted(SMALL_STUDY)]
    changes = {k: v for k, v in tiny_settings.items() if k not in ("benchmarks", "per_device_train_batch_size")}
    changes |= {
        "benchmarks": ["chain3", "chain6"],
        "save_steps": 1,
        "sandbox_warmup_steps": tiny_settings["sandbox_warmup_steps"],
    }
    options = (folder, arms, changes, 1)
    return options, run_study(*options)
