"""The figures of the study, drawn from a made-up one."""

from amir_grpo.results import study_figures
from amir_grpo.study.claims import boundary, comparisons, coverage, length_bias
from tests.study.claims.conftest import ARMS


def test_figures_of_the_evidence_are_drawn(study):
    lengths = ["grpo", "amir_grpo"]
    drawn = [
        study_figures.supervision_figure(study["training"], ["amir_grpo", "share-0.3"], "a"),
        study_figures.boundary_figure(boundary.boundary_table(study), "b"),
        study_figures.length_figure(length_bias.pressure_table(study, lengths), study["training"], "c"),
        study_figures.patterns_figure(coverage.coverage_table(study), "d"),
        study_figures.gains_figure(comparisons.gain_table(study, comparisons.ablation_arms(study)), "e"),
        study_figures.weights_figure(study["weights"], "f"),
    ]
    for figure in drawn:
        figure.canvas.draw()
        width, height = figure.bbox.size
        for axes in figure.axes:
            box = axes.get_tightbbox()
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= width + 1
            assert box.y1 <= height + 1
    labels = [label.get_text() for label in drawn[4].axes[0].get_yticklabels()]
    assert labels == [f"{arm} vs {ARMS[arm][0]} (4 seeds)" for arm in comparisons.ablation_arms(study)]
