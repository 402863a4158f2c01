"""What a run shows: its tables and figures, one function each, and the page that puts them together."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.results import figures, formatting, tables, training_figures
from amir_grpo.results import verdicts as labels
from amir_grpo.system.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from amir_grpo.runs.run import Run


def main_result(run: Run) -> tuple[pd.DataFrame, Figure]:
    """Main table and figure: pass@k of GRPO and AMIR-GRPO with the gain between them. Saved as `main`."""
    table = tables.main_table(run.samples(), model=run.settings.model_name, ks=run.settings.ks)
    figure = figures.main_figure(table, title=f"This run ({run.profile}): GRPO → AMIR-GRPO (gain)")
    run.save_table(table, "main")
    run.save_figure(figure, "main")
    return table, figure


def coverage_result(run: Run) -> tuple[pd.DataFrame, Figure]:
    """Which of the three policies solve a problem, over all benchmarks of the run. Saved as `coverage`."""
    table = tables.coverage_table(run.samples())
    figure = figures.coverage_figure(table, title=f"This run ({run.profile}): problems by who solves them")
    run.save_table(table, "coverage")
    run.save_figure(figure, "coverage")
    return table, figure


def margin_result(run: Run) -> tuple[pd.DataFrame, Figure]:
    """Log-probability margins between right and wrong completions: summary and figure. Saved as `margin`."""
    margins = tables.margin_table(run.scores())
    summary = tables.margin_summary(margins)
    figure = figures.margin_figure(margins, summary, title=f"This run ({run.profile}): right minus wrong completions")
    run.save_table(margins, "margins")
    run.save_table(summary, "margin_summary")
    run.save_figure(figure, "margin")
    return summary, figure


def policies_result(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What each policy does, and every two of them compared. Saved as `policies` and `comparisons`."""
    samples, greedy = run.samples(), run.samples(greedy=True)
    summary = tables.policy_summary(samples, run.settings.ks, greedy)
    comparisons = tables.comparison_table(samples, run.settings.ks, greedy)
    run.save_table(summary, "policies")
    run.save_table(comparisons, "comparisons")
    return summary, comparisons


def reliability_result(run: Run, samples: pd.DataFrame | None = None) -> tuple[pd.DataFrame, Figure]:
    """Of a run with calibration: how often completions of a stated confidence are right. Saved as `reliability`.

    Args:
        samples: Of other policies than the run's own.
    """
    table = tables.reliability_table(run.samples() if samples is None else samples)
    figure = figures.reliability_figure(table, title=f"This run ({run.profile}): stated confidence and success")
    run.save_table(table, "reliability")
    run.save_figure(figure, "reliability")
    return table, figure


def reward_result(run: Run) -> tuple[pd.DataFrame, Figure]:
    """Reward over the training of both methods: logs and figure. Saved as `reward`."""
    logs = run.logs().dropna(subset=["reward"])  # a step that reuses a rollout has no reward of its own
    figure = training_figures.reward_figure(logs, title=f"This run ({run.profile}): reward in training")
    run.save_figure(figure, "reward")
    return logs, figure


_RESULTS = {"reward": reward_result, "main": main_result, "coverage": coverage_result, "margin": margin_result}


def _results(run: Run) -> dict[str, Callable[[Run], tuple[pd.DataFrame, Figure]]]:
    return _RESULTS | ({"reliability": reliability_result} if run.settings.calibration else {})


def draw(run: Run, missing_only: bool = False) -> list[Path]:
    """Draw every figure of a run, or those that are not there yet; returns where they are."""
    for name, result in _results(run).items():
        if not (missing_only and (run.folder / "figures" / f"{name}.png").exists()):
            result(run)
    return [run.folder / "figures" / f"{name}.png" for name in _results(run)]


_CAPTIONS = {
    "main": "Main figure. Cells: pass@k of GRPO → AMIR-GRPO (gain), in percent; below, the 95 % interval of the gain "
    "over problems. One training seed: the interval does not hold what another seed would change.",
    "coverage": "Coverage. Problems that at least one policy solves (at least one right completion of n), by which of "
    "them do.",
    "margin": "Margin. Mean length-normalised log-probability of right minus wrong completions of the same problem. "
    "Own: each policy on its own samples. Shared: both on the base policy's samples.",
    "reliability": "Reliability. How often completions that state a confidence are right; on the dotted line confidence "
    "and success agree. Bars: 95 % intervals over problems.",
    "reward": "Reward in training, mean of a step's completions; bands are 95 % intervals within this one run.",
}


