"""What the tests of run folders share."""

import json

import pytest

from amir_grpo.runs.run import open_run


@pytest.fixture
def open_tiny(runs, tiny_settings, request):
    """Opens a run folder of this test, beside the cache that holds the tiny base policy."""

    def open_tiny(**changes):
        return open_run("sandbox", runs / request.node.name, tiny_settings | {"eval_limit": 2} | changes)

    return open_tiny


@pytest.fixture
def amc23():
    """Writes a mirror of AMC23 with made-up problems."""

    def write(folder, answer="27", rows=5):
        path = folder / "amc23" / "test.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(json.dumps({"question": f"What is {n}+3?", "answer": answer}) + "\n" for n in range(rows))
        )

    return write
