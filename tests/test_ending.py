"""How a command ends where its output goes nowhere, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORK = "from amir_grpo.cli.ending import ending\nwith ending('plan'): print('λ = −1')"


def ended(stdout=subprocess.PIPE, work=WORK, **environment):
    return subprocess.run(
        [sys.executable, "-c", work],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def test_an_output_without_the_letters_gets_others():
    done = ended(PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip() == rb"\u03bb = \u22121"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_nobody_reads_ends_it_quietly(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = ended(writer, PYTHONUNBUFFERED=unbuffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_on_a_full_disk_is_said():
    with open("/dev/full", "wb") as full:
        done = ended(full)
    assert done.returncode == 2
    assert done.stderr.startswith(b"amir_grpo plan: ")
    assert b"No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE"])
def test_a_place_among_processes_that_is_no_number_is_named(variable):
    work = WORK.replace("print", "from amir_grpo.system.processes import world_size; world_size(); print")
    done = ended(work=work, **{variable: "first"})
    assert done.returncode == 2
    assert f"The environment's {variable} is 'first'; torchrun".encode() in done.stderr
