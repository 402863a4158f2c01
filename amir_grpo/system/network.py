"""The Hugging Face Hub, or only its cache if it cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

_PATIENCE = 10.0  # seconds: enough for a slow proxy; a missing network usually shows at once


def hub_answers() -> bool:
    """Return whether the Hub answers at all within ten seconds, at the address and by the proxy of the environment.

    It is also False if HF_HUB_OFFLINE forbids asking.
    """
    answers: list[int] = []

    def ask() -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        with suppress(Exception):  # whatever the error, there is no answer
            answers.append(get_session().head(constants.ENDPOINT, timeout=_PATIENCE).status_code)

    # in a thread that can be left behind: looking up the name of a host has no time limit
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(answers)


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Let the block ask the Hub if it answers; otherwise make `datasets` and the Hub's client read their caches.

    By themselves they would do so only after retrying for half a minute.
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
