"""One process at a time: the second is refused by name, and no killed process leaves a lock behind."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from amir_grpo.system import locks
from amir_grpo.system.locks import Busy, locked

HOLD = """
import sys
from pathlib import Path
from amir_grpo.system.locks import locked
with locked(Path(sys.argv[1]), "training grpo"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.2)


@pytest.fixture
def holder(tmp_path):
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **streams, text=True)
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused_with_the_firsts_id_and_start(tmp_path, holder):
    with pytest.raises(Busy) as raised, locked(tmp_path, "training grpo"):
        pass
    message = str(raised.value)
    assert f"process {holder.pid} on " in message
    assert re.search(r"since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", message)
    assert "give another run_dir" in message


def test_a_killed_holder_leaves_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / ".locks" / "training-grpo.json").read_text())["pid"] == holder.pid, "a stale record"
    with locked(tmp_path, "training grpo"):
        record = json.loads((tmp_path / ".locks" / "training-grpo.json").read_text())
        assert record["pid"] == os.getpid()
    assert not (tmp_path / ".locks" / "training-grpo.json").exists()
