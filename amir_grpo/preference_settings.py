"""The settings of the preference term as fields of a dataclass, as transformers' configurations have them."""

from __future__ import annotations

from dataclasses import field, make_dataclass

from amir_grpo.settings import FIELDS, PreferenceTerm, help_of

PREFERENCE = (*PreferenceTerm.model_fields, "pair_loss", "lambda_schedule", "preference_share")
PreferenceSettings = make_dataclass(
    "PreferenceSettings",
    [
        (name, FIELDS[name].annotation, field(default=FIELDS[name].default, metadata={"help": help_of(name)}))
        for name in PREFERENCE
    ],
)
