"""The lines of the README that are computed from the kept results: `python -m tools.gallery` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from amir_grpo.choices import SIGNIFICANCE
from amir_grpo.results.formatting import signed
from amir_grpo.results.hero import first_differences
from tools.hero import twins_of

BEGIN, END = "<!-- computed: python -m tools.gallery -->", "<!-- end of what is computed -->"


def findings_lines(kept: dict[str, pd.DataFrame]) -> str:
    """The three findings of the kept run, as Markdown.

    Args:
        kept: The kept results of one run of each method: tables main and log.
    """
    log, main = kept["log"], kept["main"]
    share = 100 * log.loc[log["method"] == "amir_grpo", "preference/share"].median()
    steps = int(log["step"].max())
    equal = int(np.median(first_differences(twins_of(log)))) - 1
    first = main[main["k"] == 1]
    base, grpo, amir_grpo = (first[policy].mean() for policy in ("base", "grpo", "amir_grpo"))
    clear = int((main["p_holm"] < SIGNIFICANCE).sum())
    gains = f"{signed(main['gain'].min())} to {signed(main['gain'].max())} points"
    told = f"{clear} of them" if clear else "none of them"
    return "\n".join(
        [
            f"1. **How much is added?** At the published λ and β the preference term is {share:.2g} % of the update.",
            f"2. **What does it change?** With the same seed, the two trainings draw the same completions for the "
            f"first {equal} of {steps} steps.",
            f"3. **Where do they end?** pass@1, mean of {', '.join(first['benchmark'])}: {base:.1f} % before training, "
            f"{grpo:.1f} % with",
            f"   GRPO, {amir_grpo:.1f} % with AMIR-GRPO. The {len(main)} gains in pass@1, 2 and 4 go from {gains};",
            f"   {told} can be told from 0 (p < {SIGNIFICANCE}, Holm).",
        ]
    )


def write_findings(page: Path, lines: str) -> None:
    """Put the lines into their place in a page.

    Raises:
        ValueError: If the page does not have the two marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks {BEGIN} and {END}.")
    page.write_text(f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}", encoding="utf-8")
