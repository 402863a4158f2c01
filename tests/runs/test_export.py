"""A trained policy given away: what is in the folder, what the card says, and what reaches the Hub."""

import json
import shutil
from types import SimpleNamespace

import httpx
import pandas as pd
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer

from amir_grpo import cli
from amir_grpo.policies.loading import load_policy
from amir_grpo.policies.source import ADAPTER_FILES
from amir_grpo.runs import export
from amir_grpo.runs.model_card import render_model_card
from amir_grpo.runs.run import open_run
from amir_grpo.runs.showing import policy_summary_of
from amir_grpo.system.checksums import hashes
from amir_grpo.system.files import write_text
from amir_grpo.system.provenance import to_json

pytestmark = pytest.mark.xdist_group("complete run")


@pytest.fixture(scope="module")
def run(complete_run, tmp_path_factory):
    return open_run(run_dir=shutil.copytree(complete_run.folder, tmp_path_factory.mktemp("export") / "run"))


def test_a_merged_policy_loads_anywhere_and_is_the_trained_one(run, tmp_path):
    folder = export.export_policy(run, "amir_grpo", tmp_path / "out", merged=True)
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert alone.dtype == torch.float32, "16 bits would round away what was trained"
    trained = load_policy(run.base(), run.folder / "amir_grpo")
    ids = AutoTokenizer.from_pretrained(folder)("7+8-5", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, trained(ids).logits.float(), atol=1e-4, rtol=1e-4)
    assert not list(folder.glob("adapter*"))
    assert not list(folder.glob("*.bin")), "no pickle"


def test_an_adapter_on_a_hub_policy_is_copied_with_its_tokenizer(run, tmp_path, monkeypatch):
    monkeypatch.setattr(type(run), "base", lambda self: "Qwen/Qwen2.5-0.5B-Instruct")
    folder = export.export_policy(run, "grpo", tmp_path / "out")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert not {"stage.json", "log.csv", "rollouts.parquet", "training_args.bin"} & {p.name for p in folder.iterdir()}


def test_an_adapter_on_a_folder_of_this_machine_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"a local folder, .*export it merged"):
        export.export_policy(run, "grpo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_adapter_is_not_given_away(open_tiny, tmp_path):
    run = open_tiny()
    for name in (*ADAPTER_FILES, "log.csv"):
        write_text(run.folder / "grpo" / name, "as trained")
    write_text(run.folder / "grpo" / "stage.json", to_json({"sha256": hashes((run.folder / "grpo").iterdir())}))
    write_text(run.folder / "grpo" / ADAPTER_FILES[1], "changed since")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        export.export_policy(run, "grpo", tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()


def test_the_card_has_method_settings_results_and_provenance(run):
    card = ModelCard(render_model_card(run, "amir_grpo", summary=policy_summary_of(run, "amir_grpo")))
    assert card.data.library_name == "peft"
    assert "amir-grpo" in card.data.tags
    assert "λ = 0.01" in card.text
    assert "| max_steps | 2 |" in card.text
    stage = json.loads((run.folder / "amir_grpo" / "stage.json").read_text())
    assert stage["started"] in card.text
    assert f"| trl | {stage['provenance']['packages']['trl']} |" in card.text
    row = pd.read_csv(run.folder / "tables" / "policies.csv").query(
        "policy == 'amir_grpo' and benchmark == 'chain3' and quantity == 'pass@1'"
    )
    (row,) = row.itertuples()
    assert f"{row.estimate:.1f} [{row.estimate_low:.1f}, {row.estimate_high:.1f}] |" in card.text
    (result,) = (r for r in card.data.eval_results if (r.dataset_name, r.metric_type) == ("chain3", "pass@1"))
    assert result.metric_value == round(row.estimate, 1)
    assert str(run.folder) not in card.text, "no path of the machine"
    assert "fingerprint" in card.text


def test_grpos_card_says_nothing_of_preferences(run):
    card = render_model_card(run, "grpo")
    assert "λ =" not in card
    assert ModelCard(card).data.tags == ["trl", "grpo"]


@pytest.fixture
def hub(monkeypatch):
    """In place of the Hub: what is asked of it."""
    asked = []
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo, **kw: asked.append((repo, kw)) or f"https://hub/{repo}"
    )
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **kw: asked.append(kw))
    monkeypatch.setattr(HfApi, "repo_info", lambda self, repo: SimpleNamespace(private=repo != "me/public"))
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    return asked


def arguments(run, *more):
    return ["export", "--run_dir", str(run.folder), *map(str, more)]


def test_a_push_is_private_unless_asked_for_and_gives_no_token(run, hub, tmp_path, capsys):
    cli.main(arguments(run, "--merged", "--out", tmp_path / "a", "--push_to", "me/mine"))
    (repo, options), upload = hub
    assert (repo, options["private"]) == ("me/mine", True)
    assert upload["folder_path"] == tmp_path / "a"
    assert not [key for call in (options, upload) for key in call if "token" in key]
    assert "Uploaded: https://hub/me/mine" in capsys.readouterr().out
    cli.main(arguments(run, "--merged", "--out", tmp_path / "b", "--push_to", "me/mine", "--public"))
    assert hub[2][1]["private"] is False


def refused(run, capsys, *more):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments(run, *more))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) <= 3
    return message


def test_what_is_public_gets_nothing_that_is_to_be_private(run, hub, tmp_path, capsys):
    message = refused(run, capsys, "--merged", "--out", tmp_path / "a", "--push_to", "me/public")
    assert "public; give --public, or another name" in message
    assert len(hub) == 1, "nothing was uploaded"
    cli.main(arguments(run, "--merged", "--out", tmp_path / "b", "--push_to", "me/public", "--public"))
    assert hub[-1]["repo_id"] == "me/public"


def test_a_push_that_the_hub_refuses_says_so_and_keeps_the_folder(run, hub, monkeypatch, tmp_path, capsys):
    def refuse(self, *args, **kwargs):
        response = httpx.Response(401, request=httpx.Request("POST", "https://hub"))
        raise HfHubHTTPError("401 Client Error: token expired", response=response)

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    message = refused(run, capsys, "--merged", "--out", tmp_path / "out", "--push_to", "me/mine")
    assert "token expired" in message
    assert "hf auth login" in message
    assert "hf_planted" not in message
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_push_without_a_login_or_a_name_is_refused_before_the_work(run, hub, monkeypatch, tmp_path, capsys):
    assert "'not/a/name' is not a name" in refused(run, capsys, "--out", tmp_path / "out", "--push_to", "not/a/name")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "hf auth login" in refused(run, capsys, "--merged", "--out", tmp_path / "out", "--push_to", "me/mine")
    assert not (tmp_path / "out").exists()
    assert not hub


def test_without_a_folder_the_runs_own_is_made_anew_and_kinds_are_kept_apart(run, capsys):
    cli.main(arguments(run, "--merged"))
    card = run.folder / "export" / "amir_grpo-merged" / "README.md"
    card.write_text("old")
    cli.main(arguments(run, "--merged"))
    assert card.read_text() == render_model_card(run, "amir_grpo", True, policy_summary_of(run, "amir_grpo"))
    assert not (run.folder / "export" / "amir_grpo").exists()


def test_what_is_not_trained_or_in_the_way_is_refused(runs, tiny_settings, run, tmp_path):
    untrained = open_run("sandbox", runs / "untrained", tiny_settings)
    with pytest.raises(ValueError, match="holds no trained grpo"):
        export.export_policy(untrained, "grpo", tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        export.export_policy(run, "grpo", tmp_path / "there")
