"""A pytest plugin for TRL's tests: local data sets, outcomes into a file and, where asked for, the other trainer.

`TRL_PARENT_OUTCOMES` names the file, `TRL_PARENT_TRAINER` is "GRPOTrainer" or "AmirGRPOTrainer".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import trl
from trl import import_utils

from amir_grpo import AmirGRPOConfig, AmirGRPOTrainer
from tools.trl_parent_tests.stand_ins import loader


@dataclass
class _Config(AmirGRPOConfig):
    """λ and δ under which every group of unequal rewards counts."""

    lambda_reg: float = 0.5
    reward_margin: float = 0.0


_outcomes: dict[str, list[str]] = {}


def _of_another_version(name: str) -> Callable[[], bool]:
    """What tests of another version of TRL ask TRL for: whether packages are there that no test here needs."""
    if name.startswith("is_") and name.endswith("_available"):
        return lambda: False
    raise AttributeError(name)


def pytest_configure(config: pytest.Config) -> None:
    import_utils.__getattr__ = _of_another_version
    datasets.load_dataset = loader(datasets.load_dataset)
    if os.environ["TRL_PARENT_TRAINER"] == "AmirGRPOTrainer":  # before the tests import both by name
        trl.GRPOTrainer, trl.GRPOConfig = AmirGRPOTrainer, _Config


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        text = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
        _outcomes[report.nodeid.partition("::")[2]] = [report.outcome, text.strip().partition("\n")[0][:200]]


def pytest_sessionfinish() -> None:
    Path(os.environ["TRL_PARENT_OUTCOMES"]).write_text(json.dumps(_outcomes, indent=1))
