"""Completions in the form in which EleutherAI's lm-evaluation-harness logs samples, for those who read them with its tools.

    <policy>/results_<date>.json              what each benchmark came to
    <policy>/samples_<benchmark>_<date>.jsonl a line for each problem, as `--log_samples` writes it

The harness makes these lines to be read by `datasets.load_dataset("json", …)`. Their form is that of its version 0.4.13
(`lm_eval.result_schema`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from amir_grpo.answers import extract_answer
from amir_grpo.metrics import pass_at_k

FILTER = "extracted-answer"


def harness_samples(
    completions: pd.DataFrame,
    problems: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, str],
    generation: Mapping[str, Any],
    ks: Sequence[int],
) -> list[dict[str, Any]]:
    """The samples of one policy on one benchmark, one entry per problem.

    Args:
        completions: n rows per problem: columns problem_id, sample, text and correct.
        problems: id, question and answer of each, in the benchmark's order.
        prompts: The text that the policy continued, by problem id.
        generation: What the completions were drawn with, such as temperature.
        ks: The k of the metrics pass@k.
    """
    by_problem = {problem: rows.sort_values("sample") for problem, rows in completions.groupby("problem_id")}
    entries = []
    for number, problem in enumerate(problems):
        rows = by_problem[problem["id"]]
        texts, prompt = rows["text"].tolist(), prompts[problem["id"]]
        doc = {"id": problem["id"], "question": problem["question"], "answer": list(problem["answer"])}
        target = json.dumps(doc["answer"], ensure_ascii=False) if len(doc["answer"]) > 1 else doc["answer"][0]
        metrics = {f"pass@{k}": float(pass_at_k(rows["correct"].sum(), len(rows), k)) for k in ks}
        entries.append(
            {
                "doc_id": number,
                "doc": doc,
                "target": target,
                "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": dict(generation)}},
                "resps": [texts],
                "filtered_resps": [[extract_answer(text) or "" for text in texts]],
                "filter": FILTER,
                "metrics": list(metrics),
                "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
                "prompt_hash": _hash(prompt),
                "target_hash": _hash(target),
                **metrics,
            }
        )
    return entries


def harness_results(
    policy: str, samples: Mapping[str, list[dict[str, Any]]], generation: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """What the harness writes beside its samples: the mean of each metric, and its standard error over problems.

    One problem has none: N/A, as the harness has it.

    Args:
        policy: The policy's name.
        samples: Entries from `harness_samples`, by benchmark.
        generation: As in `harness_samples`.
        seed: Of the random streams of the completions.
    """
    results = {}
    for benchmark, entries in samples.items():
        values = pd.DataFrame([{name: entry[name] for name in entry["metrics"]} for entry in entries])
        results[benchmark] = {"alias": benchmark, "name": benchmark, "sample_len": len(entries)}
        for name in values:
            results[benchmark][f"{name},{FILTER}"] = float(values[name].mean())
            results[benchmark][f"{name}_stderr,{FILTER}"] = float(values[name].sem()) if len(values) > 1 else "N/A"
    metrics = {benchmark: entries[0]["metrics"] for benchmark, entries in samples.items()}
    return {
        "results": results,
        "configs": {
            name: {
                "task": name,
                "output_type": "generate_until",
                "repeats": len(entries[0]["resps"][0]),
                "generation_kwargs": dict(generation),
            }
            for name, entries in samples.items()
        },
        "versions": dict.fromkeys(samples, 0),
        "n-shot": dict.fromkeys(samples, 0),
        "higher_is_better": {name: dict.fromkeys(names, True) for name, names in metrics.items()},
        "n-samples": {name: {"original": len(e), "effective": len(e)} for name, e in samples.items()},
        "config": {"model": policy, "model_args": "", "random_seed": seed, "gen_kwargs": dict(generation)},
        "model_name": policy,
        "model_name_sanitized": policy,
    }


def _hash(text: str) -> str:
    """The harness' own: SHA-256 of the text."""
    return hashlib.sha256(text.encode()).hexdigest()
