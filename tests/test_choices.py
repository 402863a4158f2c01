"""Valid names: what is refused and what the message says; that the lists agree with the libraries that they name."""

import pytest

from amir_grpo.choices import LOSS_TYPES, TRACKERS, check_names


def test_a_name_unlike_any_gets_the_list_without_a_guess():
    with pytest.raises(ValueError, match=r"^Unknown thing 'zzz'\.\nValid: one, two\.$"):
        check_names("thing", ["one", "zzz"], ["one", "two"])
    check_names("thing", [], [])


def test_loss_types_are_trls():
    from dataclasses import fields

    from trl import GRPOConfig

    about = next(field.metadata["help"] for field in fields(GRPOConfig) if field.name == "loss_type")
    assert all(repr(name) in about for name in LOSS_TYPES)


def test_trackers_are_transformers():
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) - {"none"} <= set(INTEGRATION_TO_CALLBACK)
