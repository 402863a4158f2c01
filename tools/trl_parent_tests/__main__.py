"""Run TRL's own tests of GRPOTrainer twice, with GRPOTrainer and with AmirGRPOTrainer in its place (λ = 0.5, δ = 0).

    pip install jmespath                                    # for the tests of tools and environments
    git clone https://github.com/huggingface/trl
    python -m tools.trl_parent_tests trl [--ref v1.14.2]    # and options of pytest

Takes about ten minutes of one core, and no network: the tiny policies are made here. Tests of images, GPUs, vLLM and
Liger are left out. Exit code 1 where a test that passes with GRPOTrainer does not pass with AmirGRPOTrainer and is not
among the explained differences; tests of another version of TRL than the installed one may fail with both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.trl_parent_tests.stand_ins import make_policies, make_tokenizer, renumbered

ROOT = Path(__file__).parents[2]
_FILES = ("__init__.py", "conftest.py", "testing_utils.py", "testing_constants.py", "test_grpo_trainer.py")
_LEFT_OUT = "not VLM and not Slow and not vllm and not multimodal"
# by test: why it need not pass
EXPLAINED = {
    "TestGRPOTrainer::test_train_with_entropy_filter": "top_entropy_quantile below 1 is refused with λ > 0, as it says",
}


def copy_tests(checkout: Path, ref: str, folder: Path) -> None:
    """Copy the tests out of a checkout of TRL, or out of a git directory without one, at `ref`.

    Raises:
        SystemExit: If one of the files is not there.
    """
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    for name in _FILES:
        file = f"tests/{name}"
        if (checkout / file).is_file() and ref == "HEAD":
            text = (checkout / file).read_text()
        else:
            done = subprocess.run(
                ["git", "-C", checkout, "show", f"{ref}:{file}"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{checkout} has no {file} at {ref}: {done.stderr.strip()}")
            text = done.stdout
        (folder / name).write_text(renumbered(text, tokenizer) if name.startswith("test_") else text)


def outcomes(trainer: str, place: Path, options: list[str]) -> dict[str, list[str]]:
    """By test: its outcome with `trainer`, and the end of its message."""
    into = place / f"{trainer}.json"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HOME": str(place / "home"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRL_PARENT_TRAINER": trainer,
        "TRL_PARENT_OUTCOMES": str(into),
    }
    options = ["-q", "--tb=line", "-k", _LEFT_OUT, *options]
    command = [sys.executable, "-m", "pytest", "-p", "tools.trl_parent_tests.plugin", "tests/test_grpo_trainer.py"]
    subprocess.run([*command, "-p", "no:cacheprovider", *options], cwd=place, env=environment, check=False)
    if not into.is_file():
        raise SystemExit(f"pytest did not begin with {trainer}: see above.")
    return json.loads(into.read_text())


def compare(stock: dict[str, list[str]], ours: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Lines of a report, and the tests that pass with GRPOTrainer alone and are not explained."""
    passed = [test for test, (outcome, _) in stock.items() if outcome == "passed"]
    lost = [test for test in passed if ours.get(test, ["missing", ""])[0] != "passed"]
    lines = [
        f"{len(passed)} of {len(stock)} tests pass with GRPOTrainer, {len(passed) - len(lost)} of these with ours."
    ]
    for test in lost:
        lines.append(f"- {test}: {EXPLAINED.get(test) or 'NOT explained: ' + ours.get(test, ['', 'missing'])[1]}")
    without = [f"- {test}: {outcome}: {text}" for test, (outcome, text) in stock.items() if outcome != "passed"]
    if without:
        lines += ["Not passed with GRPOTrainer either:", *without]
    return lines, [test for test in lost if test not in EXPLAINED]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.trl_parent_tests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkout", type=Path, help="A clone of TRL.")
    parser.add_argument("--ref", default="HEAD", help="Commit, tag or branch.")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        copy_tests(options.checkout.expanduser().resolve(), options.ref, place / "tests")
        make_policies(place / "home" / "hub")
        lines, unexplained = compare(*(outcomes(name, place, more) for name in ("GRPOTrainer", "AmirGRPOTrainer")))
    print("\n".join(lines))
    raise SystemExit(bool(unexplained))


if __name__ == "__main__":
    main()
