"""tools/unsloth_diff.py: what it calls a change."""

import zipfile

import pytest

from tools.unsloth_diff import RELIED_ON, differences, sources

OLD = {file: "".join(f"def {name}(x):\n    return x / 2\n" for name in names) for file, names in RELIED_ON.items()}
ZOO = "unsloth_zoo/rl_replacements.py"


def test_comments_and_formatting_are_no_change():
    assert differences(OLD, {file: text.replace("x / 2", "(x/2)  # halved") for file, text in OLD.items()}) == []


def test_a_statement_that_changed_is_shown_with_its_function():
    lines = differences(OLD, OLD | {ZOO: OLD[ZOO].replace("x / 2", "x / 3", 1)})
    assert lines[:2] == ["--- old grpo_compute_loss", "+++ new grpo_compute_loss"]
    assert "-    return x / 2" in lines
    assert "+    return x / 3" in lines


def test_a_function_that_is_gone_is_named():
    lines = differences(OLD, OLD | {ZOO: OLD[ZOO].replace("def grpo_compute_loss(", "def grpo_loss(")})
    assert lines[0] == f"{ZOO}: grpo_compute_loss is gone"


def test_wheels_are_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip download"):
        sources(tmp_path)
    with zipfile.ZipFile(tmp_path / "unsloth_both-1.whl", "w") as wheel:
        for file, text in OLD.items():
            wheel.writestr(file, text)
    assert sources(tmp_path) == OLD
