"""Keep what the notebooks of a run have made, draw the study's figures from data/, and make notebooks fit to commit.

python -m tools.gallery                      draw the study's figures from data/, and what README and docs compute
python -m tools.gallery --keep runs/sandbox  first keep the run's results in data/results/sandbox and its figures in figures/
python -m tools.gallery --tidy notebooks     make executed notebooks fit to commit
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from itertools import product
from pathlib import Path

import pandas as pd

from amir_grpo.results import study_figures, style
from amir_grpo.runs.locations import project_root
from amir_grpo.runs.run import open_run
from amir_grpo.runs.verify import keep_results
from amir_grpo.study.claims.table import claims_table
from amir_grpo.study.figures import figures_of_study, size_gains
from amir_grpo.study.finding import verdict_rows
from amir_grpo.study.gains import level_table, outcomes, power_table
from amir_grpo.study.plan import Plan, read_plan, sequence_table
from amir_grpo.study.regimes import TITLES
from amir_grpo.study.results import Studies, kept_sizes, kept_studies
from amir_grpo.study.sizes import size_table
from amir_grpo.system.files import atomic_write, write_text
from tools.base_policies import base_policy_table
from tools.docs_tables import with_tables
from tools.hero import evidence
from tools.readme import computed_parts, with_parts

PROFILE = "sandbox"
# Figures that the notebooks save in the run folder, and the pages show.
OF_A_RUN = ("main", "main_published", "coverage", "coverage_published", "margin")


def study_tables(studies: Studies, plan: Plan) -> dict[str, pd.DataFrame]:
    """What the docs and the report of a run show of the study, as tables of data/results."""
    errors = pd.read_csv(project_root() / "data" / "results" / "inference_error.csv")
    usual = (errors["test"] == "in use") & (errors["shape"] == "normal") & (errors["problems"] == "as measured")
    return {
        "type_one_error": errors[usual],
        "levels": level_table(studies).assign(rewards=lambda levels: levels["regime"].map(TITLES)),
        "power": power_table(studies.ordered[-1], plan),
        "tests": sequence_table(plan, outcomes(studies.main, plan)),
        "verdicts": verdict_rows(claims_table(studies, plan)),
    }


def tidy(folder: Path) -> None:
    """Make executed notebooks fit to commit: no metadata, progress bars as they ended, no addresses, ids in order."""
    for path in sorted(folder.glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        notebook["metadata"] = {k: notebook["metadata"][k] for k in ("kernelspec", "language_info")}
        notebook["metadata"]["language_info"] = {"name": "python"}
        for cell in notebook["cells"]:
            cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags" and v}
            if cell["cell_type"] == "code":
                cell["outputs"] = _tidy_outputs(cell["outputs"])
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        text = re.sub(r" at 0x[0-9a-f]+>", ">", text)
        write_text(path, _ids_in_order(text) + "\n")


def _ids_in_order(text: str) -> str:
    """Number the ids of tables, which pandas draws at random; all at once, as a new one may be the old one of another."""
    ids = re.compile(r"\bT_[0-9a-f]{5}(?=[_ \\])")
    names = {name: f"T_{number:05d}" for number, name in enumerate(dict.fromkeys(ids.findall(text)))}
    return ids.sub(lambda found: names[found[0]], text)


def _tidy_outputs(outputs: list[dict]) -> list[dict]:
    kept: list[dict] = []
    for output in outputs:
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue  # a page without a kernel cannot show it
        if output["output_type"] != "stream":
            kept.append(output)
        elif kept and kept[-1].get("name") == output["name"]:
            kept[-1]["text"] += "".join(output["text"])
        else:
            kept.append({**output, "text": "".join(output["text"])})
    for output in kept:
        if output["output_type"] == "stream":
            lines = output["text"].split("\n")
            output["text"] = "\n".join(line.rstrip("\r").split("\r")[-1] for line in lines)
    return kept


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tools.gallery", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="RUN", help="keep this run's results in data/results first")
    parser.add_argument("--tidy", type=Path, metavar="FOLDER", help="tidy the notebooks of this folder, draw nothing")
    arguments = parser.parse_args()
    if arguments.tidy:
        tidy(arguments.tidy)
        return
    root = project_root()
    results = root / "data" / "results"
    if arguments.keep:
        run = open_run(run_dir=arguments.keep)
        keep_results(run, results / PROFILE)
        for name, kind in product(OF_A_RUN, ("png", "svg")):
            shutil.copy(run.folder / "figures" / f"{name}.{kind}", root / "figures")
    kept = {path.stem: pd.read_csv(path) for path in (results / PROFILE).glob("*.csv")}
    plan = read_plan()
    studies = kept_studies(plan, results)
    top = evidence(studies, kept)
    title = "The preference weights are wins − losses until β is large"
    drawn = figures_of_study(studies, plan)
    sizes = size_table(kept_sizes(plan, results), plan)
    drawn |= {
        "hero": top.figure(),
        "sizes": size_gains(sizes, plan),
        "identity": study_figures.identity_figure(pd.read_csv(results / "identity.csv"), title),
    }
    (root / "figures").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        print(style.save_figure(figure, root / "figures" / name)[0].relative_to(root))
    _write_csv(base_policy_table(results / "pilot"), results / "base_policies.csv", "%.4f")
    for name, table in (study_tables(studies, plan) | {"sizes": sizes}).items():
        _write_csv(table, results / f"{name}.csv", "%.6g")
    parts = computed_parts(studies, plan, top)
    write_text(root / "README.md", with_parts((root / "README.md").read_text(encoding="utf-8"), parts))
    for page in sorted((root / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (computed := with_tables(text, root)) != text:
            write_text(page, computed)


def _write_csv(table: pd.DataFrame, path: Path, digits: str) -> None:
    atomic_write(path, lambda part: table.to_csv(part, index=False, float_format=digits))


if __name__ == "__main__":
    main()
