"""Claim 5, gains for every variant of GRPO: each with the preference term, as published and at a share that could show."""

from __future__ import annotations

VARIANTS = ("grpo", "dr_grpo", "dapo", "gspo")
# (new, old) as `regime/arm`, by how strong the preference term is.
PAIRS: dict[str, list[tuple[str, str]]] = {
    strength: [(f"clean/two-step-{name}-{strength}", f"clean/two-step-{name}") for name in VARIANTS]
    for strength in ("published", "mixture")
}
