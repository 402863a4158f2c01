"""The figures of the study by name, each a function of the study's tables; for the gallery and the notebooks alike."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from amir_grpo.results import study_figures as drawings
from amir_grpo.study.claims import boundary, comparisons, coverage, length_bias, variants
from amir_grpo.study.claims.comparisons import Study

SHARE_ARMS = ("amir_grpo", "share-0.1", "share-0.3", "share-0.6")
LENGTH_ARMS = ("grpo", "amir_grpo", "two-step-dr_grpo", "two-step-dr_grpo-amir")

STUDY_FIGURES: dict[str, Callable[[Study], Figure]] = {
    "claim_supervision": lambda study: drawings.supervision_figure(
        study["training"], SHARE_ARMS, "Pairs, and what they make of the update"
    ),
    "claim_boundary": lambda study: drawings.boundary_figure(
        boundary.boundary_table(study), "Decision boundary on the base policy's completions"
    ),
    "claim_length": lambda study: drawings.length_figure(
        length_bias.pressure_table(study, LENGTH_ARMS), study["training"], "Length bias"
    ),
    "claim_coverage": lambda study: drawings.patterns_figure(
        coverage.coverage_table(study), "Who solves a problem with k samples"
    ),
    "claim_variants": lambda study: drawings.gains_figure(
        variants.variants_table(study), "The preference term added to each variant"
    ),
    "ablations": lambda study: drawings.gains_figure(
        comparisons.gain_table(study, comparisons.ablation_arms(study)), "Each arm against what it changes"
    ),
    "weights": lambda study: drawings.weights_figure(study["weights"], "Preference weights and wins − losses"),
}
