"""Programs that train in one process or several, started as `python` or torchrun start them, or forked.

What is forked has imported everything, which else costs each process seconds; torchrun's own agent starts the two and
watches over them all the same.
"""

import ctypes
import os
import runpy
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from amir_grpo.system.processes import PR_SET_PDEATHSIG

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def started(program, words, processes, environment, said):
    """A program of its own: a script, or the package. What it says goes to a file."""
    place = [str(program)] if isinstance(program, Path) else ["-m", program]
    launcher = TORCHRUN if processes == 2 else ()
    with said.open("w") as out:
        return subprocess.Popen(
            [sys.executable, *launcher, *place, *words],
            env=os.environ | ON_CPU | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def forked(server, program, words, processes, environment, said):
    """The same from the tests' forking server: as one process, or as torchrun and two."""
    said.touch()
    process = server.Process(target=_launch, args=(program, words, processes, ON_CPU | environment, said))
    process.start()
    return process


def exit_code(process):
    """Of a program of either kind, once it has ended."""
    if isinstance(process, subprocess.Popen):
        return process.wait()
    process.join()
    return process.exitcode


def _launch(program, words, processes, environment, said):
    os.environ |= environment
    with said.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    if processes == 1:
        _run(program, words)
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
    )
    elastic_launch(config, _run)(program, words)


def _run(program, words):
    if sys.platform == "linux":  # torchrun's functions end with their launcher, programs do not
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
    sys.argv[1:] = words
    if isinstance(program, Path):
        runpy.run_path(str(program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
