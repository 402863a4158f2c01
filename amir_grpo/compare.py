"""Compare two sets of results, of this package or of other tools, paired by problem.

    python -m amir_grpo compare A B [--html FILE] [--json FILE]

A and B are `samples_*.jsonl` of lm-evaluation-harness (`--log_samples`), details of lighteval (Parquet), a run folder
or an export of this package (`runs/sandbox:grpo` names a policy), or a CSV with the columns problem and right, and
optionally benchmark, n, seed and policy.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from amir_grpo.metrics import compare, holm

# One row per benchmark, reading, seed and problem: `right` of `n` samples.
COLUMNS = ["benchmark", "reading", "seed", "problem", "right", "n"]
_DATE = re.compile(r"_\d{4}-\d\d-\d\dT.*$")  # at the end of file names of lm-evaluation-harness and lighteval
_METRICS = ("exact_match", "acc", "acc_norm", "pass@1", "extractive_match", "math_verify")


def read_results(place: str) -> pd.DataFrame:
    """Read results, one row per benchmark, reading, seed and problem (`COLUMNS`).

    A reading is a way to extract answers from completions, such as strict-match or flexible-extract in
    lm-evaluation-harness. A problem is named by a hash of its text, or by its id if the log has no text.

    Args:
        place: A file or folder; `PATH:POLICY` names one of several policies.

    Raises:
        FileNotFoundError: If the path does not exist or holds no readable results.
        ValueError: If a file is damaged or ambiguous.
    """
    path, policy = Path(place).expanduser(), ""
    if not path.exists() and ":" in place:
        name, policy = place.rsplit(":", 1)
        path = Path(name).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{place} does not exist.\nGive a file or folder of results, or PATH:POLICY.")
    kinds = [(pattern, read, files) for pattern, read in _READERS if (files := _files(path, pattern))]
    if not kinds:
        raise FileNotFoundError(
            f"{place} holds no results that can be read.\n"
            "Give samples_*.jsonl of lm-evaluation-harness, details_*.parquet of lighteval, a run or an export of this "
            "package, or a CSV with the columns problem and right."
        )
    (pattern, read, files), *others = kinds
    if other := next((name for name, reads, _ in others if read in _LOGS and reads in _LOGS), None):
        raise ValueError(f"{place} holds {pattern} and {other}: logs of two tools.\nGive the folder of one of them.")
    tables = []
    for file in files:
        try:
            tables.append(read(file))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
            raise ValueError(
                f"{file} cannot be read as results: {type(error).__name__}: {str(error).splitlines()[0][:120]}\n"
                "Check that it is complete and what its name says."
            ) from error
    return _checked(_one_policy(pd.concat(tables, ignore_index=True), policy, place), place)


def _files(path: Path, pattern: str) -> list[Path]:
    if path.is_dir():
        return [file for file in sorted(path.rglob(pattern)) if ".greedy" not in file.name]
    return [path] if path.match(pattern) else []


def _one_policy(table: pd.DataFrame, policy: str, place: str) -> pd.DataFrame:
    names = sorted(table["policy"].dropna().unique()) if "policy" in table else []
    if policy and policy not in names:
        raise ValueError(f"{place} has no policy {policy!r}.\nIt has: {', '.join(names) or 'no names of policies'}.")
    if not policy and len(names) > 1:
        raise ValueError(f"{place} holds the policies {', '.join(names)}.\nName one, as {place}:{names[0]}.")
    return table[table["policy"] == policy] if policy else table


def _checked(table: pd.DataFrame, place: str) -> pd.DataFrame:
    defaults = {"benchmark": "results", "reading": "", "seed": 0, "n": 1}
    table = table.assign(**{name: value for name, value in defaults.items() if name not in table})[COLUMNS]
    right, n = (pd.to_numeric(table[name], errors="coerce") for name in ("right", "n"))
    wrong = ~((right >= 0) & (right <= n) & (n >= 1))
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ValueError(
            f"{place}: problem {row['problem']!r} has right={row['right']} of n={row['n']}.\n0 <= right <= n."
        )
    twice = table.duplicated(COLUMNS[:4])
    if twice.any():
        row = table[twice].iloc[0]
        raise ValueError(
            f"{place}: problem {row['problem']!r} of {row['benchmark']} is there twice.\n"
            "Give the results of one evaluation, or a column seed that tells them apart."
        )
    return table.assign(right=right, n=n).reset_index(drop=True)


# --- readers: from a file to rows of COLUMNS, with a column policy if the file has several ---------------------------


def _harness(file: Path) -> pd.DataFrame:
    """Read samples of lm-evaluation-harness, one line per problem and filter: `samples_<task>_<date>.jsonl`."""
    rows = []
    for line in map(json.loads, filter(str.strip, file.read_text(encoding="utf-8").splitlines())):
        named = line.get("metrics") or [name for name in _METRICS if name in line]
        metric = next((name for name in _METRICS if name in named), named[0])
        n = len(line["filtered_resps"][0]) if metric == "pass@1" and isinstance(line["filtered_resps"][0], list) else 1
        problem = line.get("doc_hash") or _hash(line["doc"])
        rows.append({"reading": line.get("filter", ""), "problem": problem, "right": n * float(line[metric]), "n": n})
    return pd.DataFrame(rows).assign(benchmark=_DATE.sub("", file.stem.removeprefix("samples_")))


def _lighteval(file: Path) -> pd.DataFrame:
    """Read details of lighteval, one row per problem: `details_<task>_<date>.parquet`."""
    details = pd.read_parquet(file)
    metrics = details["metric" if "metric" in details else "metrics"]
    documents = details["doc"] if "doc" in details else details["full_prompt"]
    rows = []
    for document, values in zip(documents, metrics, strict=True):
        values = {name: value for name, value in values.items() if value is not None}
        text = (document.get("query") or document.get("id")) if isinstance(document, dict) else document
        name = next((name for key in _METRICS for name in values if name.startswith(key)), next(iter(values)))
        # a mean over the samples of a problem counts as a share of one sample
        rows.append({"problem": _hash(text), "reading": name, "right": float(values[name]), "n": 1})
    return pd.DataFrame(rows).assign(benchmark=_DATE.sub("", file.stem.removeprefix("details_")))


def _completions(file: Path) -> pd.DataFrame:
    """Read completions: samples/<policy>/<benchmark>.parquet of a run, completions.parquet of an export."""
    samples = pd.read_parquet(file, columns=["policy", "benchmark", "problem_id", "correct", "formatted"])
    readings = {"extracted": samples["correct"], "strict-format": samples["correct"] & samples["formatted"]}
    rows = pd.concat(
        samples.rename(columns={"problem_id": "problem"}).assign(reading=reading, right=right)
        for reading, right in readings.items()
    )
    key = ["policy", "benchmark", "reading", "problem"]
    return rows.groupby(key, observed=True)["right"].agg(right="sum", n="size").reset_index()


def _table(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file)
    if missing := {"problem", "right"} - set(table):
        raise ValueError(f"no column {' or '.join(sorted(missing))}; it has {', '.join(map(str, table.columns))}")
    return table.assign(problem=table["problem"].astype(str))


def _hash(document: Any) -> str:
    text = document if isinstance(document, str) else json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


_READERS: list[tuple[str, Callable[[Path], pd.DataFrame]]] = [
    ("samples/*/*.parquet", _completions),  # first, as a run may hold an export of earlier samples
    ("completions.parquet", _completions),
    ("samples_*.jsonl", _harness),
    ("details_*.parquet", _lighteval),
    ("*.csv", _table),
]
_LOGS = (_harness, _lighteval)
_POINTS = ["new", "old", "gain", "low", "high", "detectable"]  # columns in points of the pass rate


# --- the comparison -------------------------------------------------------------------------------------------------


def compare_results(new: pd.DataFrame, old: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Compare two sets of results by benchmark, and note what could not be paired.

    Args:
        new: From `read_results`.
        old: From `read_results`; gains are new - old.

    Returns:
        One row per benchmark and reading, with gains in points of the pass rate and `p_holm` corrected over strict
        readings, and over all others; and remarks.

    Raises:
        ValueError: If the two have no problem in common.
    """
    remarks, rows = [], []
    sides = [{of: _by_problem(part) for of, part in table.groupby(["benchmark", "reading"])} for table in (new, old)]
    for benchmark, reading in sorted(set(sides[0]) & set(sides[1])):
        shares, samples = zip(*(side[benchmark, reading] for side in sides), strict=True)
        common = shares[0].index.intersection(shares[1].index)
        for name, side in zip("AB", shares, strict=True):
            if left := len(side) - len(common):
                remarks.append(f"{benchmark}: {left} of {len(side)} problems of {name} have no partner.")
        if len(common):
            a, b = (side.loc[common].to_numpy().T for side in shares)
            found = compare(a, b, samples=tuple(int(n.loc[common].min()) for n in samples))
            row = {"benchmark": benchmark, "reading": reading, "new": a.mean(), "old": b.mean(), **asdict(found)}
            rows.append(row)
    if not rows:
        named = [", ".join(sorted(set(results["benchmark"]))) for results in (new, old)]
        raise ValueError(
            "The two have no problem of the same benchmark in common.\n"
            f"A has {named[0]}; B has {named[1]}. Problems are paired by a hash of their text, or by their id."
        )
    table = pd.DataFrame(rows).rename(columns={"estimate": "gain", "p_value": "p"})
    table[_POINTS] *= 100
    strict = table["reading"].str.contains("strict")
    if strict.any() and not strict.all():
        numbers = table.drop(columns="reading")
        first, second = (numbers[part].reset_index(drop=True) for part in (strict, ~strict))
        if first.equals(second):
            remarks.append("Strict and lenient extraction give the same numbers: no part of a gain is in the format.")
            table = table[~strict].reset_index(drop=True)
    table["p_holm"] = table.groupby(table["reading"].str.contains("strict"))["p"].transform(holm)
    if only := sorted({*new["benchmark"], *old["benchmark"]} - set(table["benchmark"])):
        remarks.append(f"Only in one of the two, and left out: {', '.join(only)}.")
    return table, list(dict.fromkeys([*remarks, *_remarks(table)]))


