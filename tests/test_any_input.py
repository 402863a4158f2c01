"""Any input: random command lines and run folders end in work or in at most three lines, never in a traceback.

Some examples in the suite; EXAMPLES=2000 in the environment makes so many of each kind. What was found by more
stands as a row in tests/test_bad_input.py.
"""

import contextlib
import inspect
import io
import json
import os
import shutil
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from amir_grpo import choices, cli, options
from amir_grpo.policies import engines, loading, plan, smollm2
from amir_grpo.problems import BENCHMARKS, TRAINING_SETS
from amir_grpo.runs import opening, reproduce, training
from amir_grpo.sandbox import base as base_policies
from amir_grpo.settings import FIELDS, PROFILES
from amir_grpo.study import experiment
from amir_grpo.system.cluster import submitting

# one worker of xdist, so that what the module shares is made once
pytestmark = pytest.mark.xdist_group("complete run")
EXAMPLES = int(os.environ.get("EXAMPLES", "30"))
often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES == 30,
    print_blob=True,
)
PATHS = ("run_dir", "model_dir", "out", "folder", "results", "html", "json")


class Work(BaseException):
    """Work of more than a second would begin: the input has passed all checks."""


def work(*_, **__):
    raise Work


@pytest.fixture(scope="module", autouse=True)
def place(complete_run, tmp_path_factory):  # which is made before anything is forbidden
    """An empty folder to be in and an empty home; no Hub, and no work beyond the checks."""
    place, home = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("home")
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))  # which it fills when it is imported
        patch.setenv("AMIR_GRPO_DATA", str(place / "mirror"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr(opening, "provenance", dict)
        for module, name in (
            (loading, "load_policy"),
            (engines, "load_engine"),
            (base_policies, "make_base_policy"),
            (smollm2, "smollm2"),
            (plan, "planned"),
            (reproduce, "_execute"),
            (experiment, "make_runs"),
            (training, "run_trainer"),
        ):
            patch.setattr(module, name, work)
        patch.setattr(reproduce, "submitting", lambda *_, **__: submitting(1))  # here, where nothing is executed
        os.chdir(place)
        yield place
        os.chdir(before)
    assert not list(home.iterdir()), "something was written into the user's home"


def promised(arguments):
    """Run a command line, and check how it ends."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(arguments)
        code = 0
    except Work:
        code = "work"
    except SystemExit as end:
        code = end.code or 0
    event(f"{arguments[0] if arguments else None}: {code}")
    if code == 2:
        said = err.getvalue().strip()
        assert 1 <= len(said.splitlines()) <= 3, said
        assert "Traceback" not in said
    else:
        assert code in ("work", 0) or (code == 1 and arguments[0] == "verify"), (code, err.getvalue())


# --- command lines --------------------------------------------------------------------------------------------------

NUMBERS = (
    "0 -1 1 2 3 8 0.5 1.5 -0.0 1e308 -1e308 1e-320 nan inf -inf 4294967296 99999999999999999999 1_000 0x10 ٣".split()
)
WORDS = "none None true false auto all group token".split()
NAMES = [
    *PROFILES,
    *choices.METHODS,
    *BENCHMARKS,
    *TRAINING_SETS,
    "mixture-0.6",
    "pilot",
    "chain3",
    "chain6",
    "base",
    "unsloth",
    "vllm",
]
# an argument may hold half of a surrogate pair, for a byte that is no UTF-8, and no NUL
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=12)


@cache
def options_of(name):
    """The options of a command, with whether each takes several values; and how many arguments have no name."""
    parameters = inspect.signature(cli.COMMANDS[name], eval_str=True).parameters
    own = options._own_options(parameters.values())[0]
    kinds = {option: kind for option, (kind, default) in own.items() if default is not ...}
    unnamed = len(own) - len(kinds)
    if "settings" in parameters:
        kinds |= {setting: field.annotation for setting, field in FIELDS.items()}
    return sorted((option, options._list_in(kind) is not None) for option, kind in kinds.items()), unnamed


def value_of(option):
    if option in PATHS:
        return st.sampled_from(
            ["", ".", "a", "a b", "é", "a=b", "ü=a", "a/../b", "file", "/dev/null/x", "x" * 300, "~nobody/x"]
        )
    return st.one_of(st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.sampled_from(NAMES), TEXT)


@st.composite
def command_lines(draw):
    name = draw(st.sampled_from(sorted(cli.COMMANDS)))
    known, unnamed = options_of(name)
    places = st.lists(st.one_of(value_of("folder"), TEXT), min_size=unnamed, max_size=unnamed)
    arguments = [name, *draw(places)]
    chosen = draw(st.lists(st.sampled_from(known), max_size=4)) if known else ()
    for option, several in chosen:
        values = draw(st.lists(value_of(option), max_size=3 if several else 1))
        if draw(st.booleans()) and len(values) == 1:
            arguments.append(f"--{option}={values[0]}")
        else:
            arguments += [f"--{option}", *values]
    return arguments + draw(st.one_of(st.just([]), st.lists(TEXT, max_size=2)))


@often
@given(command_lines())
def test_any_command_line_ends_in_work_or_in_three_lines(place, arguments):
    for left in place.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    (place / "file").write_text("mine")
    promised(arguments)
    assert (place / "file").read_text() == "mine"


# --- run folders ----------------------------------------------------------------------------------------------------


def spoil(path, how, where, draw):
    """Leave a file out, cut it off, flip one of its bits, or write it as another version might."""
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(content[: int(len(content) * where)])
    elif how == "flipped" and content:
        content[int((len(content) - 1) * where)] ^= 1 << draw(st.integers(0, 7))
        path.write_bytes(content)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "another version" and path.suffix == ".json":
        record = json.loads(content)
        level = record["settings"] if "settings" in record and draw(st.booleans()) else record
        if level:
            key = draw(st.sampled_from(sorted(level)))
            level[key] = draw(st.sampled_from([None, 0, -1, "?", [], {}, [1], 1e400]))
        if draw(st.booleans()):
            level["of_a_later_version"] = True
        path.write_text(json.dumps(record))
    elif how == "another version" and path.suffix in (".parquet", ".csv"):
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        column = draw(st.sampled_from(list(table)))
        table = table.drop(columns=column) if draw(st.booleans()) else table.assign(**{column: "?"})
        table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)


@often
@given(st.data())
def test_any_run_folder_ends_in_work_or_in_three_lines(place, complete_run, data):
    folder, other = place / "run", place / "other"
    for each in (folder, other):
        shutil.rmtree(each, ignore_errors=True)
        shutil.copytree(complete_run.folder, each, ignore=shutil.ignore_patterns(".locks", "notebooks", "figures"))
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        how = data.draw(st.sampled_from(["missing", "cut off", "flipped", "another version", "a folder"]))
        spoil(folder / name, how, data.draw(st.floats(0, 1)), data.draw)
    command = data.draw(st.sampled_from(["train", "evaluate", "export", "reproduce", "verify"]))
    promised([command, str(folder), str(other)] if command == "verify" else [command, "--run_dir", str(folder)])
    assert sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file()) == names
