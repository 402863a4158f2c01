"""The page that compares finished runs: self-contained, from their tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from amir_grpo import metrics
from amir_grpo.choices import METHODS, POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results.comparison_figures import comparison_figure
from amir_grpo.results.formatting import p_text, signed, so_many_are
from amir_grpo.results.report import TEMPLATES, header, number
from amir_grpo.results.style import inline_svg
from amir_grpo.results.tables import comparison_table, preference_share, reward_ends


@dataclass(frozen=True)
class FinishedRun:
    """What a page that compares runs reads of one.

    Attributes:
        name: Told apart by it.
        profile, settings, provenance: What was run.
        problems: Fingerprint of each set of problems, by its name.
        main: The main table (`amir_grpo.results.tables.main_table`).
        log: The training logs of both methods, with a column method.
        samples: The graded completions of both methods: columns policy, benchmark, problem_id, sample, correct.
    """

    name: str
    profile: str
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    problems: Mapping[str, str]
    main: pd.DataFrame
    log: pd.DataFrame
    samples: pd.DataFrame


def render_comparison(runs: Sequence[FinishedRun]) -> str:
    """The page as HTML; runs are compared with the first."""
    names = [run.name for run in runs]
    headers = [header(run.profile, run.settings, run.provenance) for run in runs]
    across = compared_across(runs)
    return TEMPLATES.get_template("comparison.html").render(
        title=f"Runs compared: {', '.join(names)}",
        names=names,
        sentence=_sentence(across),
        headers=[[key, *(head.get(key, "–") for head in headers)] for key in headers[0]],
        settings=[[key, *values] for key, values in _settings(runs, equal=False).items()],
        shared={key: values[0] for key, values in _settings(runs, equal=True).items()},
        other_problems=sorted(_benchmarks(runs) - _common_benchmarks(runs)),
        gains=inline_svg(_gains(runs), "gains"),
        across=_across_part(across, names[0]),
        tables=[_main_part(runs), _training_part(runs)],
    )


def compared_across(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """Each method of each run against that of the first run, pass@1, paired by problem, on the benchmarks that all share.

    Where two runs drew different numbers of completions, the first ones of each problem are compared, as many as both have.

    Columns method, and those of `tables.comparison_table`, new and old being names of runs; p_holm is corrected over all
    rows. No row where no set of problems is the same.
    """
    common, (first, *others) = _common_benchmarks(runs), runs
    frames = []
    for other in others:
        for method in METHODS:
            both = pd.concat([run.samples.assign(run=run.name) for run in (first, other)])
            both = both[(both["policy"] == method) & both["benchmark"].isin(common)].assign(policy=lambda t: t["run"])
            if len(both):
                both = both[both["sample"] < both.groupby("run")["sample"].nunique().min()]
                frames.append(comparison_table(both, ks=(1,)).assign(method=method))
    if not frames:
        return pd.DataFrame(columns=["method", "benchmark", "new", "old", "gain", "p_holm"])
    table = pd.concat(frames, ignore_index=True)
    return table.assign(p_holm=metrics.holm(table["p_value"]))


def _benchmarks(runs: Sequence[FinishedRun]) -> set[str]:
    return {name for run in runs for name in run.main["benchmark"]}


def _common_benchmarks(runs: Sequence[FinishedRun]) -> set[str]:
    """The benchmarks that all runs have, with the same problems."""
    shared = set.intersection(*(set(run.main["benchmark"]) for run in runs))
    return {name for name in shared if len({run.problems.get(name) for run in runs}) == 1}


def _settings(runs: Sequence[FinishedRun], *, equal: bool) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name, "–") for run in runs] for name in names}
    return {name: found for name, found in values.items() if all(value == found[0] for value in found) == equal}


def _sentence(across: pd.DataFrame) -> str:
    if across.empty:
        return "These runs were not evaluated on the same problems: each stands for itself."
    clear = int((across["p_holm"] < SIGNIFICANCE).sum())
    return (
        f"Of {len(across)} differences in pass@1 between these runs, {so_many_are(clear)} distinguishable from 0 "
        f"(p < {SIGNIFICANCE}, Holm). "
        "Each run is one training per method: another seed may differ by more than these intervals say."
    )


def _gains(runs: Sequence[FinishedRun]) -> Any:
    first = pd.concat([run.main.query("k == k.min()").assign(about=run.name) for run in runs], ignore_index=True)
    order = {name: place for place, name in enumerate(first["benchmark"].unique())}
    rows = first.assign(regime=first["benchmark"], p=first["p_holm"])
    rows = rows.sort_values("benchmark", key=lambda column: column.map(order), kind="stable")
    rows = rows[["about", "regime", "gain", "gain_low", "gain_high", "p"]]
    return comparison_figure(rows, "Gain of AMIR-GRPO over GRPO, by run", over="new problems")


def _across_part(across: pd.DataFrame, first: str) -> dict[str, Any]:
    heads = ["method", "benchmark", "run", "pass@1, %", f"{first}, %", "gain", "95 % interval", "p (Holm)", "n"]
    rows = [
        [POLICY_NAMES[r.method], r.benchmark, r.new, number(r.new_percent), number(r.old_percent), signed(r.gain),
         f"{signed(r.gain_low)} to {signed(r.gain_high)}", p_text(r.p_holm), r.samples]
        for r in across.itertuples()
    ]  # fmt: skip
    caption = (
        f"Paired by problem, against {first}; p corrected for the {len(rows)} rows. n: completions of each problem, the "
        "first ones where one run drew more."
    )
    return {"name": "Run against run", "heads": heads, "rows": rows, "caption": caption}


def _main_part(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    heads = ["benchmark", "k", "run", *POLICY_NAMES.values(), "gain", "95 % interval", "p (Holm)"]
    rows = [
        [r.benchmark, r.k, run.name, *(number(getattr(r, policy)) for policy in POLICY_NAMES), signed(r.gain),
         f"{signed(r.gain_low)} to {signed(r.gain_high)}", p_text(r.p_holm)]
        for run in runs for r in run.main.itertuples()
    ]  # fmt: skip
    return {"name": "Main tables", "heads": heads, "rows": rows, "caption": "pass@k in percent, gains in points."}


def _training_part(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    rows = []
    for run in runs:
        for method, log in run.log.groupby("method", sort=False):
            ends, share = reward_ends(log), preference_share(log)
            shown = f"{100 * share:.2g} %" if share > 0 else "–"
            rows.append([run.name, POLICY_NAMES[method], len(log), f"{ends.first:.3f}", f"{ends.last:.3f}", shown])
    heads = ["run", "method", "steps", "reward, first tenth", "reward, last tenth", "preference term"]
    caption = "preference term: share of the update, median of the steps."
    return {"name": "Training", "heads": heads, "rows": rows, "caption": caption}
