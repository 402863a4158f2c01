"""The Hugging Face Hub, or its cache alone where it cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

_PATIENCE = 10.0  # seconds: time for a slow proxy; a missing network usually shows at once


def hub_answers() -> bool:
    """Tell whether the Hub answers at all within ten seconds, by the proxy and the address that the environment names.

    False, too, where HF_HUB_OFFLINE says that it is not to be asked.
    """
    answers: list[int] = []

    def ask() -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        with suppress(Exception):  # whatever it is, there is no answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=_PATIENCE).status_code)

    # in a thread, which may be left behind: looking up the name of a host has no limit of time
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(answers)


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Let the block ask the Hub where it answers; else have `datasets` and the Hub's client read what they have cached.

    By themselves they retry for half a minute before they do the same.
    """
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if not hub_answers():
        config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
