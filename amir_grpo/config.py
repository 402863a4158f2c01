"""AmirGRPOConfig: TRL's `GRPOConfig` with the settings of the preference term."""

from __future__ import annotations

from dataclasses import dataclass

from trl import GRPOConfig

from amir_grpo.choices import check_values
from amir_grpo.preference_settings import PreferenceSettings


@dataclass
class AmirGRPOConfig(PreferenceSettings, GRPOConfig):
    """Configuration of `AmirGRPOTrainer`: every setting of TRL's `GRPOConfig`, and those of the preference term.

    The defaults of the latter are the published settings of arXiv 2601.03661.

    Raises:
        ValueError: If a setting of the preference term is out of bounds.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_values(self, PreferenceSettings)
