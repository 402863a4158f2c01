"""What a run shows, from completions made up here; the tables' own numbers are tested in test_tables."""

import re

import numpy as np
import pandas as pd
import pytest

from amir_grpo.results import old_tables as tables
from amir_grpo.results import report
from amir_grpo.results.run_results import EvaluationResults, RunResults, furthest_apart
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
    questions = dict.fromkeys(samples["problem_id"], "1+1=?")
    return RunResults(samples, greedy, (1, 2), scores, logs, questions, profile="tiny", model="made up")


def test_the_tables_of_a_run_are_those_of_its_completions(results):
    pd.testing.assert_frame_equal(results.main, tables.main_table(results.samples, (1, 2), model="made up"))
    pd.testing.assert_frame_equal(results.coverage, tables.coverage_table(results.samples))
    assert set(results.policies["quantity"]) >= {"pass@1", "pass@2", "greedy"}
    assert results.reliability is None
    assert "reliability" not in [*results.table_names(), *results.figures()]


def test_findings_speak_of_these_two_policies_and_give_no_verdict(results):
    found = results.findings.set_index("quantity")
    gain, share, margin, coverage = found.index
    assert found["claim"].tolist() == [
        "Gain in pass@k",
        "Richer supervision",
        "Sharper decision boundary",
        "Broader coverage",
    ]
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


STUDY = pd.DataFrame(
    [
        {"claim": "2. Sharper decision boundary", "test": "margin", "result": "+1", "verdict": "undecided"},
        {"claim": "5. Gains for every variant", "test": "gains", "result": "+2", "verdict": "undecided"},
    ]
)


def test_claims_stand_beside_those_of_the_study(results):
    together = report.claims(results.findings, STUDY)
    # what the study has no verdict on comes first
    assert [claim["name"] for claim in together] == [
        "Gain in pass@k",
        "Richer supervision",
        "Broader coverage",
        *STUDY["claim"],
    ]
    assert [(len(claim["run"]), len(claim["study"])) for claim in together] == [(1, 0)] * 3 + [(1, 1), (0, 1)]
    alone = report.claims(results.findings, None)
    assert [claim["name"] for claim in alone] == results.findings["claim"].tolist()


def test_the_report_shows_the_run_beside_the_kept_study_and_its_scope(results):
    arguments = results, {"seed": 0, "model_name": "made up"}, {"commit": "abc", "time": "2026-01-02T03:04"}, []
    page = report.render_report(*arguments, STUDY, "Made with an old instrument.")
    assert "they do not cover a new training seed" in page
    assert "2. Sharper decision boundary" in page
    assert "Made with an old instrument." in page
    assert "2026-01-02" in page
    assert re.findall(r"<title id=\"(\w+)-alt\">", page) == ["main", "coverage", "margin", "reward"]
    assert "<dt>seed</dt><dd>0</dd>" in page
    alone = report.render_report(*arguments)
    assert "the kept study" not in alone
    # verdict words are those of a study
    assert not re.search("supported|refuted|equivalent|undecided", alone)
    assert '<span class="clear">+75.0</span>' in page, "a gain that is distinguishable from 0 is marked"
    assert ">0.000<" not in page


def test_every_id_of_a_report_is_there_once_and_every_reference_leads_to_one(results):
    page = report.render_report(results, {}, {}, [])
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page)
    assert set(references) <= set(ids)
    assert len(references) > 20


def test_the_problem_furthest_apart_is_shown_with_its_question():
    counts = {"base": [0, 0], "grpo": [3, 4], "amir_grpo": [2, 0]}
    samples = samples_from({"b": counts})
    apart = furthest_apart(samples, {"b/1": "What\x1b[31m is 1+1?"})
    assert apart["problem"] == "b/1"
    assert apart["question"] == "What\ufffd[31m is 1+1?"
    assert [(s["policy"], s["right"], s["samples"]) for s in apart["shares"]] == [("GRPO", 4, 4), ("AMIR-GRPO", 0, 4)]
    assert [c["kind"] for c in apart["completions"]] == ["GRPO, right", "AMIR-GRPO, wrong"]
    same = samples_from({"b": {"base": [1], "grpo": [2], "amir_grpo": [2]}})
    assert furthest_apart(same, {}) is None


def test_an_evaluation_of_other_policies_needs_no_training():
    samples = samples_from({"b": {"mine": [1, 2], "yours": [2, 2]}}).assign(confidence=0.5)
    results = EvaluationResults(samples, samples_from({"b": {"mine": [1, 0], "yours": [1, 1]}}, n=1), (1,))
    assert results.table_names() == ["policies", "comparisons", "reliability"]
    assert list(results.figures()) == ["reliability"]
    assert len(results.comparisons) == 2
