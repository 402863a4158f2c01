"""What one run says of its two policies. It has one training seed per method, so that it gives no verdict on a method."""

from __future__ import annotations

import pandas as pd

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.results import tables
from amir_grpo.results.formatting import p_text, signed

FINDING_COLUMNS = ["quantity", "result", "interval", "p"]


def findings_table(
    main: pd.DataFrame, coverage: pd.DataFrame, margins: pd.DataFrame, logs: pd.DataFrame
) -> pd.DataFrame:
    """Each quantity that the paper makes a claim about, as text: columns `FINDING_COLUMNS`.

    Intervals and p-values are over problems; they do not cover a new training seed.

    Args:
        main, coverage, margins: Tables of the run (`amir_grpo.results.tables`).
        logs: The training logs of both methods, with a column method.
    """
    rows = [_gains(main)]
    share = logs.loc[logs["method"] == "amir_grpo"].get("preference/share", pd.Series(dtype=float)).dropna()
    if len(share):
        result = f"{100 * share.median():.2f} % (median of the steps)"
        rows.append(("Richer supervision: share of the update that the preference makes", result, "–", "–"))
    shared = margins[margins["reading"] == "shared"]
    if shared["method"].nunique() == 2:
        rows.append(_margin_gain(margins))
    rows.append(_coverage(coverage))
    return pd.DataFrame(rows, columns=FINDING_COLUMNS)


def _gains(main: pd.DataFrame) -> tuple[str, str, str, str]:
    up, down = _clear_gains(main)
    first = main[main["k"] == main["k"].min()]
    result = f"{signed(first['gain'].mean())} points on average at k = {main['k'].min()}; "
    result += f"of {len(main)} gains {up} clearly above 0, {down} clearly below"
    return "Gain in pass@k, AMIR-GRPO − GRPO", result, "see the main table", "Holm"


def _margin_gain(margins: pd.DataFrame) -> tuple[str, str, str, str]:
    gain = tables.shared_margin_gain(margins)
    mean, low, high = (signed(gain[end], 4) for end in ("gain", "gain_low", "gain_high"))
    quantity = (
        f"Sharper decision boundary: margin on shared completions, AMIR-GRPO − GRPO, {gain['problems']} problems"
    )
    return quantity, f"{mean} nats per token", f"{low} to {high}", p_text(gain["p_value"])


def _coverage(coverage: pd.DataFrame) -> tuple[str, str, str, str]:
    test = tables.coverage_test(coverage)
    quantity = "Broader coverage: problems solved by AMIR-GRPO and not GRPO, and the other way round (McNemar)"
    return quantity, f"{test['only_amir_grpo']} and {test['only_grpo']}", "–", p_text(test["p_value"])


def main_sentence(main: pd.DataFrame) -> str:
    """What the main table says about these two policies, in one sentence."""
    up, down = _clear_gains(main)
    scope = (
        "on these problems, for these two policies; another training seed may differ by more than these intervals say."
    )
    if not up and not down:
        least, most = signed(main["gain"].min()), signed(main["gain"].max())
        return (
            f"None of the {len(main)} gains of AMIR-GRPO over GRPO, which range from {least} to {most} points, is "
            f"distinguishable from 0 (Holm-corrected p < {SIGNIFICANCE}) {scope}"
        )
    return (
        f"Of the {len(main)} gains of AMIR-GRPO over GRPO, {up} are above 0 and {down} below (Holm-corrected p < "
        f"{SIGNIFICANCE}) {scope}"
    )


def _clear_gains(main: pd.DataFrame) -> tuple[int, int]:
    clear = main.loc[main["p_holm"] < SIGNIFICANCE, "gain"]
    return int((clear > 0).sum()), int((clear < 0).sum())
