"""What a step of a run costs, against a step of TRL's own GRPO trainer, and what AMIR-GRPO's preference term adds to it.

Three trainers take turns, each from the same policy with learning rate 0, in the same precision: TRL's `GRPOTrainer` as it
comes ("stock"), and the trainers of a run for both methods. A step is timed whole, and in its parts: drawing the
completions, and forward and backward passes; rewards and the rest are in the whole alone. Each number is the median of
five rounds' medians, each ratio the median of five rounds' ratios; the first step of a training is left out.

In the long-tailed case the completions are prescribed: lognormal lengths with a mean of a quarter of the limit, the same for
all trainers, on a policy of 1.3M parameters. No drawing is timed there. Peak memory is the growth of the process's peak
resident set over one training, the median of three fresh processes for each trainer (Linux).
Writes data/results/step_cost.csv; with --language, what the profile smollm2 costs, into language_step_cost.csv, in seconds
of CPU time: such a step is long enough for other work to come between.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback, set_seed
from trl import GRPOTrainer

from amir_grpo import mine_pairs, preference_weights
from amir_grpo.policies import smollm2
from amir_grpo.policies.backend import Backend
from amir_grpo.policies.loading import load_policy, load_tokenizer, lora_config
from amir_grpo.rewards import reward_functions
from amir_grpo.runs.opening import project_root
from amir_grpo.runs.training import run_trainer, trainer_config
from amir_grpo.sandbox.base import WARMUP_SEEDS, base_policy, warmup_seed
from amir_grpo.sandbox.policy import SandboxSpec, build_tokenizer
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import RunSettings, settings_of
from amir_grpo.system.files import atomic_write

TRAINERS = ("stock", "grpo", "amir_grpo")
ROUNDS = 5
STEPS = 3  # of a training; the first is left out
MEMORY_RUNS = 3
LONG_TAIL_SIGMA = 0.8  # of the logarithm of the lengths


@dataclass(frozen=True)
class Case:
    """One configuration of a rollout and its optimizer steps."""

    completions: int = 128
    micro_batches: int = 1
    accumulated: int = 1
    limit: int = 64
    long_tailed: bool = False
    memory: bool = False
    profile: str = "sandbox"

    def settings(self) -> RunSettings:
        """The profile's, but for the shape of the case and a learning rate that changes no weight."""
        own = settings_of(self.profile)
        return settings_of(
            self.profile,
            {
                "per_device_train_batch_size": self.completions // self.micro_batches,
                "steps_per_generation": self.micro_batches,
                "gradient_accumulation_steps": self.accumulated,
                "max_completion_length": self.limit,
                "max_seq_length": own.data.max_prompt_length + self.limit,
                "max_steps": STEPS * self.micro_batches // self.accumulated,
                "learning_rate": 1e-30,
            },
        )


CASES = {
    "default: 16 prompts × 8, one micro-batch": Case(memory=True),
    "8 micro-batches that cut the groups": Case(micro_batches=8, accumulated=8),
    "two optimizer steps per rollout": Case(micro_batches=2),
    "long-tailed lengths, 8 prompts × 8": Case(completions=64, limit=128, long_tailed=True, memory=True),
}
LANGUAGE = {
    "smollm2: 4 prompts × 8, four micro-batches": Case(32, 4, 4, limit=48, memory=True, profile="smollm2"),
}


class _Clock(TrainerCallback):
    """Time of each optimizer step by `now`, whole and in its parts, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.steps: list[dict[str, float]] = []
        self._parts: dict[str, float] = {}

    def watch(self, trainer: GRPOTrainer) -> None:
        """Let the methods of a trainer that make up a step add to the clock."""
        for part in ("_generate_single_turn", "_prepare_inputs", "training_step"):
            setattr(trainer, part, self._timed(part, getattr(trainer, part)))

    def _timed(self, part: str, method: Callable) -> Callable:
        def timed(*args, **kwargs):
            begin = self._now()
            result = method(*args, **kwargs)
            self._parts[part] = self._parts.get(part, 0.0) + self._now() - begin
            return result

        return timed

    def on_step_begin(self, args, state, control, **kwargs):
        self._parts.clear()
        self._begin = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        step = self._now() - self._begin
        passes = self._parts["training_step"] - self._parts["_prepare_inputs"]
        self.steps.append({"step": step, "drawing": self._parts.get("_generate_single_turn", 0.0), "passes": passes})


def make_trainer(kind: str, case: Case, base: Path, folder: Path) -> GRPOTrainer:
    """One of `TRAINERS` on the policy in `base`."""
    settings = case.settings()
    problems = load_sandbox(settings.data.dataset_name, 1000)
    backend = Backend("transformers", "chosen by the benchmark")
    config = trainer_config("grpo" if kind == "stock" else kind, settings, folder)
    if kind != "stock":
        trainer = run_trainer(settings, config, str(base), problems, backend)
    else:
        set_seed(settings.train.seed)
        policy = load_policy(str(base), None, settings.policy)
        trainer = GRPOTrainer(
            model=policy,
            reward_funcs=reward_functions(),
            args=config,
            train_dataset=problems,
            processing_class=load_tokenizer(str(base)),
            peft_config=lora_config(settings.policy, policy),
        )
        trainer.remove_callback(PrinterCallback)
    if case.long_tailed:
        trainer._generate_single_turn = _prescribed(trainer, case)
    return trainer


def long_tailed_lengths(number: int, limit: int) -> np.ndarray:
    """Lengths in tokens, (number,): lognormal with a mean of a quarter of the limit, and at most the limit."""
    stream = np.random.default_rng(0)
    mean = math.log(limit / 4) - LONG_TAIL_SIGMA**2 / 2
    return np.clip(stream.lognormal(mean, LONG_TAIL_SIGMA, number).round(), 2, limit).astype(int)


def _prescribed(trainer: GRPOTrainer, case: Case) -> Callable:
    """In place of drawing: random tokens of prescribed lengths, and log-probabilities as drawing would have known them."""
    stream = np.random.default_rng(1)
    end = trainer.processing_class.eos_token_id
    lengths = long_tailed_lengths(case.completions, case.limit)
    completions = [[*stream.integers(10, 60, length - 1).tolist(), end] for length in lengths]

    def prescribed(*args, **kwargs) -> tuple[list[list[int]], None]:
        trainer.sampled_logps = torch.full((case.completions, case.limit), -1.0)
        return completions, None

    return prescribed


def long_tailed_base(folder: Path) -> Path:
    """A random policy of 1.3M parameters with the sandbox's tokenizer, saved into `folder`."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def base_of(case: Case, scratch: Path) -> Path:
    """The policy that a case trains."""
    if case.long_tailed:
        return long_tailed_base(scratch)
    if case.profile == "smollm2":
        own = settings_of("smollm2").policy
        return smollm2.base_policy(own.smollm2_warmup_steps, warmup_seed(own.base_seed))
    return base_policy(SandboxSpec(seed=WARMUP_SEEDS[0]), project_root() / "runs" / ".cache")


