"""Numbers written by hand in README, docs and notebooks 06 to 08 are those of the data; the kept tables derive again."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from amir_grpo import metrics
from amir_grpo.grading import is_correct
from amir_grpo.results.style import signed, with_interval
from amir_grpo.results.tables import published_table
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.study import claims
from amir_grpo.study.experiment import check_kept, runs_in_order
from amir_grpo.study.kept import complete_arms, kept_studies, load_study
from amir_grpo.study.plan import PLANS, read_plan
from tools import hero
from tools.study import study_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "results"
PLAN = read_plan()
COMPARED = ["gain", "gain_low", "gain_high", "gain_inner_low", "gain_inner_high", "detectable"]


@pytest.fixture(scope="module")
def studies():
    return kept_studies(PLAN)


def prose(name):
    """The text of a page, or of the markdown cells of a notebook, without the computed tables of docs."""
    text = (ROOT / name).read_text()
    if name.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return " ".join(re.sub(r"<!-- table.*?<!-- end of table -->", "", text, flags=re.DOTALL).split())


def test_the_kept_tables_derive_again_to_the_last_digit(studies):
    for name, table in study_tables(studies, PLAN).items():
        text = table.to_csv(index=False, float_format="%.6g")
        assert (RESULTS / f"{name}.csv").read_text() == text, name


def test_the_estimates_are_those_of_the_raw_counts(studies):
    """Without the package's inference: means of base policies over problems, and SciPy's t-test on them."""
    kept = pd.read_csv(RESULTS / "tests.csv").set_index("test")
    for test in PLAN.tests:
        counts = studies.main.tables["problems"].query("benchmark != 'chain8'")
        means = [
            counts[(counts["regime"] == test.regime) & (counts["arm"] == arm)]
            .groupby(["base", "seed"])["correct"]
            .mean()
            for arm in (test.new, test.old)
        ]
        gains = (100 * (means[0] - means[1]) / studies.main.samples).dropna().groupby("base").mean()
        row = kept.loc[test.name]
        assert gains.mean() == pytest.approx(row["gain"], rel=1e-5)
        # the variance of problems can only be added
        assert stats.ttest_1samp(gains, 0).pvalue <= row["p_value"] * (1 + 1e-5)


@pytest.fixture(scope="module")
def gains(studies):
    return claims.exploratory_gains(studies, [*claims.KNOBS, *claims.REGIME_GAINS, *claims.RIVALS], PLAN)


@pytest.fixture(scope="module")
def tables(studies, gains):
    extra = claims.gain_table(studies, [("outliers/grpo", "outliers/dr_grpo")], PLAN)
    family = claims.plan_table(load_study(RESULTS / "family"), read_plan(PLANS["family"]))
    return [pd.read_csv(RESULTS / "tests.csv"), gains, extra, claims.claims_table(studies, PLAN), family]


@pytest.fixture(scope="module")
def triples(tables):
    """Every gain of the data with the ends of an interval, in both directions."""
    found = {_written(_by_model().mean(), *stats.ttest_1samp(_by_model(), 0).confidence_interval())}
    for table in tables:
        for gain, low, high, inner_low, inner_high in table[COMPARED[:5]].to_numpy(float):
            for ends in ((low, high), (inner_low, inner_high)):
                found |= {_written(gain, *ends), _written(-gain, -ends[1], -ends[0])}
    return found


def _written(*values):
    return tuple(signed(value, 2).removeprefix("+") for value in values)


@pytest.fixture(scope="module")
def known(studies, gains, tables):
    """Every number with two decimals that the data have, without its sign, and p-values with three."""
    values = np.concatenate([table[COMPARED].to_numpy(float).ravel() for table in tables])
    alone = (claims.solved_alone(studies.main, arm) for arm in claims.STRENGTHS.values())
    values = np.append(values, [100 * np.mean([*part.values()]) for parts in alone for part in parts])
    values = np.append(
        values, [*gains["p_holm"], 100 * hero.measured_share(studies.main)[0], hero.measured_share(studies.main)[1]]
    )
    values = np.append(
        values, 100 * hero.measured_share(load_study(RESULTS / "language-3"), "plain-stories/published")[0]
    )
    for test in PLAN.tests:
        by_base = [_by_base(study, *test.pair) for study in studies.ordered]
        values = np.append(values, np.corrcoef(*by_base)[0, 1])
        base = pd.Series({run[0]: rates.mean() for run, rates in studies.main.solved("clean/base").items()})
        values = np.append(values, np.corrcoef(base.sort_index(), by_base[0])[0, 1])
    p_values = {f"{value:.3f}" for value in [*gains["p_holm"], stats.ttest_1samp(_by_model(), 0).pvalue]}
    return {f"{abs(value):.2f}" for value in values if np.isfinite(value)} | p_values | _published()


def _by_base(study, new, old):
    new, old = study.solved(new), study.solved(old)
    gains = pd.Series({run: new[run].mean() - old[run].mean() for run in new if run in old})
    return gains.groupby(level=0).mean().sort_index()


def _by_model():
    once = published_table("table1").query("k == 1")
    return (once["amir_grpo"] - once["grpo"]).groupby(once["model"], sort=False).mean()


def _published():
    gains = _by_model()
    interval = stats.ttest_1samp(gains, 0).confidence_interval()
    return {f"{value:.2f}" for value in [*gains, gains.mean(), *interval, gains.std(ddof=1)]}


# Two decimals that are no result: λ, the significance level, the half width of the noise, the version of Python.
GIVEN = {"0.01", "0.05", "0.45", "3.11"}
ENDS = r" \[([+−]?\d+\.\d\d), ([+−]?\d+\.\d\d)\]"
GAIN = r"([+−]?\d+\.\d\d)(?: points)?(?: on average)?"


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/results.md",
        "docs/reproducibility.md",
        *(f"notebooks/{n}.ipynb" for n in ("06_claims", "08_regimes")),
    ],
)
def test_every_number_with_two_decimals_in_the_prose_is_one_of_the_data(name, known, triples):
    found = set(re.findall(r"(?<![\d.])\d+\.\d\d(?!\.?\d)|(?<=p = )\d\.\d{3}", prose(name)))
    assert found - GIVEN - known == set()
    gains = re.findall(GAIN + ENDS, prose(name))
    assert len(gains) == len(re.findall(ENDS, prose(name)))
    assert {tuple(number.removeprefix("+") for number in gain) for gain in gains} <= triples


def test_the_correlations_of_weights_with_wins_minus_losses_are_those_of_the_kept_weights():
    weights = pd.read_csv(RESULTS / "identity.csv").groupby("beta")
    published, one, ten = (
        f"{part['weight'].corr(part['wins_minus_losses']):.{digits}f}"
        for digits, (_, part) in zip((4, 3, 2), weights, strict=True)
    )
    said = rf"is {published} at $\beta = 0.2$, {one} at $\beta = 1$, and {ten} at $\beta = 10$"
    assert said in prose("docs/method.md")
    assert f"correlation with the published weights is {published}" in prose("docs/coming-from.md")
    assert f"is {published}; at a β of 10 it falls to {ten}." in prose("notebooks/07_ablations.ipynb")


def test_the_shares_and_levels_in_the_prose_are_those_of_the_rollouts(studies):
    text = prose("notebooks/06_claims.ipynb")
    share, size = hero.measured_share(studies.main)
    assert share == pytest.approx(0.002 / (0.002 + size), rel=0.05), "λβ / (λβ + mean |A|)"
    formula = f"{100 * 0.002 / (0.002 + size):.2g} % at the paper's λ = 0.01, β = 0.2 and a mean |A| of {size:.2f}"
    assert f"{formula}, and {100 * share:.2g} % as measured" in text
    new = claims.supervision(studies.main, "clean/mixture-0.6", "residual_share").estimate
    assert f"At 60 %, {new:.1f} % of the update is new" in text
    own = studies.main.tables["boundary"].query("temperature == 1 and seed < 1006 and regime == 'clean'")
    base, grpo = (
        own.query(f"arm == '{arm}' and step == {step}")["accuracy"].mean() for arm, step in (("base", 0), ("grpo", 60))
    )
    assert f"the base policy has {100 * base:.1f} %, GRPO {100 * grpo:.1f} %" in text
    arms = claims.STRENGTHS.values()
    found = [claims.boundary_gain(studies.main, arm, claims.GRPO, "margin") for arm in arms]
    level = 1 - 2 * PLAN.alpha / claims.DECLARED
    reach = [np.ptp(comparison.interval(level)) / 2 for comparison, _ in found]
    assert f"±{reach[0]:.0f} and ±{reach[1]:.0f} thousandths of a nat, and ±{found[0][1]:.1f}" in text
    gspo = studies.first("clean/two-step-gspo").part("rollouts", "clean/two-step-gspo")["clip_ratio"].mean()
    assert f"GSPO's clips {100 * gspo:.0f} %" in text


def test_the_ranges_in_the_prose_are_those_of_the_benchmarks():
    errors, steps = (pd.read_csv(RESULTS / f"{name}.csv") for name in ("type_one_error", "step_cost"))
    text = prose("docs/results.md") + prose("docs/method.md")
    for column in ("rejects_5", "covers_95"):
        assert f"{errors[column].min():.1f} to {errors[column].max():.1f} %" in text
    for column in ("ratio", "grpo_ratio"):
        assert f"{steps[column].min():.2f} to {steps[column].max():.2f} of" in text


def test_the_published_table_is_read_with_the_noise_that_it_implies():
    table = published_table("table1").sort_values(["model", "benchmark", "k"])
    once, twice = (table[table["k"] == k].reset_index(drop=True) for k in (1, 2))
    variance = sum((twice[m] - once[m]).clip(lower=0) / 100 / 8 for m in ("grpo", "amir_grpo"))
    error = 100 * np.sqrt(
        variance / once["benchmark"].map(published_table("sizes").set_index("benchmark")["problems"])
    )
    p_values = 2 * stats.norm.sf((once["amir_grpo"] - once["grpo"]).abs() / error)
    text = prose("docs/results.md")
    alone, together = (p_values < 0.05).sum(), (metrics.holm(p_values) < 0.05).sum()
    assert (
        f"taken alone, {alone} of the 21 gains in pass@1 exceed it, {together or 'none'} after Holm's correction"
        in text
    )
    gains = _by_model()
    test = stats.ttest_1samp(gains, 0)
    low, high = test.confidence_interval()
    assert f"{gains.mean():+.2f} points on average [{low:.2f}, {high:.2f}]" in text
    assert f"p = {test.pvalue:.3f}" in text


def test_pass_2_minus_pass_1_is_the_noise_of_drawing_samples():
    """By simulation: the standard error is that of evaluations repeated on the same problems."""
    generator = np.random.default_rng(1)
    chances = generator.beta(0.6, 1.2, 60)
    draws = metrics.pass_at_k(generator.binomial(8, chances, (20_000, 60)), 8, 1).mean(axis=1)
    implied = np.mean(1 - (1 - chances) ** 2) - np.mean(chances)
    assert draws.std() == pytest.approx(np.sqrt(implied / 8 / 60), rel=0.02)


def test_the_hero_is_drawn_from_the_kept_runs(studies):
    same = hero.same_completions(studies.main)
    assert same.shape == (6, 60)
    assert (np.diff(same.astype(int), axis=1) <= 0).all(), "once parted, a pair stays apart"
    levels = hero.end_levels(studies.main)
    counts = (
        studies.main.tables["problems"].query("regime == 'clean' and benchmark == 'chain7'").groupby("arm")["correct"]
    )
    row = levels.set_index("benchmark").loc["chain7"]
    assert row["base"] == pytest.approx(100 * counts.mean()["base"] / 8)
    assert row["amir_grpo"] == pytest.approx(100 * counts.mean()["published"] / 8)
    assert row["gain"] == pytest.approx(row["amir_grpo"] - row["grpo"])
    titles = [axes.get_title(loc="left") for axes in hero.hero_figure(studies.main).axes]
    assert titles[1] == f"2  Equal for {np.median(same.sum(axis=1)):g} of 60 steps"
    base, grpo, amir = (f"{levels[policy].mean():.1f} %" for policy in ("base", "grpo", "amir_grpo"))
    text = prose("README.md")
    assert f"{base} before training, {grpo} with GRPO, {amir} with AMIR-GRPO" in text
    assert f"the first {np.median(same.sum(axis=1)):g} of 60 steps" in text
    bound = float(re.search(r"interval of the gain lies within ±([\d.]+) points and contains 0", text)[1])
    assert levels[["gain_low", "gain_high"]].abs().to_numpy().max() <= bound
    assert (levels["gain_low"] < 0).all()
    assert (levels["gain_high"] > 0).all()


def test_pilot_and_cost_of_the_language_model_are_as_its_page_says():
    pilot = pd.read_csv(RESULTS / "language_pilot.csv")
    part = pilot[pilot["claims"]].groupby((pilot["step"] - 1) // 10)[["right", "completions"]].sum()
    first, fourth, sixth = (
        f"{100 * part['right'] / part['completions']:.0f} %" for _, part in part.loc[[0, 3, 5]].iterrows()
    )
    assert f"{first} right in its first ten steps, {fourth} in the fourth ten, {sixth} in the sixth" in prose(
        "docs/language-model.md"
    )
    (cost,) = pd.read_csv(RESULTS / "language_step_cost.csv").to_dict("records")
    said = (
        "{ratio:.2f} times as long as stock TRL's on the same policy "
        "({seconds:.0f} s of CPU time against {stock_seconds:.0f} s: "
        "drawing {drawing_ratio:.2f}, passes {passes_ratio:.2f}), "
        "and a training {memory_gigabytes:.1f} GB, {memory_ratio:.2f} times"
    )
    assert said.format(**cost) in prose("docs/language-model.md")


def test_the_language_models_share_levels_and_gains_are_as_the_readme_and_its_page_say():
    readme, page, found = prose("README.md"), prose("docs/language-model.md"), {}
    for name in ("language-2", "language-3"):
        plan = read_plan(PLANS[name])
        study = complete_arms(load_study(RESULTS / name), plan)
        for row in claims.plan_table(study, plan).to_dict("records"):
            found[name, row["test"]] = with_interval(row, 1), f": **{row['verdict']}**"
    share, size = hero.measured_share(study, "plain-stories/published")
    assert share == pytest.approx(0.002 / (0.002 + size), rel=0.03), "λβ / (λβ + mean |A|)"
    assert (
        f"the share was {100 * share:.2f} % (median of the rollouts with a pair; formula: {0.2 / (0.002 + size):.2f} %)"
        in readme
    )
    base, grpo, amir = (
        f"{100 * np.mean([*study.solved(f'plain-stories/{arm}').values()]):.1f} %"
        for arm in ("base", "grpo", "published")
    )
    assert f"from {base} to {grpo}, AMIR-GRPO to {amir}" in readme
    assert found["language-3", "published"][0].replace(" [", " points [") in readme
    for said, test in (
        (f"pass@1 rises from {base} to {grpo}, by ", "learns"),
        ("At the paper's λ and β, AMIR-GRPO − GRPO is ", "published"),
        ("At 60 % of the update it is ", "mixture"),
    ):
        assert said + "".join(found["language-3", test]) in page
    half, strong, published = (found["language-2", test][0] for test in ("half", "mixture", "published"))
    assert f"30 steps − 15 {half}, published − GRPO {published}, 60 % − GRPO {strong}" in page


@pytest.mark.parametrize("name", ["language", "language-2", "language-3"])
def test_the_kept_runs_of_the_language_model_are_those_of_its_plan_and_their_texts_are_what_was_counted(
    tmp_path, name
):
    plan = read_plan(PLANS[name])
    runs = runs_in_order(plan, name, tmp_path)
    for run in runs:
        check_kept(run, RESULTS / name)
    study = load_study(RESULTS / name)
    assert set(study.runs["path"] + study.runs["seed"].astype(str)) <= {f"{run.arm.path}{run.seed}" for run in runs}
    texts, counts = study.tables["completions"], study.tables["problems"]
    key = ["arm", "seed", "benchmark"]
    kept = counts.groupby(key)[["correct", "tokens_right"]].sum()
    right = texts[texts["correct"]].groupby(key)["tokens"].agg(["size", "sum"])
    assert (kept.to_numpy() == right.reindex(kept.index, fill_value=0).to_numpy()).all()
    graded = [
        is_correct(text, answer)
        for text, answer in zip(*_answered(texts.sample(200, random_state=0), plan), strict=True)
    ]
    assert graded == texts.sample(200, random_state=0)["correct"].tolist()


def _answered(texts, plan):
    """The texts, and the answers of their problems."""
    limit, seed = plan.settings["eval_limit"], plan.settings["eval_seed"]
    answers = {}
    for kind in plan.settings["benchmarks"]:
        posed = load_sandbox(kind, limit, seed)
        answers |= dict(zip(posed["id"], posed["answer"], strict=True))
    return texts["text"].tolist(), [answers[problem] for problem in texts["problem_id"]]
