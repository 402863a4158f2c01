"""Tables, numbers and untrusted texts as people read them: in notebooks, on the terminal and in the report."""

import html
from collections.abc import Mapping

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from amir_grpo import metrics
from amir_grpo.choices import POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results import old_tables as tables
from amir_grpo.settings import RunSettings, help_of

# blue and orange are told apart by every common kind of colour vision, and by their grey values
GAIN_COLOUR, LOSS_COLOUR = "#0a4f8f", "#c75000"

# A longer table is folded away in a notebook: a figure has said what it says.
LONG_TABLE = 16
# What a reader of a run wants to know of its settings.
_SETTINGS_SHOWN = ("model_name", "dataset_name", "num_generations", "lambda_reg", "beta_dpo", "reward_margin")


def gain_colour(gain: float, p_value: float) -> str:
    """The colour of a gain in a table, as in the figures: blue above 0, orange below, grey unless it is significant."""
    if not p_value < SIGNIFICANCE:
        return "#555555"
    return GAIN_COLOUR if gain > 0 else LOSS_COLOUR


def _gains_coloured(table: Styler, p_values: pd.Series) -> Styler:
    def colours(gains: pd.Series) -> list[str]:
        pairs = zip(gains, p_values, strict=True)
        return [f"color: {gain_colour(gain, p_value)}; font-weight: bold" for gain, p_value in pairs]

    return table.apply(colours, subset=["gain"])


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign and some decimals, as +1.3, −0.2 and 0.0; – where there is none."""
    if np.isnan(value):
        return "–"
    return f"{0:.{digits}f}" if abs(value) < 0.5 * 10**-digits else f"{value:+.{digits}f}".replace("-", "−")


def with_interval(row: Mapping[str, float], digits: int = 2) -> str:
    """A gain and the ends of its interval, as +0.02 [−0.10, +0.14]; `row`: gain, gain_low and gain_high."""
    gain, low, high = (signed(row[end], digits) for end in ("gain", "gain_low", "gain_high"))
    return f"{gain} [{low}, {high}]"


def p_text(p_value: float) -> str:
    """A p-value as text, – where there is none."""
    return "–" if np.isnan(p_value) else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def so_many_are(number: int) -> str:
    """A number of things as the subject of a sentence: none is, 1 is, 2 are."""
    return f"{number or 'none'} {'are' if number > 1 else 'is'}"


def p_equals(p_value: float) -> str:
    """A p-value as it follows the letter p in a sentence: = 0.034, < 0.001."""
    text = p_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def rounded(table: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """A table to be printed: numbers rounded, without −0.0, and p-values as text."""
    numbers = table.select_dtypes("float")
    return table.assign(
        **{c: numbers[c].map(p_text) if c.startswith("p_") else numbers[c].round(digits) + 0.0 for c in numbers}
    )


def unchanged_note(main: pd.DataFrame) -> str:
    """Why some intervals are equal, as a sentence after a blank; nothing where none are.

    They are those of comparisons in which both policies score the same on every problem: what the number of problems leaves
    open.

    Args:
        main: Columns gain, gain_low, gain_high (points) and problems.
    """
    parts, number = [], 0
    for problems, rows in main.groupby("problems", sort=False):
        same = metrics.paired_gain(np.zeros(problems), np.zeros(problems))
        ends = np.isclose(rows["gain_low"], 100 * same.low) & np.isclose(rows["gain_high"], 100 * same.high)
        if count := int((ends & (rows["gain"] == 0)).sum()):
            number += count
            parts.append(f"±{100 * same.high:.1f} points of {problems} problems")
    if not parts:
        return ""
    return (
        f" In {number} of {len(main)} comparisons both policies score the same on every problem: their interval, "
        f"{' and '.join(parts)}, is what that number of problems leaves open, and not a spread that was seen."
    )


def visible(text: str) -> str:
    """Untrusted text with its control characters (ANSI codes, NULs) and lone surrogates made visible; lines stay lines."""
    return "".join(c if c in "\n\t" or (c.isprintable() and not "\ud800" <= c <= "\udfff") else "\ufffd" for c in text)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the policies' names as people write them, in its heads and in the columns that name a policy."""
    columns = [column for column in ("policy", "method", "new", "old") if column in table]
    names = {column: table[column].map(lambda name: POLICY_NAMES.get(name, name)) for column in columns}
    return table.assign(**names).rename(columns=POLICY_NAMES)


def numbered(completions: pd.DataFrame) -> pd.DataFrame:
    """A table of completions with their numbers in front, from 1, as the figures of the lesson have them."""
    return completions.assign(**{"": range(1, len(completions) + 1)})[["", *completions.columns]]


def folded(table: Styler, what: str) -> str:
    """A table as HTML for a notebook; behind a line that opens it, if it has more than `LONG_TABLE` rows.

    Args:
        table: Its texts are escaped.
        what: The line, such as "All 36 comparisons".
    """
    shown = table.to_html()
    if len(table.data) <= LONG_TABLE:
        return shown
    return f"<details><summary>{html.escape(what)}</summary>\n{shown}</details>"


