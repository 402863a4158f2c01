"""The tables of docs/ that are computed: on GitHub as on the site, what data and settings say now."""

from pathlib import Path

import pytest

from tools.docs_tables import with_tables

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
MARKS = "<!-- table kept.csv\nname | who\ngain | how much | {:+.1f}\n-->\n<!-- end of table -->\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_table_is_as_data_and_settings_have_it(page):
    text = page.read_text()
    assert text == with_tables(text, ROOT), f"run python -m tools.gallery: docs/{page.name} has an old table"


def test_a_table_is_that_of_its_file(tmp_path):
    (tmp_path / "kept.csv").write_text("gain,name,other\n-0.25,a-b|c,1\n,d,2\n")
    page = with_tables(f"Before\n\n{MARKS}\nAfter\n", tmp_path)
    assert "\n| who | how much |\n| --- | --- |\n| a-b\\|c | −0.2 |\n| d | – |\n" in page
    assert page.startswith("Before\n\n<!-- table kept.csv\n")
    assert page.endswith("<!-- end of table -->\n\nAfter\n")
    assert with_tables(page, tmp_path) == page, "it takes the place of the old one"
    (tmp_path / "kept.csv").write_text("gain\n1\n")
    with pytest.raises(ValueError, match=r"kept\.csv has no column name\. It has gain"):
        with_tables(page, tmp_path)
    (tmp_path / "kept.csv").write_text("gain,name\n" + "1,x\n" * 17)
    assert with_tables(page, tmp_path).count("| x | +1.0 |") == 17
    assert "<summary>All 17 rows</summary>\n\n| who" in with_tables(page, tmp_path), "a long one is folded"


def test_a_table_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not end"):
        with_tables(MARKS.replace("<!-- end of table -->", ""), tmp_path)