def write(run: Run) -> Path:
    """Write report.html, one self-contained page; everything that came from a model is escaped.

    Returns:
        Its path.
    """
    draw(run, missing_only=True)
    samples = run.samples()
    summary, comparisons = policies_result(run)
    main = pd.read_csv(run.folder / "tables" / "main.csv")
    config = json.loads((run.folder / "config.json").read_text())
    pictures = [
        {
            "name": name,
            "caption": caption,
            "data": base64.b64encode((run.folder / "figures" / f"{name}.png").read_bytes()).decode(),
        }
        for name, caption in _CAPTIONS.items()
        if name in _results(run)
    ]
    wide = formatting.wide_summary(summary).reset_index()
    page = _PAGE.render(
        title=f"AMIR-GRPO: {run.profile}",
        sentence=verdict(main),
        verdicts=verdicts(run).to_dict("records"),
        main=main.to_dict("records"),
        signed=formatting.signed,
        summary_columns=list(wide.columns),
        summary=wide.to_numpy().tolist(),
        comparisons=comparisons.to_dict("records"),
        problems=_problem_sets(run),
        pictures=pictures,
        settings=config["settings"],
        provenance={k: v for k, v in config["provenance"].items() if k != "packages"}
        | config["provenance"]["packages"],
        examples=_examples(samples),
    )
    return write_text(run.folder / "report.html", page)


def verdicts(run: Run) -> pd.DataFrame:
    """What this run, with its one training seed, says of the paper's claims: columns claim, test, result, verdict.

    Computed from its tables by the rule of `amir_grpo.results.verdicts`; intervals are over problems, p-values are
    Holm-corrected within a claim. The claims over several seeds are in notebook 06.
    """
    main = pd.read_csv(run.folder / "tables" / "main.csv")
    clear = main[main["p_holm"] < SIGNIFICANCE]
    mean = main.loc[main["k"] == main["k"].min(), "gain"].mean()
    sign = labels.verdict(*(clear["gain"].agg(["min", "max"]))) if len(clear) else labels.OPEN
    rows = [
        {
            "claim": "AMIR-GRPO outperforms GRPO",
            "test": f"gains in pass@k, {len(main)} cells",
            "result": f"{(clear['gain'] > 0).sum()} clearly above 0, {(clear['gain'] < 0).sum()} below; mean gain at "
            f"k = {main['k'].min()}: {formatting.signed(mean)} points",
            "verdict": sign,
        }
    ]
    share = pd.read_csv(run.folder / "amir_grpo" / "log.csv").get("preference/share", pd.Series(dtype=float)).dropna()
    if len(share):
        rows.append(
            {
                "claim": "Richer supervision",
                "test": "share of the update that the preference makes; at least 5 %",
                "result": f"{100 * share.median():.2f} % (median of the steps)",
                "verdict": labels.SUPPORTED if share.median() >= 0.05 else labels.REFUTED,
            }
        )
    margins = pd.read_csv(run.folder / "tables" / "margins.csv")
    shared = margins[margins["reading"] == "shared"]
    if shared["method"].nunique() == 2:
        gain = tables.shared_margin_gain(margins)
        mean, low, high = (formatting.signed(gain[end], 4) for end in ("gain", "gain_low", "gain_high"))
        rows.append(
            {
                "claim": "Sharper decision boundary",
                "test": f"margin on shared completions, AMIR-GRPO − GRPO, {gain['problems']} problems",
                "result": f"{mean} nats a token [{low}, {high}], p = {gain['p_value']:.2g}",
                "verdict": labels.verdict(gain["gain_low"], gain["gain_high"], gain["p_value"]),
            }
        )
    test = tables.coverage_test(pd.read_csv(run.folder / "tables" / "coverage.csv"))
    more = test["only_amir_grpo"] - test["only_grpo"]
    rows.append(
        {
            "claim": "Broader coverage",
            "test": "problems solved by AMIR-GRPO and not GRPO, against the other way round (McNemar)",
            "result": f"{test['only_amir_grpo']} against {test['only_grpo']}, p = {test['p_value']:.2g}",
            "verdict": labels.verdict(more, more, test["p_value"]),
        }
    )
    return pd.DataFrame(rows)


