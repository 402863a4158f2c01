"""Give a trained policy away: its adapter, or the whole policy in 16 bits, with a model card; to a folder or to the Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from jinja2 import Template

from amir_grpo.choices import POLICY_NAMES
from amir_grpo.policies.source import Loading, copy_policy
from amir_grpo.system.files import atomic_folder, check_folder, explain_full_disk, write_text
from amir_grpo.system.provenance import read_json, record_of

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run

_KINDS = {"adapter": "a LoRA adapter", "merged": "a whole policy in 16 bits, its adapter merged"}


def export(run: Run, method: str, folder: Path, merged: bool = False) -> Path:
    """Save a trained policy with its tokenizer and a model card into a new folder.

    Args:
        run: It has trained `method`.
        method: grpo or amir_grpo.
        folder: Must not exist.
        merged: The whole policy in 16 bits (float32 becomes bfloat16), which needs no PEFT to load; else the adapter.

    Raises:
        FileExistsError: If the folder is there.
        ValueError: If the method has not been trained, or an adapter alone could not be loaded elsewhere.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: give a folder that is not.")
    check_folder(folder, "out")
    trained = run.folder / method
    if not run.is_trained(method):
        raise ValueError(
            f"{run.folder} holds no trained {method}.\nTrain it first: amir_grpo train --method {method}."
        )
    if not merged and Path(run.base()).is_dir():
        raise ValueError(f"The base of this adapter is a folder of this machine, {run.base()}: export it merged.")
    with explain_full_disk(folder.parent), atomic_folder(folder) as beside:
        copy_policy(trained, beside, adapter=not merged)
        if merged:
            _merge(run, trained, beside)
        write_text(beside / "README.md", model_card(run, method, merged))
    return folder


def check_push(repo_id: str) -> None:
    """See before anything is exported that a repository can have this name, and that there is a login.

    Raises:
        OSError: If not.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise OSError(f"{repo_id!r} cannot name a repository of the Hub: give one such as me/my-policy.") from error
    if get_token() is None:
        raise OSError(f"{repo_id} cannot be uploaded: there is no login to the Hub.\nLog in first: hf auth login.")


def push(folder: Path, repo_id: str, private: bool = True) -> str:
    """Upload an exported folder to the Hub, into a repository that is made if needed; returns its address.

    The login is the one of `hf auth login`, HF_TOKEN or Colab's secrets: huggingface_hub finds it, and nobody else asks.

    Args:
        folder: What `export` has written.
        repo_id: Such as "me/my-policy".
        private: Whether only its owner may see it: one that is made now is, one that is public is refused.

    Raises:
        OSError: If the Hub refuses or cannot be reached, or the repository is public and that is not wanted.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise OSError("it is there already, and public; give --public, or another name")
        api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Upload by amir_grpo")
    except (HfHubHTTPError, OSError) as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise OSError(
            f"{repo_id} could not be uploaded: {cause}\n"
            f"Check the network, the name and the login (hf auth login). The policy is whole in {folder}."
        ) from error
    return str(url)


def _merge(run: Run, trained: Path, folder: Path) -> None:
    import torch

    from amir_grpo.policies.loading import load_policy
    from amir_grpo.system.progress import quiet

    # in 16 bits, or 32 on a CPU: a 4-bit base would lose precision by merging
    loading = replace(Loading.of(run.settings), in_4bit=False)
    policy = load_policy(run.base(), trained, loading)
    if policy.dtype in (torch.float32, torch.float64):
        policy = policy.to(torch.bfloat16)
    with quiet():
        policy.save_pretrained(folder)


_CARD = Template(
    """---
library_name: {{ "transformers" if merged else "peft" }}
{%- if on_hub %}
base_model: {{ base }}
{%- endif %}
datasets: [{{ settings.dataset_name }}]
tags: [trl, grpo{{ ", amir-grpo" if method == "amir_grpo" }}]
---

# {{ title }} on {{ base }}

This is {{ kind }}, trained by {{ title }}
{%- if method == "amir_grpo" %} ([arXiv 2601.03661](https://arxiv.org/abs/2601.03661)): GRPO with the preferences that the
rewards inside each rollout group imply, λ = {{ settings.lambda_reg }}, β = {{ settings.beta_dpo }}, δ = {{
settings.reward_margin }}{% endif %}, for {{ settings.max_steps }} steps on {{ settings.dataset_name }}, by
[amir-grpo](https://github.com/amir-grpo/amir-grpo).

## Results

{% if rows -%}
pass@k in percent, {{ settings.num_samples }} samples a problem, temperature {{ settings.eval_temperature }}; 95 % intervals
over problems. One training run: the intervals do not cover another seed.

| benchmark | quantity | base | {{ title }} |
| --- | --- | --- | --- |
{% for row in rows -%}
| {{ row.benchmark }} | {{ row.quantity }} | {{ row.base }} | {{ row.this }} |
{% endfor %}
{%- else -%}
Not evaluated.
{% endif %}
## Settings

| setting | value |
| --- | --- |
{% for name, value in settings.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Provenance

| | |
| --- | --- |
{% for name, value in provenance.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}"""
)


def model_card(run: Run, method: str, merged: bool = False) -> str:
    """The card: method, settings, results with intervals where they are in the run folder, provenance. Markdown."""
    record, stage = record_of(run.folder), read_json(run.folder / method / "stage.json")
    made = stage["provenance"]
    provenance = {
        "trained": f"{stage['started']} to {stage['ended']}",
        "backend": stage.get("backend", {}).get("name", "transformers"),
        "processes": stage.get("processes", 1),
        "device": made["device"],
        "commit": f"{made['commit']}{' with changes' if made['uncommitted_changes'] else ''}",
        **{name: version for name, version in made["packages"].items() if version},
        **{f"problems {p['set']}": f"{p['problems']}, fingerprint {p['fingerprint']}" for p in record["problems"]},
    }
    settings = run.settings
    base = settings.model_name
    local = Path(base).is_dir()
    shown = record["settings"] | {"model_name": Path(base).name if local else base}
    return _CARD.render(
        method=method,
        title=POLICY_NAMES[method],
        kind=_KINDS["merged" if merged else "adapter"],
        merged=merged,
        base=shown["model_name"],
        on_hub=not local and not settings.is_sandbox,
        settings=shown,
        rows=_results(run.folder / "tables" / "policies.csv", method),
        provenance=provenance,
    )


def _results(path: Path, method: str) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    table = pd.read_csv(path)
    table["shown"] = [
        f"{row.estimate:.1f} [{row.estimate_low:.1f}, {row.estimate_high:.1f}]" for row in table.itertuples()
    ]
    wide = table.pivot_table(
        index=["benchmark", "quantity"], columns="policy", values="shown", aggfunc="first", sort=False
    )
    if method not in wide:
        return []
    wide = wide.reset_index().rename(columns={method: "this"})
    wide = wide[wide["quantity"].str.startswith(("pass@", "greedy"))]
    return wide.to_dict("records")
