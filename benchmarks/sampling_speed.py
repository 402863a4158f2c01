"""Completions per second of the evaluation against the published loop: one problem at a time, 8 samples.

    python benchmarks/sampling_speed.py                         the sandbox policy, as `reproduce` makes it
    python benchmarks/sampling_speed.py --policy FOLDER_OR_ID   any policy, on its own chat template

Both sides sample the same problems from the same loaded policy at temperature 0.6, one after the other in each round, the
sandbox's in float64 on the CPU, as its runs do (`--dtype auto`: in float32);
the published loop is one call of `generate` with num_return_sequences=8 per problem, as its evaluation script has it.
Ours includes what it does beside: the log-probability of every completion. Writes data/results/sampling_speed.csv.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median

import pandas as pd
import torch

from amir_grpo.choices import DTYPES
from amir_grpo.policies.engines import Engine, TransformersEngine
from amir_grpo.policies.loading import load_policy, load_tokenizer
from amir_grpo.policies.sampling import draw_completions, tokenize_prompts
from amir_grpo.policies.source import find_policy
from amir_grpo.runs.opening import project_root
from amir_grpo.sandbox.base import WARMUP_SEEDS, base_policy
from amir_grpo.sandbox.policy import SandboxSpec
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import PolicySettings, settings_of
from amir_grpo.system.files import atomic_write

SAMPLES, TEMPERATURE = 8, 0.6


def published_loop(policy, tokenizer, problems, max_new_tokens: int) -> list[str]:
    """One problem at a time; returns the completions."""
    texts = []
    for prompt in tokenize_prompts(tokenizer, problems).values():
        ids = torch.tensor([prompt], device=policy.device)
        with torch.no_grad():
            output = policy.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                num_return_sequences=SAMPLES,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts += tokenizer.batch_decode(output[:, len(prompt) :], skip_special_tokens=True)
    return texts


def published_rate(policy, tokenizer, problems, max_new_tokens: int) -> float:
    """Completions per second of the published loop."""
    begin = time.perf_counter()
    texts = published_loop(policy, tokenizer, problems, max_new_tokens)
    return len(texts) / (time.perf_counter() - begin)


def our_rate(engine: Engine, problems, max_new_tokens: int, token_budget: int, seed: int) -> float:
    """Completions per second of the evaluation, by any engine, with all that it does beside."""
    begin = time.perf_counter()
    rows = draw_completions(
        engine,
        problems,
        SAMPLES,
        temperature=TEMPERATURE,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        seed=seed,
        token_budget=token_budget,
    )
    return len(rows) / (time.perf_counter() - begin)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", help="folder or Hub id; by default the sandbox's base policy")
    parser.add_argument("--dtype", choices=DTYPES, help="by default float64 for the sandbox's policy, else auto")
    parser.add_argument("--problems", type=int, default=100, help="of each benchmark of the profile sandbox")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--token_budget", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    root = project_root()
    where = arguments.policy or str(base_policy(SandboxSpec(seed=WARMUP_SEEDS[0]), root / "runs" / ".cache"))
    source = find_policy(where)
    dtype = arguments.dtype or ("auto" if arguments.policy else "float64")
    loading = PolicySettings(dtype=dtype, device="auto" if arguments.policy else "cpu")
    policy, tokenizer = load_policy(source.base, source.adapter, loading), load_tokenizer(source.base)
    policy.eval()
    engine = TransformersEngine(policy, tokenizer)
    rows = []
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        for family in settings_of("sandbox").evaluation.benchmarks:
            problems = load_sandbox(family, arguments.problems)
            rates: dict[str, list[float]] = {"published": [], "ours": []}
            for number in range(arguments.rounds):
                torch.manual_seed(number)
                rates["published"].append(published_rate(policy, tokenizer, problems, arguments.max_new_tokens))
                rates["ours"].append(
                    our_rate(engine, problems, arguments.max_new_tokens, arguments.token_budget, number)
                )
            ratios = pd.Series(rates["ours"]) / pd.Series(rates["published"])
            rows.append(
                {
                    "policy": "sandbox" if arguments.policy is None else arguments.policy,
                    "dtype": str(policy.dtype).removeprefix("torch."),
                    "benchmark": family,
                    "threads": threads,
                    "published_per_second": round(median(rates["published"]), 1),
                    "ours_per_second": round(median(rates["ours"]), 1),
                    "ratio": round(float(ratios.median()), 2),
                    "ratio_low": round(float(ratios.min()), 2),
                    "ratio_high": round(float(ratios.max()), 2),
                    "rounds": arguments.rounds,
                }
            )
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    if arguments.policy is None and arguments.dtype is None:
        path = root / "data" / "results" / "sampling_speed.csv"
        atomic_write(path, lambda part: table.to_csv(part, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
