r"""Grade completions: one function around math-verify, which reads untrusted text in processes that can be killed.

`answers.extract_answer` finds the answer, and `answers.decide` settles cases that need no symbolic parser. The rest go
to math-verify in a worker process (`amir_grpo._grading_worker`) with limits on time and memory; a comparison that hits
a limit counts as wrong and is reported. Workers start when first needed and are reused.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amir_grpo.answers import decide, extract_answer, gold_answers

logger = logging.getLogger(__name__)

Limit = Literal["length", "time", "memory", "crash"]

# The longest gold answer of the benchmarks has 224 characters.
MAX_ANSWER_CHARACTERS = 2_000
CPU_SECONDS = 2  # per comparison; the slowest gold answer takes 0.3 s against itself
# for systems without CPU timers and for a worker that sleeps; generous, so that a busy machine changes no verdict
WALL_SECONDS = 10 * CPU_SECONDS
MEMORY_BYTES = 1 << 30
_START_SECONDS = 120
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one completion; it is true if the completion is right.

    `answer`: the text that was graded, None if the completion gives none. `limit`: the limit that the comparison hit,
    None if it hit none.
    """

    answer: str | None
    correct: bool
    limit: Limit | None = None

    def __bool__(self) -> bool:
        return self.correct


class Grader(contextlib.AbstractContextManager):
    """A pool of worker processes that grades completions; a context manager, safe to share between threads.

    A worker starts at the first comparison that needs it, and again after it was killed. A copy of a grader in a
    forked process starts its own workers.

    Args:
        workers: Number of worker processes, at least one.
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"A grader needs at least one worker, not {workers}.")
        self.workers = workers
        self._begin()

    def __exit__(self, *_: object) -> None:
        self.close()

    def grade(self, completions: Sequence[str], answers: Sequence[str | Sequence[str]]) -> list[Grade]:
        """Grade each completion; a grade is true if the completion is right.

        Args:
            completions: The texts that a policy wrote after the prompt.
            answers: For each completion, its gold answer (a text or a number), or several, any of which is right.

        Raises:
            ValueError: If the numbers of answers and completions differ.
            TypeError: If an answer is neither text nor number.
            RuntimeError: If a worker cannot be started.
        """
        if len(completions) != len(answers):
            raise ValueError(f"{len(completions)} completions cannot be graded against {len(answers)} answers.")
        golds = [tuple(gold_answers(answer)) for answer in answers]
        pairs = list(zip(map(extract_answer, completions), golds, strict=True))
        verdicts = {pair: _settle(*pair) for pair in dict.fromkeys(pairs)}
        # gold answers that are already ruled out go to no parser, which might decide otherwise
        left_open = {pair: (pair[0], verdict) for pair, verdict in verdicts.items() if isinstance(verdict, tuple)}
        if left_open:
            verdicts.update(zip(left_open, self._compare(list(left_open.values())), strict=True))
        limits = Counter(verdict for verdict in map(verdicts.get, pairs) if isinstance(verdict, str))
        if limits:
            counts = ", ".join(f"{limit} {count}" for limit, count in sorted(limits.items()))
            logger.warning("%d graded as wrong because they hit a limit of the grader (%s).", limits.total(), counts)
        ends = [(pair[0], verdicts[pair]) for pair in pairs]
        return [Grade(answer, end is True, end if isinstance(end, str) else None) for answer, end in ends]

    def close(self) -> None:
        """End the workers. The grader starts new ones when it is used again."""
        if self._pid == os.getpid():  # the workers are not a parent process's
            with self._lock:
                for worker in self._idle:
                    worker.kill()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle = [_Worker() for _ in range(self.workers)]
        self._ask_once = functools.lru_cache(_REMEMBERED)(self._ask)

    def _compare(self, pairs: list[tuple[str, tuple[str, ...]]]) -> list[bool | Limit]:
        if self._pid != os.getpid():  # forked: the workers and the lock belong to the parent
            self._begin()
        with self._lock, ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._ask_once, pairs))

    def _ask(self, pair: tuple[str, tuple[str, ...]]) -> bool | Limit:
        worker = self._idle.pop()  # atomic; there are as many workers as threads
        try:
            return worker.compare(*pair)
        finally:
            self._idle.append(worker)


def grade_many(completions: Sequence[str], answers: Sequence[str | Sequence[str]], workers: int = 2) -> list[Grade]:
    """Grade many completions in parallel with the shared grader of this process; see `Grader.grade`."""
    return _shared_grader(workers).grade(completions, answers)


def is_correct(completion: str, answer: str | Sequence[str]) -> bool:
    """Return whether a completion gives the gold answer, or one of several; see `grade_many`."""
    return grade_many([completion], [answer])[0].correct


@functools.cache
def _shared_grader(workers: int) -> Grader:
    grader = Grader(workers)
    atexit.register(grader.close)
    return grader


def _settle(answer: str | None, golds: tuple[str, ...]) -> bool | Limit | tuple[str, ...]:
    """Return the verdict, or the gold answers that only math-verify can compare with the answer."""
    if answer is None:
        return False
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return "length"
    verdicts = {gold: decide(answer, gold) for gold in golds}
    if True in verdicts.values():
        return True
    return tuple(gold for gold, verdict in verdicts.items() if verdict is None) or False


class _Worker:
    """The parent's side of one worker: a process that starts when needed, and again after it has ended."""

    _process: subprocess.Popen[bytes] | None = None

    def compare(self, answer: str, golds: tuple[str, ...]) -> bool | Limit:
        if self._process is None or self._process.poll() is not None:
            self._start()
        began = time.monotonic()
        with contextlib.suppress(OSError):  # the process has just ended and will not reply
            self._process.stdin.write(json.dumps([answer, golds]).encode() + b"\n")  # ASCII keeps every character
            self._process.stdin.flush()
        if reply := self._read(WALL_SECONDS):
            return json.loads(reply)
        code = self._process.wait()
        self.kill()
        # SIGKILL before the timeout comes from a system without memory; a worker fails (1) only on MemoryError
        causes = {-getattr(signal, "SIGPROF", 0): "time", -getattr(signal, "SIGKILL", 0): "memory", 1: "memory"}
        return "time" if time.monotonic() - began >= WALL_SECONDS else causes.get(code, "crash")

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError), self._process:  # exiting closes the pipes and waits
                self._process.kill()

    def _start(self) -> None:
        # A fresh interpreter, not a fork: the parent may hold a GPU, threads and gigabytes. -P keeps modules of the
        # working directory out; the package is imported from where this one was.
        root = str(Path(__file__).resolve().parents[1])
        arguments = (CPU_SECONDS, MEMORY_BYTES, *(path for path in sys.path if path and path != root))
        program = f"import sys; sys.path[:] = [{root!r}, *sys.argv[3:]]; "
        program += "from amir_grpo._grading_worker import serve; serve(*map(int, sys.argv[1:3]))"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # SymPy's order of terms must not vary between runs
            start_new_session=True,  # Ctrl-C in the terminal must only reach the parent
        )
        if not self._read(_START_SECONDS):
            self.kill()
            why = f"`{sys.executable} -c 'import amir_grpo._grading_worker'` shows why."
            raise RuntimeError(f"A grading worker could not be started.\n{why}")

    def _read(self, seconds: float) -> bytes:
        """Read a line; it is empty if the process ends, or is killed after `seconds`."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            return self._process.stdout.readline()
        finally:
            timer.cancel()
