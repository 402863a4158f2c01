"""Make the base policies that come with the package: python -m amir_grpo.sandbox.make (minutes each, on two cores)."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from amir_grpo.choices import SANDBOX
from amir_grpo.sandbox.base import PACKAGED, WARMUP_SEEDS, base_policy, make_with_recipe
from amir_grpo.sandbox.policy import SPECS, SandboxSpec


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m amir_grpo.sandbox.make", description=__doc__)
    parser.add_argument("--numbers", type=int, nargs="+", default=range(len(WARMUP_SEEDS)), help="default: all")
    parser.add_argument("--out", type=Path, default=PACKAGED, help="default: where the package looks for them")
    parser.add_argument("--spec", type=json.loads, default={}, help="other fields of SandboxSpec, as JSON")
    parser.add_argument("--cache", type=Path, help="make the one of --spec into this cache instead")
    options = parser.parse_args(arguments)
    fields = options.spec | ({"shown": tuple(options.spec["shown"])} if "shown" in options.spec else {})
    if options.cache:
        base_policy(SandboxSpec(**fields), options.cache)
        return
    for number in options.numbers:
        folder = options.out / str(number)
        make_with_recipe(replace(SPECS[SANDBOX], seed=WARMUP_SEEDS[number], **fields), folder)
        print(folder, flush=True)


if __name__ == "__main__":
    main()
