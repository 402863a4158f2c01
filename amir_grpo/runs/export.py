"""Export a trained policy, to a folder or to the Hub: its adapter, or the whole policy in float32, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from amir_grpo.policies.source import copy_policy
from amir_grpo.runs.model_card import render_model_card
from amir_grpo.runs.showing import policy_summary_of
from amir_grpo.runs.stages import check_trained
from amir_grpo.system.files import atomic_folder, check_folder, explain_full_disk, write_text

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run


def export_policy(run: Run, method: str, folder: Path, merged: bool = False, replace_old: bool = False) -> Path:
    """Save a trained policy with its tokenizer and a model card into a folder.

    Args:
        run: It has trained `method`.
        method: grpo or amir_grpo.
        folder: Where to; it must not exist, unless `replace_old`.
        merged: The whole policy in float32, which needs no PEFT to load; else the adapter. In 16 bits much of what was
            trained would be rounded away.
        replace_old: Replace a folder that is there, once the new one is complete.

    Raises:
        FileExistsError: If the folder is there.
        ValueError: If the method has not been trained, a file of it is damaged, or an adapter alone could not be loaded
            elsewhere.
    """
    if folder.exists() and not replace_old:
        raise FileExistsError(f"{folder} exists already: give a folder that does not.")
    check_folder(folder, "out")
    trained = run.folder / method
    check_trained(trained)
    if not run.is_trained(method):
        raise ValueError(
            f"{run.folder} holds no trained {method}.\nTrain it first: amir_grpo train --method {method}."
        )
    if not merged and Path(run.base()).is_dir():
        raise ValueError(f"The adapter's base policy is a local folder, {run.base()}: export it merged.")
    with explain_full_disk(folder.parent), atomic_folder(folder, replace_old) as beside:
        copy_policy(trained, beside, adapter=not merged)
        if merged:
            _merge(run, trained, beside)
        write_text(beside / "README.md", render_model_card(run, method, merged, policy_summary_of(run, method)))
    return folder


def check_push(repo_id: str) -> None:
    """Check before anything is exported that the repository name is valid and that there is a login.

    Raises:
        OSError: If not.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise OSError(
            f"{repo_id!r} is not a name for a repository of the Hub: give one such as me/my-policy."
        ) from error
    if get_token() is None:
        raise OSError(f"{repo_id} cannot be uploaded: there is no login to the Hub.\nLog in first: hf auth login.")


def push(folder: Path, repo_id: str, private: bool = True) -> str:
    """Upload an exported folder to the Hub, into a repository that is made if needed; returns its address.

    The login is the one of `hf auth login`, HF_TOKEN or Colab's secrets: huggingface_hub finds it, and nobody else asks.

    Args:
        folder: What `export_policy` has written.
        repo_id: Such as "me/my-policy".
        private: Whether only its owner may see it: a new repository becomes private, an existing public one is refused.

    Raises:
        OSError: If the Hub refuses or cannot be reached, or the repository is public and that is not wanted.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise OSError("it exists already and is public; give --public, or another name")
        api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Upload by amir_grpo")
    except (HfHubHTTPError, OSError) as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise OSError(
            f"{repo_id} could not be uploaded: {cause}\n"
            f"Check the network, the name and the login (hf auth login). The export is complete in {folder}."
        ) from error
    return str(url)


def _merge(run: Run, trained: Path, folder: Path) -> None:
    from amir_grpo.policies.loading import merged_policy
    from amir_grpo.system.progress import quiet

    with quiet():
        merged_policy(run.base(), trained, run.settings.policy).save_pretrained(folder)
