"""The frozen file: what it says, what it refuses, and that verdicts are computed from it."""

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.sandbox.base import WARMUP_SEEDS, warmup_seed
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.study.inference import Comparison, Verdict
from amir_grpo.study.plan import PLAN, PLANS, check_frozen, read_plan, run_sequence, sequence_table
from amir_grpo.system.provenance import file_at

# The plan as it was before it was frozen.
UNFROZEN = re.sub(r'(commit|date) = "[^"]*"', r'\1 = ""', PLAN.read_text(encoding="utf-8")).replace(
    "frozen = true", "frozen = false"
)
ORDER = ["two-step", "published", "outliers", "outliers-clipped", "above-margin", "permuted"]
ORDER += ["nuisance-correctness", "nuisance", "clean"]


def made(estimate, standard_error=0.1):
    return Comparison(estimate, standard_error, 5, bases=6, runs=24, problems=1200)


ALL_SHOWN = dict(zip(ORDER, map(made, (1.9, 0.0, 1.0, 0.8, -0.05, 0.0, 0.6, 0.6, 0.05)), strict=True))


@pytest.fixture(scope="module")
def plan():
    return read_plan()


def rewritten(tmp_path, *changes):
    text = UNFROZEN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_plan_says_what_the_study_was_designed_to_test(plan):
    assert [test.name for test in plan.tests] == ORDER
    assert (plan.alpha, plan.margin, plan.power) == (0.05, 0.5, 0.8)
    assert plan.alpha == SIGNIFICANCE  # by which tables and figures colour
    assert (plan.quantity, plan.benchmarks) == ("pass@1", "trained lengths")


