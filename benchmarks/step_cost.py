"""What an AMIR-GRPO step costs beside a GRPO step, on the sandbox's base policy, and what the pairs alone cost.

    python benchmarks/step_cost.py [--rounds 5] [--steps 8]

Both methods run with learning rate 0 from the same seed, so that they see the same prompts and completions step by
step; rounds of the two alternate, and the first step of each is left out. A step is timed whole: rollout, rewards,
preference, forward, backward. Each ratio is the median over the pairs of equal steps. Peak memory is the growth of the
process's peak resident set over training, median of five fresh processes a method (Linux).
Writes data/results/step_cost.csv.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from amir_grpo import mine_pairs, preference_weights
from amir_grpo.policies.loading import load_policy, load_tokenizer, lora_config
from amir_grpo.rewards import reward_functions
from amir_grpo.runs.locations import project_root
from amir_grpo.sandbox.base import base_policy
from amir_grpo.sandbox.policy import SandboxSpec
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.system.files import atomic_write
from amir_grpo.trainer import AmirGRPOConfig, AmirGRPOTrainer

COMPLETIONS = 128
# name -> G, micro-batches of a rollout, micro-batches of an optimizer step
CASES = {
    "default: 16 prompts × 8, one micro-batch": (8, 1, 1),
    "8 micro-batches that cut the groups": (8, 8, 8),
    "32 micro-batches that cut the groups": (8, 32, 32),
    "two optimizer steps a rollout": (8, 2, 1),
    "4 prompts × 32": (32, 1, 1),
    "1 prompt × 128": (128, 1, 1),
}


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._begin)


def step_seconds(method: str, case: str, base: Path, steps: int) -> list[float]:
    """Wall time of each optimizer step of one training with learning rate 0."""
    group_size, micro_batches, accumulation = CASES[case]
    set_seed(0)
    values = {
        "per_device_train_batch_size": COMPLETIONS // micro_batches,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": micro_batches,
        "num_generations": group_size,
        "max_steps": steps,
        "learning_rate": 0.0,
        "max_completion_length": 64,
        "loss_type": "grpo",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        if method == "grpo":
            trainer_class, config = GRPOTrainer, GRPOConfig(folder, **values)
        else:
            trainer_class, config = AmirGRPOTrainer, AmirGRPOConfig(folder, reward_margin=1.5, **values)
        trainer = trainer_class(
            model=load_policy(str(base)),
            reward_funcs=reward_functions(),
            args=config,
            train_dataset=load_sandbox("sandbox", 1000),
            processing_class=load_tokenizer(str(base)),
            peft_config=lora_config(16, 16),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds


def pair_milliseconds(group_size: int, repeats: int = 200) -> float:
    """Median time of mining the pairs of one rollout and computing their weights, half of the completions right."""
    rewards = (torch.arange(COMPLETIONS) % 2).float() * 2
    logps = torch.randn(COMPLETIONS)
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


def peak_growth(method: str, case: str, base: Path, steps: int) -> int:
    """Growth of the peak resident set over one training, in kB, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", json.dumps([method, case, str(base), steps])],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        method, case, base, steps = json.loads(arguments.memory_of)
        before = _resident("VmRSS")  # libraries
        step_seconds(method, case, Path(base), steps)
        print(_resident("VmHWM") - before)
        return
    base = base_policy(SandboxSpec(), project_root() / "runs" / ".cache")
    rows = []
    for case, (group_size, _, _) in CASES.items():
        pairs: list[tuple[float, float]] = []
        for _ in range(arguments.rounds):
            grpo, amir = (step_seconds(m, case, base, arguments.steps)[1:] for m in ("grpo", "amir_grpo"))
            pairs += zip(grpo, amir, strict=True)
        grpo_step = median(g for g, _ in pairs)
        memory = {m: median(peak_growth(m, case, base, 2) for _ in range(5)) for m in ("grpo", "amir_grpo")}
        ratios = pd.Series([a / g for g, a in pairs])
        rows.append(
            {
                "case": case,
                "grpo_seconds": round(grpo_step, 4),
                "ratio": round(float(ratios.median()), 3),
                "ratio_low": round(float(ratios.quantile(0.25)), 3),
                "ratio_high": round(float(ratios.quantile(0.75)), 3),
                "steps": len(pairs),
                "pairs_percent": round(100 * pair_milliseconds(group_size) / 1e3 / grpo_step, 3),
                "peak_memory_ratio": round(memory["amir_grpo"] / memory["grpo"], 3),
            }
        )
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    path = project_root() / "data" / "results" / "step_cost.csv"
    atomic_write(path, lambda part: table.to_csv(part, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
