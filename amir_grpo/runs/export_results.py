"""Export what a run's policies answered: a row for each problem, all completions, and a card that says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd

from amir_grpo.choices import POLICIES, POLICY_NAMES
from amir_grpo.runs.harness import harness_results, harness_samples
from amir_grpo.system.files import atomic_folder, atomic_write, check_folder, explain_full_disk, write_text
from amir_grpo.system.provenance import record_of, to_json

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run

_TEMPLATES = Path(__file__).with_name("templates")
_COMPLETION_COLUMNS = (
    "policy benchmark problem_id sample text tokens finish_reason logprob correct formatted confidence seed".split()
)


def export_results(run: Run, folder: Path) -> Path:
    """Save the results of a run that has been evaluated into a new folder.

        README.md            the data card: what was evaluated, with what, and what each column is
        problems.parquet     a row for each policy and problem
        completions.parquet  a row for each completion
        lm_eval/             the completions as the lm-evaluation-harness logs them (`amir_grpo.runs.harness`)

    Args:
        run: All its policies have been evaluated on all its benchmarks.
        folder: Must not exist.

    Raises:
        FileExistsError: If the folder is there.
        ValueError: If a policy has not been evaluated.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: give a folder that does not exist.")
    check_folder(folder, "results")
    benchmarks = run.settings.evaluation.benchmarks
    missing = [(p, b) for p in POLICIES for b in benchmarks if not run.evaluation.is_complete(p, b)]
    if missing:
        raise ValueError(
            f"{run.folder} holds no completions of {POLICY_NAMES[missing[0][0]]} on {missing[0][1]} yet.\n"
            f"Evaluate it first: python -m amir_grpo evaluate --run_dir {run.folder}."
        )
    samples, greedy = run.samples(), run.samples(greedy=True)
    problems = {name: run.problems(name).to_list() for name in benchmarks}
    with explain_full_disk(folder.parent), atomic_folder(folder) as beside:
        table = problem_results(samples, greedy, problems)
        atomic_write(beside / "problems.parquet", lambda part: table.to_parquet(part, index=False))
        kept = samples[[column for column in _COMPLETION_COLUMNS if column in samples]]
        atomic_write(beside / "completions.parquet", lambda part: kept.to_parquet(part, index=False))
        _save_for_harness(run, samples, problems, beside / "lm_eval")
        write_text(beside / "README.md", render_data_card(record_of(run.folder), table, "confidence" in samples))
    return folder


def problem_results(
    samples: pd.DataFrame, greedy: pd.DataFrame, problems: Mapping[str, Iterable[Mapping[str, Any]]]
) -> pd.DataFrame:
    """A row for each policy, benchmark and problem.

    Columns policy, benchmark, problem_id, question, answers, samples (n), correct (of n), greedy_correct, tokens (mean),
    truncated and formatted (numbers of completions), logprob_per_token (mean over completions, nats) and seed.

    Args:
        samples, greedy: Completions, from `amir_grpo.runs.run.Run.samples`.
        problems: id, question and answer of each, by benchmark.
    """
    key = ["policy", "benchmark", "problem_id"]
    rows = samples.assign(
        truncated=samples["finish_reason"] == "length",
        logprob_per_token=samples["logprob"] / samples["tokens"].clip(lower=1),
    )
    table = (
        rows.groupby(key, sort=False)
        .agg(
            samples=("correct", "size"),
            correct=("correct", "sum"),
            tokens=("tokens", "mean"),
            truncated=("truncated", "sum"),
            formatted=("formatted", "sum"),
            logprob_per_token=("logprob_per_token", "mean"),
            seed=("seed", "first"),
        )
        .reset_index()
    )
    once = greedy[[*key, "correct"]].rename(columns={"correct": "greedy_correct"})
    texts = [
        {"benchmark": name, "problem_id": row["id"], "question": row["question"], "answers": list(row["answer"])}
        for name, of_benchmark in problems.items()
        for row in of_benchmark
    ]
    table = table.merge(once, on=key, validate="one_to_one").merge(
        pd.DataFrame(texts), on=key[1:], validate="many_to_one"
    )
    order = [*key, "question", "answers", "samples", "correct", "greedy_correct", "tokens", "truncated", "formatted"]
    return table[[*order, "logprob_per_token", "seed"]]


def render_data_card(record: Mapping[str, Any], table: pd.DataFrame, calibrated: bool) -> str:
    """Markdown: metadata for the Hub, what was evaluated and how, what each column is, provenance.

    Args:
        record: Of the run (`amir_grpo.system.provenance.record_of`).
        table: From `problem_results`.
        calibrated: Whether completions state a confidence.
    """
    solved = table.assign(percent=100 * table["correct"] / table["samples"])
    levels = solved.groupby(["benchmark", "policy"], sort=False)["percent"].mean().unstack()[list(POLICIES)]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), undefined=jinja2.StrictUndefined)
    model = record["settings"]["model_name"]
    return environment.get_template("data_card.md").render(
        settings=record["settings"],
        model=Path(model).name if Path(model).is_dir() else model,
        profile=record["profile"],
        problems=[p for p in record["problems"] if p["set"] in set(table["benchmark"])],
        names=[POLICY_NAMES[policy] for policy in levels],
        levels=[(benchmark, [f"{value:.1f}" for value in row]) for benchmark, row in levels.iterrows()],
        versions={name: version for name, version in record["provenance"]["packages"].items() if version},
        ended=record["ended"],
        calibrated=calibrated,
    )


def _save_for_harness(
    run: Run, samples: pd.DataFrame, problems: Mapping[str, list[Mapping[str, Any]]], folder: Path
) -> None:
    from amir_grpo.policies.loading import load_tokenizer

    s = run.settings
    tokenizer = load_tokenizer(run.base(), s.policy.trust_remote_code)
    generation = {
        "until": [],
        "do_sample": True,
        "temperature": s.evaluation.eval_temperature,
        "top_p": s.evaluation.eval_top_p,
        "max_gen_toks": s.evaluation.eval_max_new_tokens,
    }
    date = record_of(run.folder)["ended"].partition("+")[0].replace(":", "-")
    prompts = {
        row["id"]: tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        for of_benchmark in problems.values()
        for row in of_benchmark
    }
    for policy in POLICIES:
        entries = {}
        for name, of_benchmark in problems.items():
            rows = samples[(samples["policy"] == policy) & (samples["benchmark"] == name)]
            entries[name] = harness_samples(rows, of_benchmark, prompts, generation, s.evaluation.ks)
            lines = "".join(json.dumps(entry) + "\n" for entry in entries[name])
            write_text(folder / policy / f"samples_{name}_{date}.jsonl", lines)
        results = harness_results(policy, entries, generation, s.train.seed)
        write_text(folder / policy / f"results_{date}.json", to_json(results))