def _problem_sets(run: Run) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted((run.folder / "problems").glob("*.json"))]


def verdict(main: pd.DataFrame) -> str:
    """What the main table says about AMIR-GRPO against GRPO, in one sentence."""
    clear = main[main["p_holm"] < SIGNIFICANCE]
    up, down = int((clear["gain"] > 0).sum()), int((clear["gain"] < 0).sum())
    if not len(clear):
        least, most = (formatting.signed(gain) for gain in (main["gain"].min(), main["gain"].max()))
        return (
            f"None of the {len(main)} gains of AMIR-GRPO over GRPO can be told from 0 (Holm-corrected p < 0.05) on these "
            f"problems with this one seed; they range from {least} to {most} points."
        )
    return (
        f"Of the {len(main)} gains of AMIR-GRPO over GRPO, {up} are above 0 and {down} below (Holm-corrected p < 0.05), "
        "on these problems with this one training seed; another seed may differ by more than these intervals say."
    )


def _examples(samples: pd.DataFrame, each: int = 3) -> list[dict[str, str]]:
    """Some right and some wrong completions of AMIR-GRPO, and some of problems where the two methods differ."""
    chosen = []
    own = samples[samples["policy"] == "amir_grpo"]
    for label, part in (("right", own[own["correct"]]), ("wrong", own[~own["correct"]])):
        for row in part.drop_duplicates("problem_id").head(each).itertuples():
            chosen.append(
                {"kind": f"AMIR-GRPO, {label}", "problem": row.problem_id, "text": formatting.visible(row.text)}
            )
    solved = samples.pivot_table(index="problem_id", columns="policy", values="correct", aggfunc="mean")
    widest = (solved["amir_grpo"] - solved["grpo"]).abs().sort_values(ascending=False, kind="stable").head(each)
    for problem in widest[widest > 0].index:
        for policy in ("grpo", "amir_grpo"):
            row = samples[(samples["policy"] == policy) & (samples["problem_id"] == problem)].iloc[0]
            share = f"{100 * solved.loc[problem, policy]:.0f} % right"
            chosen.append(
                {
                    "kind": f"methods differ: {policy}, {share}",
                    "problem": problem,
                    "text": formatting.visible(row["text"]),
                }
            )
    return chosen


_PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; } figure { margin: 1.5rem 0; } img { max-width: min(100%, 42rem); } figcaption { color: #555; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.settings td, .words td, .words th { text-align: left; white-space: normal; }
th button { font: inherit; font-weight: bold; background: none; border: 0; padding: 0; cursor: pointer; color: inherit; }
th button::after { content: "\\2195"; color: #999; font-size: .75em; margin-left: .15em; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: "\\2193"; color: inherit; }
small { color: #555; }
.gain { color: #0a4f8f; } .loss { color: #c75000; }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ sentence }}</p>
<h2>Verdicts</h2>
<div class="wide"><table class="words">
<thead><tr><th>claim</th><th>test</th><th>result</th><th>verdict</th></tr></thead><tbody>
{% for r in verdicts %}<tr><td>{{ r.claim }}</td><td>{{ r.test }}</td><td>{{ r.result }}</td><td>{{ r.verdict }}</td></tr>
{% endfor %}</tbody></table></div>
<p>One training seed: intervals and p-values are over problems. The claims over several seeds are in notebook 06.</p>
<h2>Main table</h2>
<div class="wide"><table><thead><tr><th>benchmark</th><th>k</th><th>base</th><th>GRPO</th><th>AMIR-GRPO</th><th>gain</th>
<th>95 % interval</th><th>p</th><th>p (Holm)</th><th>problems</th></tr></thead><tbody>
{% for r in main %}<tr><td>{{ r.benchmark }}</td><td>{{ r.k }}</td><td>{{ '%.1f' % r.base }}</td>
<td>{{ '%.1f' % r.grpo }}</td><td>{{ '%.1f' % r.amir_grpo }}</td>
<td class="{{ 'gain' if r.gain >= 0.05 else 'loss' if r.gain <= -0.05 }}">{{ signed(r.gain) }}</td>
<td>{{ signed(r.gain_low) }} to {{ signed(r.gain_high) }}</td><td>{{ '%.3f' % r.p_value }}</td>
<td>{{ '%.3f' % r.p_holm }}</td><td>{{ r.problems }}</td></tr>
{% endfor %}</tbody></table></div>
<p>pass@k in percent, gains in points; {{ main[0].samples }} completions a problem.
Intervals: 95 %, over problems, paired.</p>
<h2>Figures</h2>
{% for p in pictures %}<figure><img alt="{{ p.name }} figure" src="data:image/png;base64,{{ p.data }}">
<figcaption>{{ p.caption }}</figcaption></figure>
{% endfor %}
<h2>Policies</h2>
<div class="wide"><table><thead><tr>{% for c in summary_columns %}<th>{{ c }}</th>{% endfor %}</tr></thead><tbody>
{% for row in summary %}<tr>{% for cell in row %}{% set estimate, _, interval = (cell|string).partition(' [') -%}
<td>{{ estimate }}{% if interval %}<br><small>[{{ interval }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p>pass@k, greedy, truncated and formatted in percent, tokens a completion; in brackets 95 % intervals over problems.
greedy: one completion a problem at temperature 0. truncated: ended for length. formatted: keeps to the strict format.</p>
<h2>Every two policies</h2>
<div class="wide"><table><thead><tr><th>benchmark</th><th>quantity</th><th>policy</th><th>against</th>
<th>policy, %</th><th>against, %</th><th>gain</th><th>95 % interval</th><th>p</th><th>p (Holm)</th></tr></thead><tbody>
{% for r in comparisons %}<tr><td>{{ r.benchmark }}</td><td>{{ r.quantity }}</td><td>{{ r.new }}</td><td>{{ r.old }}</td>
<td>{{ '%.1f' % r.new_percent }}</td><td>{{ '%.1f' % r.old_percent }}</td>
<td class="{{ 'gain' if r.gain >= 0.05 else 'loss' if r.gain <= -0.05 }}">{{ signed(r.gain) }}</td>
<td>{{ signed(r.gain_low) }} to {{ signed(r.gain_high) }}</td><td>{{ '%.3f' % r.p_value }}</td>
<td>{{ '%.3f' % r.p_holm }}</td></tr>
{% endfor %}</tbody></table></div>
<p>Gains in points, paired by problem; p: sign-flip test, corrected for the {{ comparisons|length }} rows (Holm).</p>
<h2>Completions</h2>
{% for e in examples %}<p>{{ e.kind }} ({{ e.problem }})</p><pre>{{ e.text }}</pre>
{% endfor %}
<h2>Settings</h2>
<table class="settings">{% for name, value in settings.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Problems</h2>
<table class="settings">{% for p in problems %}<tr><td>{{ p.set }}</td><td>{{ p.problems }} problems, {{ p.source }},
fingerprint {{ p.fingerprint }}</td></tr>
{% endfor %}</table>
<h2>Provenance</h2>
<table class="settings">{% for name, value in provenance.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
<script>
// a click on a column's head sorts its table: numbers by the first one in the cell, words by the alphabet
const key = (row, i) => row.cells[i].textContent.trim().replace("\u2212", "-");
document.querySelectorAll("thead th").forEach(th => {
  const button = document.createElement("button");
  button.type = "button"; button.textContent = th.textContent; th.replaceChildren(button);
  button.addEventListener("click", () => {
    const table = th.closest("table"), body = table.tBodies[0], i = th.cellIndex;
    const down = th.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a, i), y = key(b, i), m = parseFloat(x), n = parseFloat(y);
      return isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n;
    });
    body.append(...(down ? rows.reverse() : rows));
  });
});
</script>
</body></html>
""")
