"""The package's layers: every import points downwards, lazy ones too; what is the method imports nothing of the rest."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom to the top; within a layer, anything without a circle. "" is the package itself.
LAYERS = [
    {
        "choices",
        "trl_options",
        "family",
        "doctor",
        "compare",
        "metrics",
        "answers",
        "notation",
        "preference",
        "system",
    },
    {"settings"},
    {"_grading_worker", "grading", "rewards", "sandbox", "problems"},
    {"speed", "trainer"},
    {"policies"},
    {"results"},
    {"runs"},
    {"study"},
    {"", "__main__", "cli", "options", "notebook"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
ALONE = {"preference": set(), "metrics": set(), "answers": {"notation"}, "notation": set(), "choices": set()}


def modules():
    """Every module of the package, by its name without the package's."""
    paths = {path.relative_to(ROOT / "amir_grpo"): path for path in (ROOT / "amir_grpo").rglob("*.py")}
    parts = {path.with_suffix("").parts: full for path, full in paths.items()}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): full for p, full in parts.items()}


def imports(path, known):
    """The package's modules that a module imports anywhere, but for what type checkers alone read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unread = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = {name.removeprefix("amir_grpo").lstrip(".") for name in found if name.split(".")[0] == "amir_grpo"}
    return ours & (known - {""})


MODULES = modules()
IMPORTS = {name: imports(path, set(MODULES)) - {name} for name, path in MODULES.items()}


def test_the_imports_are_seen():
    assert len(MODULES) > 40
    assert {"preference", "policies.loading"} & set().union(*IMPORTS.values()) == {"preference", "policies.loading"}
    assert "system.files" in IMPORTS["runs.run"]


def test_every_module_has_its_layer():
    assert {name.split(".")[0] for name in MODULES} == set(HEIGHT)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_imports_upwards(name):
    height = HEIGHT[name.split(".")[0]]
    upwards = [other for other in IMPORTS[name] if HEIGHT[other.split(".")[0]] > height]
    assert not upwards, f"{name} imports {', '.join(upwards)}"


def test_there_is_no_circle():
    left = dict(IMPORTS)
    while ends := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in ends}
    assert not left, f"a circle among {', '.join(sorted(left))}"


@pytest.mark.parametrize("name", sorted(ALONE))
def test_the_method_and_the_measures_stand_alone(name):
    assert IMPORTS[name] <= ALONE[name]


def test_results_import_no_torch():
    for path in (ROOT / "amir_grpo" / "results").glob("*.py"):
        roots = {name.split(".")[0] for name in _imported(path)}
        assert not roots & {"torch", "transformers", "trl", "peft"}, path.name
    for name, found in IMPORTS.items():  # nor by way of another room
        if name.startswith("results"):
            assert {module.split(".")[0] for module in found} <= {"choices", "metrics", "results", "system"}, name


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", sorted((ROOT / "amir_grpo").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420
