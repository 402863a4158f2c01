"""The frozen files: what they say, what is refused, and that verdicts are computed from them."""

import re
import subprocess

import pytest

from amir_grpo.choices import SIGNIFICANCE, STUDIES
from amir_grpo.sandbox.base import WARMUP_SEEDS, warmup_seed
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.study.arms import ARMS
from amir_grpo.study.inference import Comparison
from amir_grpo.study.plan import PLAN, PLANS, check_frozen, judged, read_plan
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


@pytest.mark.parametrize("study", STUDIES)
def test_a_plan_is_the_one_that_was_frozen_and_its_seeds_spread_evenly(study):
    plan = read_plan(PLANS[study])
    bases = plan.runs.base_policies
    for path, runs in plan.planned.items():
        grid = plan.run_grid(study, path)
        assert len(grid) == (6 if study == "pilot" else runs)
        first = plan.runs.first_seed[study]
        assert [seed for _, seed in grid] == list(range(first, first + len(grid)))
        assert [base - plan.runs.first_base for base, _ in grid] == [place % bases for place in range(len(grid))]
        assert path in ARMS
    if file_at(plan.commit, plan.path) is None:
        pytest.skip("git does not know the commit at which the plan was frozen")
    check_frozen(plan)


def test_the_plan_says_what_the_study_was_designed_to_test(plan):
    assert [test.name for test in plan.tests] == ORDER
    assert (plan.alpha, plan.margin, plan.power) == (SIGNIFICANCE, 0.5, 0.8)
    assert (plan.endpoint.quantity, plan.endpoint.benchmarks) == ("pass@1", "trained lengths")
    assert plan.run_grid("confirmation", "partial/grpo") == []


def test_the_fresh_plan_shares_no_base_policy_seed_or_evaluation_problem_with_the_first(plan):
    fresh = read_plan(PLANS["fresh"])
    bases, seeds = map(set, zip(*fresh.run_grid("fresh", "clean/grpo"), strict=True))
    assert {warmup_seed(base) for base in bases} == set(range(9, 21))  # the nine before have been tried
    assert not {warmup_seed(base) for base in bases} & set(WARMUP_SEEDS)
    before = (plan.run_grid("pilot", ""), plan.run_grid("confirmation", "nuisance/grpo"))
    assert not seeds & {seed for grid in before for _, seed in grid}
    for benchmark in fresh.settings["benchmarks"]:
        old, new = (load_sandbox(benchmark, 400, seed)["question"] for seed in (0, fresh.settings["eval_seed"]))
        assert not set(old) & set(new)
    again = [test for test in plan.tests if test.name in ORDER[1:2] + ORDER[6:]]
    for ours, theirs in zip(fresh.tests[1:], again, strict=True):
        assert (ours.name, ours.pair, ours.hypothesis) == (theirs.name, theirs.pair, theirs.hypothesis)
    assert (fresh.alpha, fresh.margin, fresh.endpoint) == (plan.alpha, plan.margin, plan.endpoint)


def test_a_sequence_in_which_everything_is_shown(plan):
    table = judged(plan, ALL_SHOWN)
    assert table["tested"].all()
    wanted = {"greater": "supported", "equivalent": "equivalent", "not greater": "supported"}
    assert table["verdict"].to_list() == [wanted[test.hypothesis] for test in plan.tests]
    assert set(table["why"]) == {""}
    low, high = ALL_SHOWN["two-step"].interval(0.95)
    assert table.loc[0, ["gain", "gain_low", "gain_high"]].to_list() == [1.9, low, high]
    assert table["detectable"].to_list() == [made(0).detectable()] * 9


@pytest.mark.parametrize("failing", range(len(ORDER)))
def test_nothing_is_tested_after_a_test_that_is_not_shown(plan, failing):
    table = judged(plan, ALL_SHOWN | {ORDER[failing]: made(0.3, 0.5)})
    assert table["tested"].to_list() == [place <= failing for place in range(len(ORDER))]
    assert table["verdict"].to_list()[failing:] == ["undecided"] + ["not tested"] * (8 - failing)
    for why in table["why"][failing + 1 :]:
        assert why.startswith("Not tested: ")
        assert f"test {failing + 1}" in why
        assert ("gate" in why) == (failing == 0)
    assert table["gain"].notna().all()


def test_what_is_refuted_or_without_data_or_too_little_ends_the_sequence(plan):
    table = judged(plan, ALL_SHOWN | {"outliers": made(-2.0)})
    assert table["verdict"].to_list()[2:4] == ["refuted", "not tested"]
    table = judged(plan, {"two-step": ALL_SHOWN["two-step"], "nuisance": ALL_SHOWN["nuisance"]})
    assert table["tested"].to_list() == [True] + [False] * 8
    assert table["why"][1] == "It has no complete runs yet."
    few = Comparison(1.9, 0.1, 2, bases=3, runs=3, problems=1200, no_test="3 base policies: at least 6 are needed.")
    table = judged(plan, ALL_SHOWN | {"two-step": few})
    assert table.loc[0, ["verdict", "why"]].to_list() == ["undecided", few.no_test]
    assert not table["tested"][1]
    assert judged(plan, ALL_SHOWN | {"two-step": few}, in_sequence=False)["tested"].all()


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
    for which, verdict in ((plan, before), (read_plan(rewritten(tmp_path, (old, new))), after)):
        assert judged(which, ALL_SHOWN).set_index("test")["verdict"][test] == verdict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("margin = 0.5", "margin = 0.0"), "margin"),
        (("alpha = 0.05", "level = 0.05"), "level"),
        (('commit = ""', 'commit = "abc"'), "belong to a plan that is frozen"),
        (("{ pilot = 0,", "{ pilot = 998,"), "a seed is one of the pilot and of the confirmation"),
        (("base_policies = 6", "base_policies = 5"), "the pilot: 6 runs do not divide over 5 base policies"),
        (('new = "published"', 'new = "share-0.1"'), "test 'published': no arm clean/share-0.1"),
        (('new = "published"', 'new = "base"'), "test 'published': no arm clean/base"),
        (("gate = true", "gate = false"), "is the gate"),
        (('hypothesis = "greater"', 'hypothesis = "better"'), "hypothesis"),
        (("frozen = false", "frozen = "), "Invalid value"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused_with_its_file(tmp_path, change, message):
    path = rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


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
