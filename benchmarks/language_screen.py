"""What SmolLM2 can do with stories, before and after its warm-up: python benchmarks/language_screen.py [--problems 64].

Per policy and kind of story: pass@1 with its standard error over problems, the share of groups of eight completions that are
neither all right nor all wrong (GRPO learns from these alone), the share in the paper's format, the mean reward and its
standard deviation within a group, the mean length in tokens and the share that was cut. Held-out problems, temperature 1.
Rows that are in data/results/language_screen.csv already are not measured again: --anew does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amir_grpo.policies.engines import load_engine
from amir_grpo.policies.sampling import draw_completions
from amir_grpo.policies.smollm2 import base_policy
from amir_grpo.rewards import has_format, reward_functions
from amir_grpo.runs.opening import project_root
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import PolicySettings
from amir_grpo.system.files import atomic_write

KINDS = ("story1", "story2", "story3")
# (warm-up steps, worked examples in the prompt)
POLICIES = ((0, 0), (0, 1), (30, 0), (60, 0))
GROUP = 8


def screen(steps: int, shots: int, kind: str, problems: int, temperature: float) -> dict[str, Any]:
    """The row of one policy and one kind of story."""
    posed = load_sandbox(kind, problems, shots=shots)
    engine = load_engine("transformers", str(base_policy(steps, seed=1)), None, PolicySettings(device="cpu"))
    options = {"temperature": temperature, "top_p": 1.0, "max_new_tokens": 64, "seed": 0, "token_budget": 16_384}
    drawn = draw_completions(engine, posed, GROUP, label=f"{steps} steps, {shots} shots, {kind}", **options)
    answers = dict(zip(posed["id"], posed["answer"], strict=True))
    columns = {"answer": [answers[problem] for problem in drawn["problem_id"]]}
    rewards = {f.__name__: np.array(f(list(drawn["text"]), **columns)) for f in reward_functions()}
    right = (rewards["correctness"] > 0).reshape(-1, GROUP)
    total = sum(rewards.values()).reshape(-1, GROUP)
    rates = right.mean(axis=1)
    return {
        "warmup_steps": steps,
        "shots": shots,
        "kind": kind,
        "problems": len(right),
        "pass@1": 100 * np.mean(rates),
        "error": 100 * np.std(rates, ddof=1) / len(rates) ** 0.5,
        "mixed": 100 * np.mean([0 < row.sum() < GROUP for row in right]),
        "formatted": 100 * np.mean([has_format(text) for text in drawn["text"]]),
        "reward": total.mean(),
        "reward_std": total.std(axis=1, ddof=1).mean(),
        "tokens": drawn["tokens"].mean(),
        "cut": 100 * (drawn["finish_reason"] == "length").mean(),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=project_root() / "data" / "results" / "language_screen.csv")
    parser.add_argument("--anew", action="store_true")
    arguments = parser.parse_args()
    known = pd.read_csv(arguments.out) if arguments.out.exists() and not arguments.anew else pd.DataFrame()
    for steps, shots in POLICIES:
        for kind in KINDS:
            if (
                len(known)
                and ((known["warmup_steps"] == steps) & (known["shots"] == shots) & (known["kind"] == kind)).any()
            ):
                continue
            row = screen(steps, shots, kind, arguments.problems, arguments.temperature)
            known = pd.concat([known, pd.DataFrame([row])], ignore_index=True).round(2)
            atomic_write(arguments.out, lambda part, table=known: table.to_csv(part, index=False))
    print(known.to_string(index=False))


if __name__ == "__main__":
    main()