def style_settings(settings: RunSettings) -> Styler:
    """The settings that a reader of the run's results wants to know, with their meaning, for a notebook."""
    values = settings.flat()
    rows = [(name, f"{values[name]}", help_of(name)) for name in _SETTINGS_SHOWN]
    return style_texts(pd.DataFrame(rows, columns=["setting", "value", "meaning"]))


def style_group(question: str, answers: list[str], completions: pd.DataFrame) -> Styler:
    """Completions of one problem for a notebook, below its question and its answer; all of it untrusted, and escaped.

    Args:
        question: Of the problem.
        answers: Any of which is right.
        completions: What is shown of each, one row per completion.
    """
    caption = html.escape(visible(f"{question}\nright: {' or '.join(answers)}"))
    if "correct" in completions:
        completions = completions.assign(correct=completions["correct"].map({True: "right", False: "wrong"}))
    style = style_texts(completions)
    left = [
        {"selector": "caption", "props": "text-align: left; white-space: pre-wrap; font-weight: bold"},
        {"selector": "th", "props": "text-align: left"},
    ]
    return style.set_caption(caption).set_table_styles(left)


def style_texts(table: pd.DataFrame) -> Styler:
    """A table with untrusted texts for a notebook: escaped, without mathematics being typeset, lines kept."""
    table = table.copy()
    texts = [c for c in table if pd.api.types.is_string_dtype(table[c]) or table[c].dtype == object]
    for column in texts:
        table[column] = [visible(value) if isinstance(value, str) else value for value in table[column]]
    return (
        table.style.hide(axis="index")
        .format(precision=2, escape="html")
        .set_table_attributes('class="tex2jax_ignore mathjax_ignore"')
        .set_properties(subset=texts, **{"text-align": "left", "white-space": "pre-wrap", "max-width": "36em"})
    )


def style_main_table(table: pd.DataFrame) -> Styler:
    """The main table (ours or the published one) for a notebook: clear gains coloured, intervals, text escaped."""
    table = tables.with_gain(table).reset_index(drop=True)
    shown = table[
        ["benchmark", "k", "model", *[c for c in ("base",) if c in table], "grpo", "amir_grpo", "gain"]
    ].copy()
    caption = "pass@k in percent; gain: AMIR-GRPO minus GRPO in percentage points."
    if "gain_low" in table:
        shown["95 % interval"] = [
            f"{signed(low)} to {signed(high)}" for low, high in zip(table["gain_low"], table["gain_high"], strict=True)
        ]
        shown["p (Holm)"] = [p_text(p) for p in table["p_holm"]]
        shown["problems"] = table["problems"]
        caption += (
            f" Interval over problems; p: paired sign-flip test, corrected for the {len(table)} rows (Holm);"
            f" n = {', '.join(map(str, table['samples'].unique()))} samples per problem."
            f" A gain is grey unless p < {SIGNIFICANCE}.{unchanged_note(table)}"
        )
    names = POLICY_NAMES | {"base": "base"}
    shown = shown.rename(columns=names)
    numbers = {
        name: lambda value: "–" if np.isnan(value) else f"{value:.1f}" for name in names.values() if name in shown
    }
    # one call: a second format would undo the first one's escaping
    style = shown.style.format(numbers | {"gain": signed}, escape="html").hide(axis="index").set_caption(caption)
    return _gains_coloured(style, table["p_holm"] if "p_holm" in table else pd.Series(np.nan, table.index))


def style_comparisons(comparisons: pd.DataFrame) -> Styler:
    """A comparison table for a notebook: clear gains coloured, intervals and corrected p-values, text escaped."""
    shown = comparisons[["benchmark", "quantity"]].copy()
    named_ones = named(comparisons)
    shown["policy"], shown["against"] = named_ones["new"], named_ones["old"]
    shown["gain"] = comparisons["gain"]
    ends = zip(comparisons["gain_low"], comparisons["gain_high"], strict=True)
    shown["95 % interval"] = [f"{signed(low)} to {signed(high)}" for low, high in ends]
    shown["p (Holm)"] = [p_text(p) for p in comparisons["p_holm"]]
    return _gains_coloured(
        shown.style.format({"gain": signed}, escape="html").hide(axis="index"), comparisons["p_holm"]
    )


def wide_summary(summary: pd.DataFrame) -> pd.DataFrame:
    """A policy summary as people read it: a row for each benchmark and policy, estimates with their intervals as text."""
    cells = [
        # a line breaks before [ alone
        f"{row.estimate:.{digits}f} [{row.estimate_low:.{digits}f},\u00a0{row.estimate_high:.{digits}f}]"
        if np.isfinite(row.estimate_low)
        else ("–" if np.isnan(row.estimate) else f"{row.estimate:.{digits}f}")
        for row in summary.itertuples()
        for digits in [3 if row.quantity in ("brier", "ece") else 1]
    ]
    summary = named(summary)
    wide = summary.assign(cell=cells).pivot(index=["benchmark", "policy"], columns="quantity", values="cell")
    order = summary[["benchmark", "policy"]].drop_duplicates().sort_values("benchmark", key=_first_met, kind="stable")
    return wide.loc[list(order.itertuples(index=False, name=None)), list(summary["quantity"].unique())]


def _first_met(names: pd.Series) -> pd.Series:
    """Sort key: the place of each name in order of appearance."""
    return names.map({name: place for place, name in enumerate(names.unique())})
