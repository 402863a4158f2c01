"""What a run shows, from completions made up here; the tables' own numbers are tested in test_tables."""

import numpy as np
import pandas as pd
import pytest

from amir_grpo.results import tables
from amir_grpo.results.report import render_report
from amir_grpo.results.run_results import EvaluationResults, RunResults
from amir_grpo.runs.showing import save_results
from tests.results.test_tables import samples_from


@pytest.fixture
def results():
    counts = {"base": [1] * 8, "grpo": [1] * 8, "amir_grpo": [4] * 8}
    samples = samples_from({"b": counts})
    greedy = samples_from({"b": {policy: [1] * 8 for policy in counts}}, n=1)
    scores = pd.concat(
        samples[samples["policy"] == "base"].assign(scorer=method, sampler="base", logprob=samples["correct"] * gap)
        for method, gap in (("grpo", 10.0), ("amir_grpo", 20.0))
    )
    logs = pd.DataFrame(
        {
            "method": ["grpo"] * 2 + ["amir_grpo"] * 2,
            "step": [1, 2] * 2,
            "reward": [0.5, np.nan] * 2,
            "reward_std": 0.1,
            "completions": 8,
            "preference/share": [np.nan] * 2 + [0.003, 0.005],
        }
    )
    return RunResults(samples, greedy, (1, 2), scores, logs, profile="tiny", model="made up")


def test_the_tables_of_a_run_are_those_of_its_completions(results):
    pd.testing.assert_frame_equal(results.main, tables.main_table(results.samples, (1, 2), model="made up"))
    pd.testing.assert_frame_equal(results.coverage, tables.coverage_table(results.samples))
    assert set(results.policies["quantity"]) >= {"pass@1", "pass@2", "greedy"}
    assert results.reliability is None
    assert "reliability" not in [*results.table_names(), *results.figures()]


def test_findings_speak_of_these_two_policies_and_give_no_verdict(results):
    found = results.findings.set_index("quantity")
    gain, share, margin, coverage = found.index
    assert found.loc[gain, "result"].startswith("+75.0 points on average at k = 1")
    assert found.loc[gain, "result"].endswith("of 2 gains 2 clearly above 0, 0 clearly below")
    assert found.loc[share, "result"] == "0.40 % (median of the steps)"
    assert found.loc[margin, "result"].startswith("+1.0000 nats per token")
    assert found.loc[coverage, "result"] == "0 and 0"
    assert not results.findings.astype(str).apply(lambda c: c.str.contains("supported")).any(axis=None)
    assert "another training seed may differ" in results.sentence


def test_only_the_named_tables_and_figures_are_saved(results):
    saved = []

    class Run:
        def save_table(self, table, name):
            saved.append(name)

        def save_figure(self, figure, name):
            saved.append(f"{name} figure")
            return f"{name}.png", f"{name}.svg"

    assert save_results(Run(), results, only=["main"]) == {"main": "main.png"}
    assert saved == ["main", "main figure"]
    saved.clear()
    save_results(Run(), results)
    assert set(saved) == {*results.table_names(), *(f"{name} figure" for name in results.figures())}


def test_the_report_shows_the_kept_study_beside_the_run_and_its_scope(results):
    study = pd.DataFrame([{"claim": "1. Denser", "test": "pairs", "result": "+1", "verdict": "undecided"}])
    arguments = results, {"seed": 0}, {"commit": "abc"}, []
    page = render_report(*arguments, study)
    assert "they do not cover a new training seed" in page
    assert "1. Denser" in page
    assert page.count("data:image/png;base64,") == 4
    assert "The kept study" not in render_report(*arguments)


def test_an_evaluation_of_other_policies_needs_no_training():
    samples = samples_from({"b": {"mine": [1, 2], "yours": [2, 2]}}).assign(confidence=0.5)
    results = EvaluationResults(samples, samples_from({"b": {"mine": [1, 0], "yours": [1, 1]}}, n=1), (1,))
    assert results.table_names() == ["policies", "comparisons", "reliability"]
    assert list(results.figures()) == ["reliability"]
    assert len(results.comparisons) == 2
