"""Keep what the notebooks of a run have made, draw the study's figures from data/, and make notebooks fit to commit.

python -m tools.gallery                      draw the study's figures and tables from data/, those of docs/ as well
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
import papermill

from amir_grpo.results import style
from amir_grpo.runs.opening import project_root
from amir_grpo.runs.run import open_run
from amir_grpo.runs.verify import keep_results
from amir_grpo.study.kept import complete_arms, kept_studies, load_study
from amir_grpo.study.plan import PLANS, read_plan
from amir_grpo.system.files import atomic_write, write_text
from tools.base_policies import base_policy_table
from tools.docs_tables import with_tables
from tools.hero import hero_figure
from tools.study import study_tables

PROFILE = "sandbox"
# Figures that the notebooks save in the run folder, and the pages show.
OF_A_RUN = ("main", "main_published", "coverage", "coverage_published", "margin")
OF_THE_STUDY = (
    "06_claims",
    "07_ablations",
    "08_regimes",
)  # notebooks that save figures in a folder which they are given


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
    (root / "figures").mkdir(exist_ok=True)
    plan = read_plan()
    studies = kept_studies(plan, results)
    language = complete_arms(load_study(results / "language-3"), read_plan(PLANS["language-3"]))
    hero = hero_figure(studies.main, language if len(language.runs) else None)
    print(style.save_figure(hero, root / "figures" / "hero")[0].relative_to(root))
    given = {"parameters": {"figures_dir": str(root / "figures")}, "cwd": root / "notebooks", "kernel_name": "python3"}
    for name in OF_THE_STUDY:
        papermill.execute_notebook(root / "notebooks" / f"{name}.ipynb", None, progress_bar=False, **given)
    _write_csv(base_policy_table(results / "pilot"), results / "base_policies.csv", "%.4f")
    for name, table in study_tables(studies, plan).items():
        _write_csv(table, results / f"{name}.csv", "%.6g")
    for page in sorted((root / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (computed := with_tables(text, root)) != text:
            write_text(page, computed)


def _write_csv(table: pd.DataFrame, path: Path, digits: str) -> None:
    atomic_write(path, lambda part: table.to_csv(part, index=False, float_format=digits))


if __name__ == "__main__":
    main()
