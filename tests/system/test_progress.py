import time

import pytest

from amir_grpo.system import progress


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.REPORT_TO, str(tmp_path / "02_evaluate"))
    monkeypatch.setattr(progress, "_SECONDS", 0.01)
    return tmp_path / "02_evaluate"


def test_a_stage_is_a_bar_on_the_error_stream(capsys):
    with progress.stage("training grpo", total=3) as tick:
        for _ in range(3):
            tick(reward="0.42")
    out, err = capsys.readouterr()
    assert out == ""
    assert "training grpo: 100%" in err
    assert "3/3" in err
    assert "reward=0.42" in err


def test_a_stage_reports_instead_where_a_parent_asks_for_it(report, capsys):
    with progress.stage("sampling base on chain6", total=1200, done=200, unit="completion") as tick:
        assert report.read_text() == "sampling base on chain6, 200 of 1,200 completions"
        time.sleep(0.02)
        tick(500)
        assert report.read_text().startswith("sampling base on chain6, 700 of 1,200 completions, 0:00:00 left")
    assert report.read_text() == ""
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_reports_are_shown_on_a_terminal_and_in_a_log(report, tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.02)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    log = tmp_path / "log" / "reproduce.log"
    log.parent.mkdir()
    with progress.reports_shown(tmp_path / "reports", log) as say:
        (tmp_path / "reports" / "01_train_grpo").write_text("training grpo, 12 of 60 steps, 0:01:00 left")
        time.sleep(0.2)
        say("01_train_grpo 5 s")
    line = "01_train_grpo: training grpo, 12 of 60 steps, 0:01:00 left"
    out, err = capsys.readouterr()
    assert (f"\r\x1b[K{line}" in err) is terminal
    assert (line in out) is not terminal
    assert out.endswith("01_train_grpo 5 s\n")
    lines = log.read_text().splitlines()
    assert lines[0].endswith(f"  {line}")
    assert lines[-1].endswith("  01_train_grpo 5 s")
