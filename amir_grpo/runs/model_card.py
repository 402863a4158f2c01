"""The model card of a trained policy: what it is, what it does, and what it was made with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd

from amir_grpo.choices import POLICY_NAMES
from amir_grpo.problems import BENCHMARKS, TRAINING_SETS
from amir_grpo.system.provenance import read_json, record_of

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

    from amir_grpo.runs.run import Run

_TEMPLATES = Path(__file__).with_name("templates")
_KINDS = {"adapter": "a LoRA adapter", "merged": "a whole policy in float32, its adapter merged"}
_SHOWN = ("pass@", "greedy")  # how the quantities begin that a card shows


def render_model_card(run: Run, method: str, merged: bool = False, summary: pd.DataFrame | None = None) -> str:
    """Markdown: metadata for the Hub, method, results with intervals where the run was evaluated, settings, provenance.

    Args:
        run: It has trained `method`.
        method: grpo or amir_grpo.
        merged: Whether it is the whole policy, or the adapter alone.
        summary: What the base and the trained policy do (`amir_grpo.results.tables.policy_summary`); None where they have
            not been evaluated.
    """
    record = record_of(run.folder)
    stage = read_json(run.folder / method / "stage.json", ("started", "ended", "provenance"))
    made = stage["provenance"]
    provenance = {
        "trained": f"{stage['started']} to {stage['ended']}",
        "backend": stage.get("backend", {}).get("name", "transformers"),
        "processes": stage.get("processes", 1),
        "device": made["device"],
        "commit": f"{made['commit']}{' with changes' if made['uncommitted_changes'] else ''}",
        **{name: version for name, version in made["packages"].items() if version},
        **{f"problems {p['set']}": f"{p['problems']}, fingerprint {p['fingerprint']}" for p in record["problems"]},
    }
    base = run.settings.policy.model_name
    local = Path(base).is_dir()
    shown = record["settings"] | {"model_name": Path(base).name if local else base}
    metadata = _metadata(
        run, method, merged, base if not local and not run.settings.policy.is_sandbox else None, summary
    )
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), undefined=jinja2.StrictUndefined)
    environment.filters["cell"] = _cell
    return environment.get_template("model_card.md").render(
        metadata=metadata.to_yaml(),
        method=method,
        title=POLICY_NAMES[method],
        kind=_KINDS["merged" if merged else "adapter"],
        base=_cell(shown["model_name"]),
        settings=shown,
        rows=[] if summary is None else _rows(summary, method),
        provenance=provenance,
    )


def _metadata(run: Run, method: str, merged: bool, base: str | None, summary: pd.DataFrame | None) -> ModelCardData:
    """What the Hub reads; `base` is the policy's id there, None where it is not there."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if summary is not None:
        own = summary[(summary["policy"] == method) & summary["quantity"].str.startswith(_SHOWN)]
        for row in own.itertuples():
            known = BENCHMARKS.get(row.benchmark)
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=known.hub_id if known else row.benchmark,
                    dataset_name=row.benchmark,
                    metric_type=row.quantity,
                    metric_value=round(row.estimate, 1),
                )
            )
    trained_on = TRAINING_SETS.get(run.settings.data.dataset_name)
    return ModelCardData(
        library_name="transformers" if merged else "peft",
        base_model=base,
        datasets=[trained_on.hub_id if trained_on else run.settings.data.dataset_name],
        tags=["trl", "grpo", *(["amir-grpo"] if method == "amir_grpo" else [])],
        model_name=POLICY_NAMES[method],
        eval_results=results or None,
    )


def _rows(summary: pd.DataFrame, method: str) -> list[dict[str, str]]:
    """The rows of the card's table: benchmark, quantity, base and this policy, each with its interval."""
    summary = summary[summary["quantity"].str.startswith(_SHOWN)]
    shown = [f"{row.estimate:.1f} [{row.estimate_low:.1f}, {row.estimate_high:.1f}]" for row in summary.itertuples()]
    wide = summary.assign(shown=shown).pivot_table(
        index=["benchmark", "quantity"], columns="policy", values="shown", aggfunc="first", sort=False
    )
    return wide.reset_index().rename(columns={method: "this"}).to_dict("records")


def _cell(value: object) -> str:
    """A value as the text of one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
