"""The page that shows a run: self-contained, with everything that came from a model escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd

from amir_grpo.results.formatting import signed, wide_summary
from amir_grpo.results.run_results import RunResults, examples
from amir_grpo.results.style import png

_CAPTIONS = {
    "main": "Main figure. Cells: pass@k of GRPO → AMIR-GRPO (gain), in percent; below, the 95 % interval of the gain "
    "over problems. The interval does not cover a new training seed.",
    "coverage": "Coverage. Problems that at least one policy solves (at least one right completion of n), by which of "
    "them do.",
    "margin": "Margin. Mean length-normalised log-probability of right minus wrong completions of the same problem. "
    "Own: each policy on its own samples. Shared: both on the base policy's samples.",
    "reliability": "Reliability. How often completions that state a confidence are right; on the dotted line confidence "
    "and success agree. Bars: 95 % intervals over problems.",
    "reward": "Reward in training, mean of a step's completions; bands are 95 % intervals within this one run.",
}


def render_report(
    results: RunResults,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    problems: Sequence[Mapping[str, Any]],
    study: pd.DataFrame | None = None,
) -> str:
    """The page as HTML.

    Args:
        results: What the run shows.
        settings, provenance: Names and values, shown as they are.
        problems: Of each set of problems: set, problems (their number), source, fingerprint.
        study: The verdicts of a study over several seeds (columns claim, test, result, verdict), shown beside the run.
    """
    drawn = results.figures()
    pictures = [
        {"name": name, "caption": caption, "data": base64.b64encode(png(drawn[name](), dpi=200)).decode()}
        for name, caption in _CAPTIONS.items()
        if name in drawn
    ]
    wide = wide_summary(results.policies).reset_index()
    page = _TEMPLATES.get_template("report.html").render(
        title=f"AMIR-GRPO: {results.profile}",
        sentence=results.sentence,
        findings=results.findings.to_dict("records"),
        study=[] if study is None else study.to_dict("records"),
        main=results.main.to_dict("records"),
        signed=signed,
        summary_columns=list(wide.columns),
        summary=wide.to_numpy().tolist(),
        comparisons=results.comparisons.to_dict("records"),
        problems=problems,
        pictures=pictures,
        settings=settings,
        provenance=provenance,
        examples=examples(results.samples),
    )
    return page


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("amir_grpo.results"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
