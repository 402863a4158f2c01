"""The lines of the README that are computed from the kept results: `python -m tools.gallery` writes them."""

from __future__ import annotations

import re

import numpy as np

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.results.formatting import signed, so_many_are
from amir_grpo.results.hero import first_differences
from amir_grpo.study.claims.table import claims_table
from amir_grpo.study.finding import claim_lines, finding
from amir_grpo.study.plan import Plan
from amir_grpo.study.results import Studies
from tools.hero import Evidence


def findings_lines(found: Evidence) -> str:
    """The three findings below the figure, as Markdown."""
    twins, levels = found.twins, found.levels
    pairs, steps = len(twins["run"].unique()), int(twins["step"].max())
    equal = int(np.median(first_differences(twins))) - 1
    base, grpo, amir_grpo = (levels[policy].mean() for policy in ("base", "grpo", "amir_grpo"))
    clear = int((levels["p"] < SIGNIFICANCE).sum())
    gains = f"{signed(levels['gain_low'].min())} and {signed(levels['gain_high'].max())} points (95 % intervals)"
    median = "" if pairs == 1 else f" (median of {pairs} pairs)"
    return "\n".join(
        [
            "1. **How much is added?** At the published λ and β the preference term is "
            f"{100 * found.share:.2g} % of the update.",
            f"2. **What does it change?** With the same seed, both trainings draw the same completions for the first "
            f"{equal} of {steps} steps{median}.",
            f"3. **Where do they end?** pass@1, mean of {', '.join(levels['benchmark'])}: {base:.1f} % before training, "
            f"{grpo:.1f} % with GRPO, {amir_grpo:.1f} % with AMIR-GRPO. The {len(levels)} gains lie between {gains}; "
            f"{so_many_are(clear)} distinguishable from 0 (p < {SIGNIFICANCE}, Holm).",
        ]
    )


def computed_parts(studies: Studies, plan: Plan, found: Evidence) -> dict[str, str]:
    """What the README has from the kept results, by the names of its marks: the findings, and what the study says."""
    study = [finding(studies, plan), "", *claim_lines(claims_table(studies, plan))]
    return {"findings": findings_lines(found), "study": "\n".join(study)}


def with_parts(text: str, parts: dict[str, str]) -> str:
    """A page with each part put between its marks.

    Raises:
        ValueError: If a part has no marks.
    """
    for name, part in parts.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not marks.search(text):
            raise ValueError(
                f"README.md has no place for the part {name!r}: put <!-- {name} --> and <!-- end of {name} -->."
            )
        text = marks.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text)
    return text
