"""Logs that are made to have one fault each, and healthy ones."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from amir_grpo import cli
from amir_grpo.doctor import diagnose, read_log
from amir_grpo.runs.training import _Steps


def log(steps=40, **columns):
    """A healthy AMIR-GRPO log of a rising reward, with some columns replaced."""
    stream = np.random.default_rng(0)
    healthy = {
        "step": np.arange(1, steps + 1),
        "reward": np.linspace(0.5, 1.5, steps) + stream.normal(0, 0.05, steps),
        "reward_std": 0.8,
        "loss": stream.normal(0, 1e-9, steps),
        "frac_reward_zero_std": 0.2,
        "completions/clipped_ratio": 0.05,
        "entropy": np.linspace(0.6, 0.3, steps),
        "preference/pairs": 60.0,
        "preference/lambda": 1.0,
        "preference/share": 0.2,
        "rewards/strict_format/mean": np.linspace(0.1, 0.5, steps),
        "rewards/correctness/mean": np.linspace(0.2, 1.2, steps),
    }
    return pd.DataFrame(healthy | columns)


NO_PAIRS = {"preference/pairs": 0.0, "preference/share": np.nan}
FAULTS = {
    "cut-off": {"completions/clipped_ratio": 0.97},
    "uniform": {"frac_reward_zero_std": 1.0},
    "no-pairs": NO_PAIRS,
    "share": {"preference/share": 0.0025, "preference/lambda": 0.01},
    "format": {"rewards/correctness/mean": 0.0, "rewards/strict_format/mean": np.linspace(0.02, 0.5, 40)},
    "entropy": {"entropy": np.geomspace(0.5, 0.001, 40)},
    "falling": {"reward": np.linspace(1.8, 0.8, 40)},
    "flat": {"reward": np.random.default_rng(1).normal(1, 0.1, 40)},
}


def test_a_pair_now_and_then_is_no_lack_of_pairs():
    seldom = np.where(np.arange(40) % 10 == 9, 4.0, 0.0)
    assert diagnose(log(**NO_PAIRS | {"preference/pairs": seldom})) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_nothing_else(name):
    found = diagnose(log(**FAULTS[name]))
    assert [finding.name for finding in found] == [name]
    assert str(found[0]).count("\n") == 2


def test_a_healthy_log_has_no_finding_and_what_is_not_logged_is_not_judged():
    grpo = log().drop(columns=[column for column in log() if column.startswith("preference/")])
    for healthy in (log(), grpo, log()[["reward"]], log(steps=7, **{"completions/clipped_ratio": 1.0})):
        assert diagnose(healthy) == []


def test_the_lambda_that_is_named_would_give_the_share():
    share, weight = 0.0025, 0.01
    (finding,) = diagnose(log(**FAULTS["share"]))
    named = float(finding.remedy.split(";")[1].split()[0])
    ratio = share / (1 - share) * named / weight  # the share's odds grow with lambda
    assert ratio / (1 + ratio) == pytest.approx(0.3, abs=0.01)


def test_a_training_warns_once_of_what_stops_it(capsys):
    steps = _Steps(SimpleNamespace(accelerator=None), lambda **shown: None)
    history = log(**FAULTS["cut-off"], **FAULTS["share"]).to_dict("records")
    for number in range(1, len(history) + 1):
        state = SimpleNamespace(log_history=history[:number], is_world_process_zero=True)
        steps.on_log(None, state, None, logs=history[number - 1])
    assert steps.shown == {"reward": f"{history[-1]['reward']:.2f}"}
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.startswith("After 8 logged steps: 97% of the completions reach max_completion_length.")


def test_logs_are_read_from_runs_and_from_transformers(tmp_path):
    for method in ("grpo", "amir_grpo"):
        (tmp_path / "run" / method).mkdir(parents=True)
        log(**FAULTS["uniform"]).to_csv(tmp_path / "run" / method / "log.csv", index=False)
    found = {name: len(diagnose(table)) for name, table in read_log(tmp_path / "run").items()}
    assert found == {"grpo": 1, "amir_grpo": 1}
    state = tmp_path / "out" / "checkpoint-40" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    history = [*log(**FAULTS["cut-off"]).to_dict("records"), {"step": 40, "train_runtime": 3.0}]
    state.write_text(json.dumps({"log_history": history}))
    for place in (state, state.parent, tmp_path / "out"):
        (table,) = read_log(place).values()
        assert len(table) == 40
        assert [finding.name for finding in diagnose(table)] == ["cut-off"]


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training log"):
        read_log(tmp_path)
    for name, text in [("trainer_state.json", '{"log_history": []}'), ("log.csv", "a,b\n1,2\n"), ("x.json", "[")]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="is not the log of a GRPO training"):
            read_log(tmp_path / name)


def test_a_log_that_is_too_short_is_not_called_healthy(tmp_path, capsys):
    log().head(4).to_csv(tmp_path / "log.csv", index=False)
    cli.main(["doctor", str(tmp_path / "log.csv")])
    assert "too short to judge, 4 of at least 8 logged steps" in capsys.readouterr().out
