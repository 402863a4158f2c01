"""requirements.lock: every package of the constraints' versions, with hashes, and nothing of the machine that wrote it."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^([^\s#=]+)==(\S+)[^\n]*((?:\n    --hash=\S+[^\n]*)*)", LOCK, re.MULTILINE)
LOCKED = {canonicalize_name(name): version for name, version, _ in ENTRIES}


def test_every_package_has_hashes():
    assert len(ENTRIES) > 100
    assert all(re.fullmatch(r"(\s+--hash=sha256:[0-9a-f]{64}( \\)?)+", hashes) for _, _, hashes in ENTRIES)


def test_versions_are_those_of_the_constraints():
    pins = dict(re.findall(r"^([^\s#=]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    differing = {
        n: (v, LOCKED[canonicalize_name(n)]) for n, v in pins.items() if LOCKED.get(canonicalize_name(n), v) != v
    }
    assert not differing


def test_what_the_package_needs_is_locked_within_its_bounds():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    building = pyproject["build-system"]["requires"]
    for line in (*project["dependencies"], *extras["dev"], *extras["notebooks"], *building):
        wanted = Requirement(line)
        assert wanted.specifier.contains(LOCKED[canonicalize_name(wanted.name)]), line


def test_nothing_of_a_machine_or_an_index_is_in_it():
    assert not re.search(r"file:|https?:|--(extra-)?index-url|--find-links|/(root|home|tmp|opt)/", LOCK)