def train(kind: str, case: Case, base: Path) -> list[dict[str, float]]:
    """The parts of each optimizer step of one training but for those of its first rollout, in seconds."""
    clock = _Clock(time.process_time if case.profile == "smollm2" else time.perf_counter)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(kind, case, base, Path(folder))
        clock.watch(trainer)
        trainer.add_callback(clock)
        trainer.train()
    return clock.steps[case.micro_batches // case.accumulated :]


def pair_milliseconds(completions: int, group_size: int, repeats: int = 200) -> float:
    """Median time of mining the pairs of one rollout and computing their weights, half of the completions right."""
    rewards = (torch.arange(completions) % 2).float() * 2
    logps = torch.randn(completions)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        preference_weights(logps, mine_pairs(rewards, group_size), 0.2)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * median(seconds)


def _resident(field: str) -> int:
    """VmRSS, the resident set now, or VmHWM, its peak, in kB. Not getrusage: its peak is inherited from the parent."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1])


def peak_growth(kind: str, case: str, base: Path) -> int:
    """Growth of the peak resident set over one training, in kB, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", json.dumps([kind, case, str(base)])],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def measure(name: str, case: Case, base: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """The row of one case; peak memory is that of as many processes, at most three."""
    measured = []
    for _ in range(rounds):
        steps = {kind: pd.DataFrame(train(kind, case, base)).median() for kind in TRAINERS}
        measured.append(pd.DataFrame(steps))
    stock, grpo, amir = (pd.DataFrame([dict(table[kind]) for table in measured]) for kind in TRAINERS)
    against_stock = amir / stock
    memory = {}
    if case.memory:
        memory = {
            k: median(peak_growth(k, name, base) for _ in range(min(rounds, MEMORY_RUNS)))
            for k in ("stock", "amir_grpo")
        }
    return {
        "case": name,
        "stock_seconds": round(stock["step"].median(), 3),
        "seconds": round(amir["step"].median(), 3),
        "ratio": round(against_stock["step"].median(), 3),
        "ratio_low": round(against_stock["step"].min(), 3),
        "ratio_high": round(against_stock["step"].max(), 3),
        "drawing_ratio": math.nan if case.long_tailed else round(against_stock["drawing"].median(), 3),
        "passes_ratio": round(against_stock["passes"].median(), 3),
        "grpo_ratio": round((amir["step"] / grpo["step"]).median(), 3),
        "memory_ratio": round(memory["amir_grpo"] / memory["stock"], 3) if memory else math.nan,
        "memory_gigabytes": round(memory["amir_grpo"] / 1e6, 2) if memory else math.nan,
        "pairs_milliseconds": round(pair_milliseconds(case.completions, 8), 3),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--language", action="store_true", help="the profile smollm2 instead, half an hour")
    parser.add_argument("--out", type=Path, help="default: data/results")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        kind, name, base = json.loads(arguments.memory_of)
        before = _resident("VmRSS")  # libraries
        train(kind, (CASES | LANGUAGE)[name], Path(base))
        print(_resident("VmHWM") - before)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, case in (LANGUAGE if arguments.language else CASES).items():
            rows.append(measure(name, case, base_of(case, Path(folder)), arguments.rounds))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    name = "language_step_cost.csv" if arguments.language else "step_cost.csv"
    folder = arguments.out or project_root() / "data" / "results"
    atomic_write(folder / name, lambda part: table.to_csv(part, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
