"""The figure of the comparisons between policies: a table in, matplotlib Figure out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from amir_grpo.choices import POLICY_NAMES, SIGNIFICANCE
from amir_grpo.results.style import add_title, new_figure, styled

_GREY = "#8c8c8c"


@styled
def comparisons_figure(comparisons: pd.DataFrame) -> Figure:
    """Gains of every policy over every other, with their 95 % intervals: a panel for each two, on one axis.

    `comparisons`: from `amir_grpo.results.tables.comparison_table`. A clear gain (Holm-corrected p < 0.05) is black, every
    other one grey.
    """
    two = list(dict.fromkeys(zip(comparisons["new"], comparisons["old"], strict=True)))
    rows = list(dict.fromkeys(zip(comparisons["benchmark"], comparisons["quantity"], strict=True)))
    figure = new_figure(1.2 + 2.0 * len(two), 0.75 + 0.17 * len(rows))
    panels = figure.subplots(1, len(two), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (new, old) in zip(panels, two, strict=True):
        part = comparisons[(comparisons["new"] == new) & (comparisons["old"] == old)]
        panel.axvline(0, color="#444444", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        for row in part.itertuples():
            clear = row.p_holm < SIGNIFICANCE
            colour = "black" if clear else _GREY
            place = rows.index((row.benchmark, row.quantity))
            panel.plot([row.gain_low, row.gain_high], [place, place], color=colour, linewidth=1.2)
            panel.plot([row.gain], [place], "o", color=colour, markersize=4)
        clear = int((part["p_holm"] < SIGNIFICANCE).sum())
        panel.set_title(
            f"{POLICY_NAMES.get(new, new)} − {POLICY_NAMES.get(old, old)}\n{clear} of {len(part)} clear",
            fontweight="normal",
            fontsize=8,
        )
        panel.set_xlabel("percentage points")
        panel.grid(axis="x")
    panels[0].set_yticks(range(len(rows)), [f"{benchmark}  {quantity}" for benchmark, quantity in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    starts = np.flatnonzero([place > 0 and rows[place][0] != rows[place - 1][0] for place in range(len(rows))])
    for panel in panels:
        panel.tick_params(axis="y", length=0)
        for start in starts:
            panel.axhline(start - 0.5, color="#cccccc", linewidth=0.6)
    add_title(figure, "Every two policies, paired by problem (black: distinguishable from 0)")
    return figure
