"""Every claim with its test, its result and its verdict, computed from the study's tables."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from amir_grpo import metrics
from amir_grpo.results.verdicts import verdict_from
from amir_grpo.study.claims.boundary import boundary_table
from amir_grpo.study.claims.comparisons import Study
from amir_grpo.study.claims.coverage import coverage_gain_table
from amir_grpo.study.claims.length_bias import dilution_table
from amir_grpo.study.claims.supervision import supervision_table
from amir_grpo.study.claims.variants import variants_table

_PREFERENCE_PAIRS = {"amir_grpo": "grpo", "two-step-dr_grpo-amir": "two-step-dr_grpo"}


def verdicts(study: Study) -> pd.DataFrame:
    """Every claim with its test and verdict: columns claim, test, result, verdict. Computed from the study.

    Where a claim has several rows, their p-values are Holm-corrected together, and a verdict other than "undecided"
    needs the corrected p-value below `SIGNIFICANCE`.
    """
    rows = []
    supervision = supervision_table(study).set_index("arm").loc["amir_grpo"]
    size = supervision["group_size"]
    rows.append(
        {
            "claim": "1. Richer supervision",
            "test": f"pairs per group, against the {size} rewards of the group",
            "result": f"{supervision['pairs']:.1f} [{supervision['pairs_low']:.1f}, {supervision['pairs_high']:.1f}]",
            "verdict": str(verdict_from(0.0, (supervision["pairs_low"] - size, supervision["pairs_high"] - size))),
        }
    )
    rows.append(
        {
            "claim": "1. Richer supervision",
            "test": "share of the update at published λ, β; at least 5 %",
            "result": f"{supervision['share']:.2f} % [{supervision['share_low']:.2f}, {supervision['share_high']:.2f}]",
            "verdict": str(verdict_from(0.0, (supervision["share_low"] - 5, supervision["share_high"] - 5))),
        }
    )
    boundary = boundary_table(study)
    last = boundary[(boundary["arm"] == "amir_grpo") & (boundary["step"] == boundary["step"].max())]
    units = {"margin": "nats per token", "accuracy": "points"}
    digits = {"margin": 4, "accuracy": 2}
    for row, p in zip(last.to_dict("records"), metrics.holm(last["p_value"]), strict=True):
        rows.append(
            _row(
                "2. Sharper decision boundary",
                f"{row['quantity']} on shared completions, AMIR-GRPO − GRPO",
                row,
                p,
                units[row["quantity"]],
                digits[row["quantity"]],
            )
        )
    dilution = dilution_table(study, _PREFERENCE_PAIRS)
    for row, p in zip(dilution.to_dict("records"), metrics.holm(dilution["p_value"]), strict=True):
        name = "GRPO" if row["against"] == "grpo" else "Dr. GRPO"
        test = f"push on long over short wrong completions, {name} with − without preference"
        rows.append(_row("3. Less length bias", test, row, p, "", 4))
    coverage = coverage_gain_table(study)
    for row in coverage.to_dict("records"):
        test = f"problems solved by AMIR-GRPO alone − by GRPO alone, k = {row['k']}"
        rows.append(_row("4. Broader coverage", test, row, row["p_holm"], "points", 2))
    variants = variants_table(study, ks=(1,))
    for row in variants.to_dict("records"):
        test = f"{row['about']} − {row['about'].split(' + ')[0]}, pass@1, {row['benchmarks']}"
        rows.append(_row("5. Gains for every variant", test, row, row["p_holm"], "points", 2))
    return pd.DataFrame(rows)


def _row(claim: str, test: str, row: Mapping, p_value: float, unit: str, digits: int) -> dict[str, str]:
    decided = verdict_from(p_value, (row["gain_low"], row["gain_high"]))
    number = f"{{:+.{digits}f}}".format
    ends = f"[{number(row['gain_low'])}, {number(row['gain_high'])}]"
    result = f"{number(row['gain'])} {unit}".strip() + f" {ends}, p = {p_value:.2g} (Holm)"
    return {"claim": claim, "test": test, "result": result.replace("-", "−"), "verdict": str(decided)}
