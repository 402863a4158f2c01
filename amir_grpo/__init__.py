"""A notebook-first reproduction of AMIR-GRPO (arXiv 2601.03661).

The trainer, the preference loss, settings, runs and problems can be imported from here. Each module is loaded on first
use, so that drawing a figure does not wait for torch.
"""

from importlib import import_module

__version__ = "0.2.0"

_EXPORTS = {
    "AmirGRPOConfig": "trainer",
    "AmirGRPOTrainer": "trainer",
    "Pairs": "preference",
    "mine_pairs": "preference",
    "preference_loss": "preference",
    "preference_weights": "preference",
    "PROFILES": "settings",
    "RunSettings": "settings",
    "open_run": "runs.run",
    "load_problems": "problems",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
