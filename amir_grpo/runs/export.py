"""Export a trained policy, or all completions, of a run into a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from amir_grpo.answers import extract_answer
from amir_grpo.choices import POLICIES, POLICY_NAMES
from amir_grpo.metrics import pass_at_k
from amir_grpo.policies.source import copy_policy
from amir_grpo.problems import TRAINING_SETS
from amir_grpo.runs.stages import check_trained, write_table
from amir_grpo.system.files import atomic_folder, check_folder, explain_full_disk, write_text
from amir_grpo.system.progress import quiet
from amir_grpo.system.provenance import read_json, record_of, to_json

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run

_COMPLETION_COLUMNS = (
    "policy benchmark problem_id sample text tokens finish_reason logprob correct formatted confidence seed".split()
)
_CARD = """---
{metadata}
---

# {title}

{about} Made by [amir-grpo](https://github.com/amir-grpo/amir-grpo), after [arXiv 2601.03661](https://arxiv.org/abs/2601.03661).

{levels}

## Settings and provenance

```json
{record}
```
"""


def export_policy(run: Run, method: str, folder: Path, merged: bool = False, replace_old: bool = False) -> Path:
    """Save a trained policy with its tokenizer and a model card into a folder.

    Args:
        run: A run that has trained `method`.
        method: grpo or amir_grpo.
        folder: The folder to write, which must not exist unless `replace_old`.
        merged: Save the whole policy in float32, which loads without PEFT, instead of the adapter. In 16 bits much of
            the training would be rounded away.
        replace_old: Replace an existing folder once the new one is complete.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If the method has not been trained, one of its files is damaged, or the adapter could not be loaded
            elsewhere.
    """
    _check_new(folder, "out", replace_old)
    trained = run.folder / method
    check_trained(trained)
    if not run.is_trained(method):
        raise ValueError(
            f"{run.folder} holds no trained {method}.\nTrain it first: amir_grpo train --method {method}."
        )
    if not merged and Path(run.base()).is_dir():
        raise ValueError(f"The adapter's base policy is a local folder, {run.base()}: export it merged.")
    with explain_full_disk(folder.parent), atomic_folder(folder, replace_old) as beside:
        copy_policy(trained, beside, adapter=not merged)
        if merged:
            from amir_grpo.policies.loading import merged_policy

            with quiet():
                merged_policy(run.base(), trained, run.settings.policy).save_pretrained(beside)
        write_text(beside / "README.md", model_card(run, method, merged))
    return folder


def model_card(run: Run, method: str, merged: bool = False) -> str:
    """Describe a trained policy in Markdown: metadata for the Hub, any results, settings and provenance."""
    from huggingface_hub import ModelCardData

    s, known = run.settings, _public_name(run)
    trained_on = TRAINING_SETS.get(s.data.dataset_name)
    metadata = ModelCardData(
        library_name="transformers" if merged else "peft",
        base_model=known if "/" in known else None,
        datasets=[trained_on.hub_id if trained_on else s.data.dataset_name],
        tags=["trl", "grpo", *(["amir-grpo"] if method == "amir_grpo" else [])],
        model_name=POLICY_NAMES[method],
    )
    kind = "A whole policy in float32, its adapter merged" if merged else "A LoRA adapter"
    levels, evaluated = "Not evaluated.", run.folder / "tables" / "policies.csv"
    if evaluated.is_file():
        table = pd.read_csv(evaluated)
        table = table[table["policy"].isin(["base", method]) & table["quantity"].str.startswith(("pass@", "greedy"))]
        columns = ["benchmark", "quantity", "policy", "estimate", "estimate_low", "estimate_high"]
        levels = "Results in percent, with 95 % intervals over problems; they do not cover another training.\n\n"
        levels += _markdown(columns, table[columns].round(1).to_numpy())
    return _CARD.format(
        metadata=metadata.to_yaml(),
        title=f"{POLICY_NAMES[method]} on {known}",
        about=f"{kind}, trained for {s.train.max_steps} steps on {s.data.dataset_name}.",
        levels=levels,
        record=_record(run, training=read_json(run.folder / method / "stage.json")),
    )


def export_results(run: Run, folder: Path) -> Path:
    """Save the completions of an evaluated run into a new folder.

        README.md            the data card
        completions.parquet  one row per completion
        lm_eval/             the same in the format of lm-evaluation-harness, one file per policy and benchmark

    Args:
        run: A run whose policies have been evaluated on all its benchmarks.
        folder: The folder to write, which must not exist.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If a policy has not been evaluated.
    """
    _check_new(folder, "results")
    for policy, benchmark in product(POLICIES, run.settings.evaluation.benchmarks):
        if not run.evaluation.is_complete(policy, benchmark):
            raise ValueError(
                f"{run.folder} holds no completions of {POLICY_NAMES[policy]} on {benchmark} yet.\n"
                f"Evaluate it first: python -m amir_grpo evaluate --run_dir {run.folder}."
            )
    from huggingface_hub import DatasetCardData

    samples = run.samples()
    kept = samples[[column for column in _COMPLETION_COLUMNS if column in samples]]
    levels = kept.groupby(["benchmark", "policy"], sort=False)["correct"].mean().mul(100).round(1).unstack()
    files = [{"config_name": "completions", "data_files": "completions.parquet"}]
    names = ", ".join(POLICY_NAMES.values())
    card = _CARD.format(
        metadata=DatasetCardData(configs=files, tags=["amir-grpo", "grpo", "evaluation"]).to_yaml(),
        title=f"What {names} answered",
        about="One training of each method; another seed gives other completions. `logprob` is a sum over tokens, in "
        "nats, at temperature 1; `correct` is math-verify's. `lm_eval/` holds the same, with questions and answers, "
        "which are under the benchmarks' own licences.",
        levels="pass@1 in percent:\n\n" + _markdown(["benchmark", *levels.columns], levels.itertuples()),
        record=_record(run),
    )
    with explain_full_disk(folder.parent), atomic_folder(folder) as beside:
        write_table(beside / "completions.parquet", kept)
        for path, entries in _harness_files(run, samples):
            write_text(beside / "lm_eval" / path, "".join(json.dumps(entry) + "\n" for entry in entries))
        write_text(beside / "README.md", card)
    return folder


def _check_new(folder: Path, option: str, may_exist: bool = False) -> None:
    if folder.exists() and not may_exist:
        raise FileExistsError(f"{folder} exists already.\nGive a folder that does not.")
    check_folder(folder, option)


def _public_name(run: Run) -> str:
    """Return the base policy's id on the Hub, or the last part of its path, which tells nothing about this machine."""
    name = run.settings.policy.model_name
    return Path(name).name if Path(name).is_dir() else name


def _record(run: Run, **more: Any) -> str:
    """Return a run's settings and provenance for a card, as JSON."""
    record = record_of(run.folder)
    settings = record["settings"] | {"model_name": _public_name(run)}
    kept = {name: record[name] for name in ("profile", "problems", "provenance")}
    return to_json({**kept, "settings": settings, **more}).strip()


def _markdown(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a table in Markdown."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def harness_samples(
    completions: pd.DataFrame,
    problems: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, str],
    generation: Mapping[str, Any],
    ks: Sequence[int],
) -> list[dict[str, Any]]:
    """Convert completions of one policy on one benchmark to the sample format of lm-evaluation-harness 0.4.13.

    Args:
        completions: n rows per problem: columns problem_id, sample, text and correct.
        problems: id, question and answer of each, in the benchmark's order.
        prompts: The text that the policy continued, by problem id.
        generation: Settings that the completions were drawn with, such as temperature.
        ks: The k of the metrics pass@k.

    Returns:
        One entry per problem.
    """
    by_problem = {problem: rows.sort_values("sample") for problem, rows in completions.groupby("problem_id")}
    entries = []
    for number, problem in enumerate(problems):
        rows, prompt = by_problem[problem["id"]], prompts[problem["id"]]
        doc = {"id": problem["id"], "question": problem["question"], "answer": list(problem["answer"])}
        target = json.dumps(doc["answer"], ensure_ascii=False) if len(doc["answer"]) > 1 else doc["answer"][0]
        metrics = {f"pass@{k}": float(pass_at_k(rows["correct"].sum(), len(rows), k)) for k in ks}
        hashed = {"doc": json.dumps(doc, indent=2, ensure_ascii=False), "prompt": prompt, "target": target}
        entries.append(
            {
                "doc_id": number,
                "doc": doc,
                "target": target,
                "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": dict(generation)}},
                "resps": [rows["text"].tolist()],
                "filtered_resps": [[extract_answer(text) or "" for text in rows["text"]]],
                "filter": "extracted-answer",
                "metrics": list(metrics),
                **{f"{name}_hash": hashlib.sha256(text.encode()).hexdigest() for name, text in hashed.items()},
                **metrics,
            }
        )
    return entries


def _harness_files(run: Run, samples: pd.DataFrame) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each file of samples: its path, named as the harness does, and its entries."""
    from amir_grpo.policies.loading import load_tokenizer

    e = run.settings.evaluation
    tokenizer = load_tokenizer(run.base(), run.settings.policy.trust_remote_code)
    generation = {"until": [], "do_sample": True, "temperature": e.eval_temperature, "top_p": e.eval_top_p}
    generation["max_gen_toks"] = e.eval_max_new_tokens
    date = record_of(run.folder)["ended"].partition("+")[0].replace(":", "-")
    for (policy, benchmark), rows in samples.groupby(["policy", "benchmark"], sort=False):
        problems = run.problems(benchmark).to_list()
        prompts = {
            row["id"]: tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            for row in problems
        }
        yield f"{policy}/samples_{benchmark}_{date}.jsonl", harness_samples(rows, problems, prompts, generation, e.ks)
