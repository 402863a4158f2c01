"""The commands of Slurm that are called, as far as they are: jobs begin at once, as processes of this machine.

    python fake_slurm.py sbatch|squeue|scancel|srun ARGUMENTS

FAKE_SLURM names the folder of the queue: a file for each job, with its name, and <number>.pid. `next` holds the number of
the next job; where there is `silent`, squeue fails.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

QUEUE = Path(os.environ["FAKE_SLURM"])


def sbatch(script):
    text = Path(script).read_text()
    if "--partition=none" in text:
        sys.exit("sbatch: error: invalid partition specified: none")
    number = (QUEUE / "next").read_text()
    (QUEUE / "next").write_text(str(int(number) + 1))
    (QUEUE / number).write_text(re.search(r"--job-name=(\S+)", text)[1])
    job = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
    job |= {"SLURM_JOB_NODELIST": "here", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    run = 'echo $$ >"$1.pid"; bash "$2"; rm -f "$1"'
    command = ["bash", "-c", run, "job", str(QUEUE / number), script]
    silence = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(command, env=os.environ | job, start_new_session=True, **silence)
    print("Submitted batch job", number)


def squeue(*_):
    if (QUEUE / "silent").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    for job in QUEUE.glob("[0-9]*"):
        if job.suffix != ".pid":
            print(job.name, job.read_text())


def scancel(number):
    (QUEUE / number).unlink(missing_ok=True)
    os.killpg(int((QUEUE / f"{number}.pid").read_text()), signal.SIGKILL)


def srun(_, *arguments):
    """`--unbuffered --output FILE --error FILE COMMAND`"""
    fill = {"%j": os.environ["SLURM_JOB_ID"], "%t": "0"}
    out, error = (re.sub("%[jt]", lambda m: fill[m[0]], name) for name in (arguments[1], arguments[3]))
    with open(out, "a") as to, open(error, "a") as errors:
        sys.exit(subprocess.run(arguments[4:], stdout=to, stderr=errors).returncode)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