@pytest.mark.parametrize(("study", "first"), [("confirmation", 1000), ("pilot", 0)])
def test_seeds_spread_evenly_over_the_base_policies(plan, study, first):
    for regime, arm, runs in ((r.name, arm, runs) for r in plan.regimes for arm, runs in r.arms.items()):
        grid = plan.run_grid(study, f"{regime}/{arm}")
        assert len(grid) == (runs if study == "confirmation" else 6)
        assert [seed for _, seed in grid] == list(range(first, first + len(grid)))
        assert set(np.bincount([base for base, _ in grid])) == {len(grid) // 6}
        assert {base for base, _ in grid[:6]} == set(range(6))
    assert plan.run_grid("confirmation", "partial/grpo") == []


def test_a_sequence_in_which_everything_is_shown(plan):
    outcomes = run_sequence(plan, ALL_SHOWN)
    assert all(outcome.tested for outcome in outcomes)
    wanted = {"greater": "supported", "equivalent": "equivalent", "not greater": "supported"}
    assert [outcome.verdict for outcome in outcomes] == [wanted[test.hypothesis] for test in plan.tests]
    assert {outcome.why for outcome in outcomes} == {""}


@pytest.mark.parametrize("failing", range(len(ORDER)))
def test_nothing_is_tested_after_a_test_that_is_not_shown(plan, failing):
    outcomes = run_sequence(plan, ALL_SHOWN | {ORDER[failing]: made(0.3, 0.5)})
    assert [outcome.tested for outcome in outcomes] == [place <= failing for place in range(len(ORDER))]
    assert {outcome.verdict for outcome in outcomes[failing:]} == {Verdict.UNDECIDED}
    for outcome in outcomes[failing + 1 :]:
        assert outcome.why.startswith("Not tested: ")
        assert f"test {failing + 1}" in outcome.why
        assert ("gate" in outcome.why) == (failing == 0)
        assert outcome.comparison == ALL_SHOWN[outcome.test.name]


def test_a_refuted_test_ends_the_sequence_with_its_own_verdict(plan):
    outcomes = run_sequence(plan, ALL_SHOWN | {"outliers": made(-2.0)})
    assert outcomes[2].verdict is Verdict.REFUTED
    assert not outcomes[3].tested


def test_a_test_without_data_ends_the_sequence(plan):
    outcomes = run_sequence(plan, {"two-step": ALL_SHOWN["two-step"], "nuisance": ALL_SHOWN["nuisance"]})
    assert [outcome.tested for outcome in outcomes] == [True] + [False] * 8
    assert outcomes[1].why == "It has no complete runs yet."


def test_too_few_base_policies_decide_nothing(plan):
    few = Comparison(1.9, 0.1, 2, bases=3, runs=3, problems=1200, no_test="3 base policies: at least 6 are needed.")
    outcomes = run_sequence(plan, ALL_SHOWN | {"two-step": few})
    assert outcomes[0].tested
    assert (outcomes[0].verdict, outcomes[0].why) == (Verdict.UNDECIDED, few.no_test)
    assert not outcomes[1].tested


@pytest.mark.parametrize(
    ("old", "new", "test", "before", "after"),
    [
        ("margin = 0.5", "margin = 0.2", "published", "equivalent", "undecided"),
        ("alpha = 0.05", "alpha = 0.000001", "two-step", "supported", "undecided"),
        ('hypothesis = "equivalent"', 'hypothesis = "greater"', "published", "equivalent", "equivalent"),
        ('hypothesis = "greater"', 'hypothesis = "equivalent"', "two-step", "supported", "refuted"),
    ],
)
def test_verdicts_are_computed_from_the_file(tmp_path, plan, old, new, test, before, after):
    def found(plan):
        return {outcome.test.name: outcome.verdict for outcome in run_sequence(plan, ALL_SHOWN)}[test]

    assert found(plan) == before
    assert found(read_plan(rewritten(tmp_path, (old, new)))) == after


def test_the_order_is_that_of_the_file(plan):
    turned = replace(plan, tests=(plan.tests[0], *reversed(plan.tests[1:])))
    outcomes = run_sequence(turned, ALL_SHOWN | {"clean": made(2.0)})
    assert [outcome.test.name for outcome in outcomes] == [ORDER[0], *reversed(ORDER[1:])]
    assert [outcome.tested for outcome in outcomes] == [True, True] + [False] * 7


def test_a_comparison_that_no_test_asks_for_is_refused(plan):
    with pytest.raises(ValueError, match="No test 'two_step' in the plan, which has two-step, published"):
        run_sequence(plan, {"two_step": made(1.0)})


def test_the_table_has_every_test_with_its_estimate_and_what_it_could_have_detected(plan):
    table = sequence_table(plan, run_sequence(plan, ALL_SHOWN | {"published": made(0.3, 0.5)}))
    assert list(table["test"]) == ORDER
    low, high = ALL_SHOWN["two-step"].interval(0.95)
    assert table.loc[0, ["gain", "gain_low", "gain_high", "verdict"]].to_list() == [1.9, low, high, "supported"]
    assert table["detectable"].to_list() == [made(0, e).detectable() for e in (0.1, 0.5, *[0.1] * 7)]
    assert table["gain"].notna().all()
    assert table["tested"].to_list() == [True, True] + [False] * 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("margin = 0.5", "margin = 0.0")], "margin 0.0"),
        ([("alpha = 0.05", "alpha = 5")], "alpha 5"),
        ([("alpha = 0.05", "level = 0.05")], "unknown entry level"),
        ([("alpha = 0.05 ", "# ")], "'alpha' is missing"),
        ([('commit = ""', 'commit = "abc"')], "frozen is false"),
        ([("frozen = false", "frozen = true")], "commit ''"),
        ([("frozen = false", "frozen = true"), ('commit = ""', f'commit = "{"a" * 40}"')], "date ''"),
        ([("{ pilot = 0,", "{ pilot = 998,")], "seed 1000 is one of the pilot and of the confirmation"),
        ([("base_policies = 6", "base_policies = 5")], "the pilot: 6 runs do not divide over 5 base policies"),
        ([("{ grpo = ", "{ dr_grpo = 7, grpo = ")], "clean/dr_grpo: 7 runs do not divide over 6 base policies"),
        ([('new = "published"', 'new = "share-0.1"')], "test 'published': no arm 'share-0.1' in regime 'clean'"),
        ([('regime = "nuisance"', 'regime = "noise"')], "no regime 'noise'"),
        ([("gate = true", "gate = false")], "is the gate"),
        ([('name = "outliers"\nabout = "With', 'name = "nuisance"\nabout = "With')], "test 'nuisance' is there twice"),
        ([('hypothesis = "greater"', 'hypothesis = "better"')], "'better' is not a valid Hypothesis"),
        ([('hypothesis = "greater"', 'hypothesis = "greater"\nmargin = 2')], "margin"),
        ([('hypothesis = "greater"', 'hypothesis = "greater"\nquantity = "pass"')], "quantity 'pass' is none of"),
        ([("frozen = false", "frozen = ")], "is not valid TOML"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused_with_its_file(tmp_path, changes, message):
    path = rewritten(tmp_path, *changes)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_frozen_plan_is_read(tmp_path):
    changes = [
        ("frozen = false", "frozen = true"),
        ('commit = ""', f'commit = "{"0a" * 20}"'),
        ('date = ""', 'date = "2026-11-22"'),
    ]
    plan = read_plan(rewritten(tmp_path, *changes))
    assert plan.frozen
    assert (plan.commit, plan.date) == ("0a" * 20, "2026-11-22")


@pytest.mark.parametrize("path", sorted(set(PLANS.values())), ids=lambda path: path.stem)
def test_a_plan_of_the_study_is_the_one_that_was_frozen(path):
    plan = read_plan(path)
    if file_at(plan.commit, path) is None:
        pytest.skip("git does not know the commit at which the plan was frozen")
    check_frozen(plan)


def test_the_fresh_plan_shares_no_base_policy_seed_or_evaluation_problem_with_the_first(plan):
    fresh = read_plan(PLANS["fresh"])
    grids = [fresh.run_grid("fresh", path) for path in fresh.planned]
    assert {len(grid) for grid in grids} == {12}
    bases, seeds = map(set, zip(*grids[0], strict=True))
    assert {warmup_seed(base) for base in bases} == set(range(9, 21))  # the nine before have been tried
    assert not {warmup_seed(base) for base in bases} & set(WARMUP_SEEDS)
    before = (plan.run_grid("pilot", ""), plan.run_grid("confirmation", "nuisance/grpo"))
    assert not seeds & {seed + more for grid in before for _, seed in grid for more in (0, 100)}  # grpo-again: + 100
    for benchmark in fresh.settings["benchmarks"]:
        old, new = (load_sandbox(benchmark, 400, seed)["question"] for seed in (0, fresh.settings["eval_seed"]))
        assert not set(old) & set(new)
    again = [test for test in plan.tests if test.name in ORDER[1:2] + ORDER[6:]]
    for ours, theirs in zip(fresh.tests[1:], again, strict=True):
        assert (ours.name, ours.pair, ours.hypothesis) == (theirs.name, theirs.pair, theirs.hypothesis)
    assert (fresh.alpha, fresh.margin, fresh.quantity) == (plan.alpha, plan.margin, plan.quantity)


def test_a_frozen_plan_is_what_it_was_at_its_commit(tmp_path):
    def git(*arguments):
        user = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *user, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    path = rewritten(tmp_path)
    with pytest.raises(ValueError, match="begins when the plan is frozen"):
        check_frozen(read_plan(path))
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=plan")
    freeze = [("frozen = false", "frozen = true"), ('commit = ""', f'commit = "{git("rev-parse", "HEAD")}"')]
    freeze += [('date = ""', 'date = "2026-11-22"')]
    rewritten(tmp_path, *freeze)
    check_frozen(read_plan(path))
    rewritten(tmp_path, *freeze, ("margin = 0.5", "margin = 0.8"))
    with pytest.raises(ValueError, match="is not what it was at commit"):
        check_frozen(read_plan(path))
