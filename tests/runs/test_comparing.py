import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from amir_grpo import cli
from amir_grpo.results import tables
from amir_grpo.results.comparison_report import compared_across
from amir_grpo.results.formatting import signed
from amir_grpo.runs import comparing
from tests.results.test_tables import samples_from


def write_run(folder, grpo, amir_grpo, fingerprint="same", n=4, **settings):
    """A run folder with what the page reads; `grpo`, `amir_grpo`: right completions of n, one entry per problem."""
    samples = samples_from({"b": {"base": [0] * len(grpo), "grpo": grpo, "amir_grpo": amir_grpo}}, n)
    for method in ("grpo", "amir_grpo"):
        (folder / "samples" / method).mkdir(parents=True)
        samples[samples["policy"] == method].to_parquet(folder / "samples" / method / "b.parquet")
        (folder / method).mkdir()
        log = pd.DataFrame({"step": [1, 2], "reward": [0.5, 1.5], "preference/share": [0.25, 0.25]})
        log.assign(method=method).to_csv(folder / method / "log.csv", index=False)
    for name in ("tables", "problems"):
        (folder / name).mkdir()
    tables.main_table(samples, (1, 2)).to_csv(folder / "tables" / "main.csv", index=False)
    (folder / "problems" / "b.json").write_text(json.dumps({"set": "b", "fingerprint": fingerprint}))
    config = {
        "profile": "sandbox",
        "settings": {"seed": 0, "lambda_reg": 0.01} | settings,
        "provenance": {"commit": "c"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def pair(tmp_path):
    weak = write_run(tmp_path / "weak", [1] * 12, [1] * 12)
    strong = write_run(tmp_path / "<b>strong", [1] * 12, [3] * 12, lambda_reg=1.0)
    return weak, strong


def test_the_page_says_what_was_set_differently_and_what_became_of_it(pair, tmp_path, capsys):
    cli.main(["report", *map(str, pair), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "setting weak &lt;b&gt;strong lambda_reg 0.01 1.0" in text
    assert "Of 2 differences in pass@1 between these runs, 1 is distinguishable from 0" in text
    assert "AMIR-GRPO b &lt;b&gt;strong 75.0 25.0 +50.0" in text
    assert "GRPO b &lt;b&gt;strong 25.0 25.0 0.0" in text
    assert "<b>strong" not in page, "names of folders are text"
    assert not re.search(r'(?:src|href)="http', page)


def test_differences_are_paired_and_corrected_over_all_rows(pair):
    runs = [comparing._read(folder, folder.name) for folder in pair]
    across = compared_across([runs[0], runs[1]])
    assert across["method"].tolist() == ["grpo", "amir_grpo"]
    np.testing.assert_allclose(across["gain"], [0, 50])
    # all 12 problems one way: 2 of 4096 sign patterns are as far out
    assert across["p_value"].iloc[1] == pytest.approx(2 / 4096)
    assert across["p_holm"].iloc[1] == pytest.approx(2 * 2 / 4096)


def test_runs_on_other_problems_stand_for_themselves(pair, tmp_path):
    other = write_run(tmp_path / "other", [1, 2], [2, 2], fingerprint="another")
    page = comparing.write_comparison([pair[0], other], tmp_path / "page.html").read_text()
    assert "Not the same problems:</b> b" in page
    assert "Run against run" not in page
    assert "each stands for itself" in page


def test_runs_with_other_numbers_of_completions_are_compared_at_those_that_both_have(pair, tmp_path):
    more = write_run(tmp_path / "more", [3] * 12, [5] * 12, n=8)
    page = comparing.write_comparison([pair[0], more], tmp_path / "page.html").read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    first = pd.read_parquet(more / "samples" / "amir_grpo" / "b.parquet").query("sample < 4")["correct"].mean()
    assert f"AMIR-GRPO b more {100 * first:.1f} 25.0 {signed(100 * first - 25)}" in text
    assert "the first ones where one run drew more" in text


def test_three_runs_are_compared_with_the_first(pair, tmp_path):
    third = shutil.copytree(pair[0], tmp_path / "third")
    runs = [comparing._read(folder, folder.name) for folder in (*pair, third)]
    assert compared_across(runs)[["old", "new"]].drop_duplicates().to_numpy().tolist() == [
        ["weak", "<b>strong"],
        ["weak", "third"],
    ]


def test_runs_of_one_name_are_told_apart(pair, tmp_path):
    twin = shutil.copytree(pair[0], tmp_path / "there" / "weak")
    page = comparing.write_comparison([pair[0], twin], tmp_path / "page.html").read_text()
    assert f"{tmp_path.name}/weak, there/weak" in page


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["weak"], "compares two runs or more, and got 1"),
        (["weak", "weak"], "is given twice"),
        (["weak", "nowhere"], "nowhere is not a run folder"),
        (["weak", "unevaluated"], "amir_grpo figures --run_dir"),
    ],
)
def test_what_cannot_be_compared_is_refused(pair, tmp_path, chosen, message, capsys):
    shutil.copytree(pair[0], tmp_path / "unevaluated", ignore=shutil.ignore_patterns("tables"))
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", *(str(tmp_path / name) for name in chosen), "--out", str(tmp_path / "page.html")])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) <= 3
    assert not (tmp_path / "page.html").exists()
