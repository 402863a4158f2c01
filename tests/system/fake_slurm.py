"""The commands of Slurm that submitit calls, as far as it does: jobs begin at once, as processes of this machine.

    python fake_slurm.py sbatch|sacct|scancel|srun ARGUMENTS

FAKE_SLURM names a folder: <number>.job holds what was submitted, <number>.pid and <number>.ended tell how it goes.
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
    number = str(len(list(QUEUE.glob("*.job"))) + 7)
    kept = QUEUE / f"{number}.job"  # as Slurm does: submitit moves its own file away
    kept.write_text(text)
    job = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
    job |= {"SLURM_JOB_NODELIST": "here", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    run = 'echo $$ >"$1.pid"; bash "$2"; echo COMPLETED >"$1.ended"'
    command = ["bash", "-c", run, "job", str(QUEUE / number), str(kept)]
    silence = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(command, env=os.environ | job, start_new_session=True, **silence)
    print("Submitted batch job", number)


def sacct(*_):
    print("JobID|State|NodeList")
    for job in QUEUE.glob("*.job"):
        ended = job.with_suffix(".ended")
        print(f"{job.stem}|{ended.read_text().strip() if ended.exists() else 'RUNNING'}|here")


def scancel(number):
    (QUEUE / f"{number}.ended").write_text("CANCELLED")
    os.killpg(int((QUEUE / f"{number}.pid").read_text()), signal.SIGKILL)


def srun(_, *arguments):
    """`--unbuffered --output FILE --error FILE COMMAND`"""
    fill = {"%j": os.environ["SLURM_JOB_ID"], "%t": "0"}
    out, error = (re.sub("%[jt]", lambda m: fill[m[0]], name) for name in (arguments[1], arguments[3]))
    with open(out, "a") as to, open(error, "a") as errors:
        sys.exit(subprocess.run(arguments[4:], stdout=to, stderr=errors).returncode)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