def _by_problem(part: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Return shares of right samples, problems × seeds, for problems that every seed has, and their fewest samples."""
    part = part.assign(share=part["right"] / part["n"])
    shares = part.pivot_table(index="problem", columns="seed", values="share").dropna()
    return shares, part.groupby("problem")["n"].min().loc[shares.index]


def _remarks(table: pd.DataFrame) -> list[str]:
    """Return remarks on what the numbers can and cannot say, one line each."""
    said = []
    if (table["unit"] == "problem").any():
        said.append(
            "One seed each: intervals cover other problems and samples, not other training seeds, which may change "
            "more. To include them, give several seeds in a CSV with a column seed."
        )
    for benchmark, rows in table.groupby("benchmark", sort=False):
        lenient = rows[rows["reading"].str.contains("flexible|lenient|extracted")]
        strict = rows[rows["reading"].str.contains("strict")]
        if len(lenient) and len(strict):
            gained, answers = strict["gain"].iloc[0], lenient["gain"].iloc[0]
            said.append(
                f"{benchmark}: {gained:+.1f} points by strict extraction, {answers:+.1f} by lenient extraction; the "
                f"difference, {gained - answers:+.1f}, is in the format of the answers."
            )
    for row in table[(table["p_holm"] >= 0.05) & np.isfinite(table["units_needed"])].to_dict("records"):
        more = f"{row['units_needed']:,.0f} {row['unit']}s"
        if np.isfinite(row["samples_needed"]):
            more += f", or {row['samples_needed']:,.0f} samples per problem"
        name = f"{row['benchmark']} {row['reading']}".strip()
        said.append(f"{name}: a true gain of {row['gain']:+.2f} points would be found 4 times in 5 with about {more}.")
    return said


# --- output ---------------------------------------------------------------------------------------------------------

_FORMATS = {"new": "{:.1f}", "old": "{:.1f}", "gain": "{:+.2f}", "low": "{:+.2f}", "high": "{:+.2f}"}
_FORMATS |= {"p_holm": "{:.2g}", "detectable": "{:.2f}"}


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """Format the columns to show: `new` and `old` in percent, gains in points with a 95 % interval."""
    names = ["benchmark", *(["reading"] if table["reading"].any() else []), "problems", "seeds", *_FORMATS]
    return table[names].apply(lambda c: c.map(_FORMATS.get(str(c.name), "{}").format)).replace("nan", "–")


def to_json(table: pd.DataFrame, remarks: list[str], names: tuple[str, str]) -> str:
    """Return the comparison as JSON: `rows` with gain, low, high (points), p, p_holm, problems, …; NaN is null."""
    rows = json.loads(table.to_json(orient="records"))
    return json.dumps({"new": names[0], "old": names[1], "rows": rows, "remarks": remarks}, indent=2) + "\n"


def to_html(table: pd.DataFrame, remarks: list[str], names: tuple[str, str]) -> str:
    """Return a page with the figure, the table and the remarks; it needs no network."""
    title = f"{names[0]} against {names[1]}"
    lines = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ccc}"
        "svg{max-width:100%;height:auto}</style>"
        f"<h1>{html.escape(title)}</h1>{_figure_svg(table)}"
        f"{shown_table(table).to_html(index=False, border=0)}"
        "<p>new and old in percent; gain in points with its 95 % interval; p by a paired test, corrected over the "
        f"benchmarks (Holm); detectable: the smallest gain that is found 4 times in 5.</p><ul>{lines}</ul></html>\n"
    )


def _figure_svg(table: pd.DataFrame) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.4 * len(table)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(table.to_dict("records")):
        colour = "black" if row["p_holm"] < 0.05 else "0.6"
        axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=2)
        axes.plot(row["gain"], place, "o", color=colour)
    axes.axvline(0, color="0.8", lw=1, zorder=0)
    axes.set_yticks(range(len(table)), (table["benchmark"] + " " + table["reading"]).str.strip())
    axes.invert_yaxis()
    axes.set_xlabel("gain in points, with its 95 % interval (black: p < 0.05 after Holm)")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    picture = buffer.getvalue()
    return picture[picture.index("<svg") :]  # HTML has no XML declaration
