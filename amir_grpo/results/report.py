"""The page that shows a run: self-contained, with everything that came from a model escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from amir_grpo.choices import METHODS, POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results.formatting import p_text, signed, unchanged_note, wide_summary
from amir_grpo.results.old_svg import inline_svg
from amir_grpo.results.old_tables import preference_share
from amir_grpo.results.run_results import RunResults, examples, furthest_apart

_CAPTIONS = {
    "main": "pass@k of the policies, and the gain of AMIR-GRPO over GRPO with its 95 % interval over problems.",
    "coverage": "Problems that only one of the two methods solves.",
    "margin": "Mean log-probability per token of right minus wrong completions of the same problem.",
}
_MORE_CAPTIONS = {
    "reward": ("Reward in training", "Mean of a step's completions; bands are 95 % intervals within this one run."),
    "reliability": ("Stated confidence", "On the dotted line confidence and success agree; bars: 95 % over problems."),
}
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("amir_grpo.results"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
)


def render_report(
    results: RunResults,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    problems: Sequence[Mapping[str, Any]],
    study: pd.DataFrame | None = None,
    study_scope: str = "",
) -> str:
    """The page as HTML.

    Args:
        results: What the run shows.
        settings, provenance: Names and values, shown as they are.
        problems: Of each set of problems: set, problems (their number), source, fingerprint.
        study: The verdicts of a study over several seeds (columns claim, test, result, verdict), shown beside the run.
        study_scope: What there is to say of that study, in a sentence.
    """
    drawn = results.figures()
    pictures = [{"svg": inline_svg(drawn[name](), name), "caption": caption} for name, caption in _CAPTIONS.items()]
    more = [
        {"name": title, "svg": inline_svg(drawn[name](), name), "caption": caption}
        for name, (title, caption) in _MORE_CAPTIONS.items()
        if name in drawn
    ]
    return TEMPLATES.get_template("report.html").render(
        title=f"AMIR-GRPO: {results.profile}",
        header=header(results.profile, settings, provenance),
        sentence=results.sentence,
        tiles=_tiles(results),
        claims=claims(results.findings, study),
        study=study is not None,
        study_scope=study_scope,
        pictures=pictures,
        more_pictures=more,
        apart=furthest_apart(results.samples, results.questions),
        tables=[_main_part(results.main), _policies_part(results.policies), _comparisons_part(results.comparisons)],
        examples=examples(results.samples, results.questions),
        settings=settings,
        problems=[[p["set"], p["problems"], p["source"], p["fingerprint"]] for p in problems],
        provenance=provenance,
    )


def header(profile: str, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a page says of a run above all else; of what is not known, nothing."""
    found = {
        "profile": profile,
        "policy": settings.get("model_name"),
        "steps": settings.get("max_steps"),
        "seed": settings.get("seed"),
        "commit": (provenance.get("commit") or "")[:10] + " (changed)" * bool(provenance.get("uncommitted_changes")),
        "date": (provenance.get("time") or "")[:10],
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def claims(findings: pd.DataFrame, study: pd.DataFrame | None) -> list[dict[str, Any]]:
    """What the run and the study say of each claim, side by side; the claims in the order of the study, the rest first.

    Args:
        findings: From `amir_grpo.results.findings.findings_table`.
        study: Columns claim ("2. Sharper decision boundary"), test, result, verdict; None for none.
    """
    rows = findings.to_dict("records")
    judged = {} if study is None else dict(tuple(study.groupby("claim", sort=False)))
    known = {name.partition(". ")[2] or name for name in judged}
    together = [_claim(name, [row], None) for row in rows if (name := row["claim"]) not in known]
    for name, part in judged.items():
        own = [row for row in rows if row["claim"] == (name.partition(". ")[2] or name)]
        together.append(_claim(name, own, part))
    return together


def _claim(name: str, rows: Sequence[Mapping[str, Any]], study: pd.DataFrame | None) -> dict[str, Any]:
    return {"name": name, "run": rows, "study": [] if study is None else study.to_dict("records")}


def _tiles(results: RunResults) -> list[dict[str, str]]:
    first = results.main[results.main["k"] == results.main["k"].min()]
    base, *trained = (first[policy].mean() for policy in POLICY_NAMES)
    clear = int((results.main["p_holm"] < SIGNIFICANCE).sum())
    share = preference_share(results.logs[results.logs["method"] == "amir_grpo"])
    ends = ", ".join(f"{POLICY_NAMES[method]} {end:.1f}" for method, end in zip(METHODS, trained, strict=True))
    k = f"pass@{first['k'].iloc[0]}, mean of {len(first)} benchmark{'s' * (len(first) != 1)}"
    return [
        {"name": "Learned", "value": f"{base:.1f} → {max(trained):.1f} %", "detail": f"{k}: {ends}"},
        {
            "name": "Gain of AMIR-GRPO over GRPO",
            "value": f"{signed(first['gain'].mean())} points",
            "detail": f"{clear} of {len(results.main)} gains distinguishable from 0 (Holm)",
        },
        {
            "name": "Preference term",
            "value": "–" if np.isnan(share) else f"{100 * share:.2g} %",
            "detail": "of the update, median of the steps",
        },
    ]


# --- tables -------------------------------------------------------------------------------------------------------


def _main_part(main: pd.DataFrame) -> dict[str, Any]:
    heads = ["benchmark", "k", *POLICY_NAMES.values(), "gain", "95 % interval", "p", "p (Holm)", "problems"]
    rows = [
        [
            r.benchmark,
            r.k,
            *(number(getattr(r, policy)) for policy in POLICY_NAMES),
            *_gain(r),
            p_text(r.p_value),
            p_text(r.p_holm),
            r.problems,
        ]
        for r in main.itertuples()
    ]
    caption = (
        f"pass@k in percent, gains in points; {main['samples'].iloc[0]} completions per problem. Intervals: over "
    )
    caption += f"problems, paired; they do not cover a new training seed.{unchanged_note(main)}"
    return {"name": "Main table", "heads": heads, "rows": rows, "caption": caption}


def _policies_part(policies: pd.DataFrame) -> dict[str, Any]:
    wide = wide_summary(policies).reset_index()
    wide["policy"] = wide["policy"].map(lambda name: POLICY_NAMES.get(name, name))
    caption = (
        "pass@k, greedy, truncated and formatted in percent, tokens per completion; in brackets 95 % intervals over "
    )
    caption += (
        "problems. greedy: one completion per problem at temperature 0. truncated: ended for length. formatted: keeps "
    )
    caption += "to the strict format."
    return {"name": "Policies", "heads": list(wide.columns), "rows": wide.to_numpy().tolist(), "caption": caption}


def _comparisons_part(comparisons: pd.DataFrame) -> dict[str, Any]:
    heads = ["benchmark", "quantity", "policy", "against", "policy, %", "against, %", "gain", "95 % interval"]
    rows = [
        [r.benchmark, r.quantity, POLICY_NAMES.get(r.new, r.new), POLICY_NAMES.get(r.old, r.old),
         number(r.new_percent), number(r.old_percent), *_gain(r), p_text(r.p_holm)]
        for r in comparisons.itertuples()
    ]  # fmt: skip
    caption = (
        f"Gains in points, paired by problem; p: sign-flip test, corrected for the {len(comparisons)} rows (Holm)."
    )
    return {"name": "Every two policies", "heads": [*heads, "p (Holm)"], "rows": rows, "caption": caption}


def _gain(row: Any) -> Iterable[str | dict[str, str]]:
    """Gain and interval of a row; a gain that is distinguishable from 0 is marked as clear."""
    gain = signed(row.gain)
    yield {"clear": gain} if row.p_holm < SIGNIFICANCE else gain
    yield f"{signed(row.gain_low)} to {signed(row.gain_high)}"


def number(value: float) -> str:
    """A number with one decimal, – where there is none."""
    return "–" if np.isnan(value) else f"{value:.1f}"
