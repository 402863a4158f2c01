"""What a result was made with, also where there is no git."""

import json

from amir_grpo.system.provenance import provenance


def test_provenance_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    made_with = provenance()
    assert made_with["commit"] is None
    assert made_with["uncommitted_changes"] is None
    json.dumps(made_with)
