"""What a training step and an evaluation cost on a GPU at the real shapes, and whether plan and gradient are right there.

Random weights of the published shapes and a tokenizer padded to the real vocabulary stand in for the policies, so that
nothing is downloaded: speed and memory do not depend on what the weights say, as long as completions have their full
length, which is forced here.

    python benchmarks/gpu.py                       every shape that fits, and colab-t4 under 15 GB
    python benchmarks/gpu.py --shapes Qwen/Qwen2.5-0.5B-Instruct --steps 5
    python benchmarks/gpu.py --backend unsloth     the same by Unsloth, whose rows are added to the file

    python benchmarks/gpu.py --parts gradient      one part alone

Without a GPU it goes through the same parts at a tiny shape, and keeps nothing: a trial of this command, not a measurement.

Writes into data/results/gpu:

- steps.csv, a row per shape, backend and method: seconds of a step, median of the steps after the first; peak GiB as PyTorch
  allocated it, and as the plan foresaw it.
- evaluation.csv, a row per shape and engine: completions per second of the published loop (`sampling_speed.py`), on a few
  problems since it takes them one by one, and of the evaluation on all.
- gradient.csv, a row per shape, backend and dtype: how far the trainer's gradient is from the explicit one (`gradient.py`),
  and how far GRPO's alone would be.
- provenance.json: card, driver, versions.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)

from amir_grpo.choices import BACKENDS, METHODS
from amir_grpo.policies.backend import Backend, import_early, start_backend
from amir_grpo.policies.engines import engine_here, load_engine
from amir_grpo.policies.loading import compute_dtype, device, free_memory, load_policy, load_tokenizer
from amir_grpo.policies.plan import GIB, SHAPES, card_here, plan
from amir_grpo.runs.opening import project_root
from amir_grpo.sandbox.policy import build_tokenizer
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import RunSettings, replace, settings_of
from amir_grpo.system.files import atomic_write, write_text
from amir_grpo.system.progress import quiet
from amir_grpo.system.provenance import provenance, to_json

TINY = "tiny"  # for a trial without a GPU
_TINY_SHAPE = {"model_type": "qwen2", "vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2}
_TINY_SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
_TINY_SETTINGS = {"max_prompt_length": 32, "max_completion_length": 24, "max_seq_length": 64, "optim": "adamw_torch"}
_TINY_SETTINGS |= {"load_in_4bit": False, "dataset_limit": 200}
LIMITED = 15e9  # bytes of a T4, for colab-t4
PARTS = {  # and what tells their rows apart
    "steps": ("shape", "backend", "load_in_4bit", "method"),
    "evaluation": ("shape", "engine", "load_in_4bit"),
    "gradient": ("shape", "backend", "dtype"),
}


def padded_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """The sandbox's tokenizer with as many tokens as a real one, so that any token that is drawn has a text."""
    tokenizer = build_tokenizer(words=True)
    tokenizer.add_tokens([f"<{n}>" for n in range(vocabulary - len(tokenizer))])
    return tokenizer


def random_policy(name: str, folder: Path) -> Path:
    """A policy of a published shape with random weights, and its tokenizer, saved; the folder it is in."""
    config = AutoConfig.for_model(**{TINY: _TINY_SHAPE, **SHAPES}[name])
    tokenizer = padded_tokenizer(config.get_text_config().vocab_size)
    config.get_text_config().update({"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id})
    set_seed(0)
    with device():
        policy = AutoModelForCausalLM.from_config(config, dtype=compute_dtype())
    with quiet():
        policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del policy
    torch.cuda.empty_cache()
    return folder


class _Clock(TrainerCallback):
    """Seconds of each optimizer step, and the most memory that PyTorch has allocated."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        _synchronize()
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        _synchronize()
        self.seconds.append(time.perf_counter() - self.begin)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(method: str, settings: RunSettings, base: Path, backend: Backend) -> dict[str, float]:
    """Train for a few steps whose completions all have their full length; seconds a step and peak GiB."""
    free_memory()  # the last trainer refers to itself
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    from amir_grpo.runs import training  # imports TRL, which comes after Unsloth

    clock = _Clock()
    problems = load_sandbox("sandbox", 200, 0)
    with tempfile.TemporaryDirectory() as out:
        config = training.trainer_config(method, settings, Path(out), backend.name)
        trainer = training.run_trainer(settings, config, str(base), problems, backend)
        trainer.add_callback(clock)
        # the longest prompts that the settings allow; completions are, too: one token in 150,000 ends one
        whole = trainer._tokenize_prompts

        def longest(prompts):
            ids, *rest = whole(prompts)
            return [(row * settings.data.max_prompt_length)[: settings.data.max_prompt_length] for row in ids], *rest

        trainer._tokenize_prompts = longest
        trainer.train()
    peak = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else float("nan")
    return {"seconds": median(clock.seconds[1:] or clock.seconds), "steps": len(clock.seconds), "peak_gib": peak}


def rows_of(part: str, name: str, settings: RunSettings, base: Path, backend: Backend) -> list[dict]:
    """One of `PARTS` at one shape; each row is printed, too."""
    make = {"steps": step_rows, "evaluation": evaluation_rows, "gradient": gradient_rows}[part]
    rows = []
    for row in make(replace(settings, model_name=str(base)), base, backend):
        rows.append({"shape": name} | row)
        print({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    free_memory()
    return rows


def evaluation_rows(settings: RunSettings, base: Path, backend: Backend) -> Iterator[dict]:
    """The published loop and the evaluation, from the same policy, which ends hardly any completion early."""
    from sampling_speed import our_rate, published_rate  # beside this file

    loading, length = settings.policy, settings.train.max_completion_length
    problems = load_sandbox("sandbox", 32 if torch.cuda.is_available() else 8)
    policy, tokenizer = load_policy(str(base), None, loading), load_tokenizer(str(base))
    published = published_rate(policy.eval(), tokenizer, problems.select(range(4)), length)
    del policy
    free_memory()
    room = 0, settings.data.max_prompt_length + length
    engine = load_engine(engine_here("auto", loading), str(base), None, loading, *room)
    ours = our_rate(engine, problems, length, settings.evaluation.eval_token_budget, 0)
    rates = {"published_per_second": published, "ours_per_second": ours, "ratio": ours / published}
    yield {"engine": engine.name, "load_in_4bit": settings.policy.load_in_4bit, "max_new_tokens": length, **rates}


def gradient_rows(settings: RunSettings, base: Path, backend: Backend) -> Iterator[dict]:
    """float32, bfloat16 where the device has it, and on a GPU float16, with the loss scaler."""
    from gradient import gradient_row  # imports TRL, which comes after Unsloth

    shorter = replace(settings, max_completion_length=min(64, settings.train.max_completion_length))
    dtypes, on_gpu = [torch.float32], torch.cuda.is_available()
    if not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False):
        dtypes.append(torch.bfloat16)
    if on_gpu:
        dtypes.append(torch.float16)
    for dtype in dtypes:
        row = gradient_row(shorter, base, backend, load_sandbox("sandbox", 200), dtype)
        yield {"backend": backend.name} | row


def step_rows(settings: RunSettings, base: Path, backend: Backend) -> Iterator[dict]:
    """Both methods."""
    card = card_here()
    planned = plan(settings, 16 if card else 32, backend.name)
    for method in METHODS:
        row = {"backend": backend.name, "load_in_4bit": settings.policy.load_in_4bit, "method": method}
        yield (
            row
            | measure(method, settings, base, backend)
            | {"planned_gib": planned.peak - planned.parts["CUDA context"]}
        )


def driver() -> str | None:
    """The NVIDIA driver's version."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="default: all")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--backend", default="transformers", choices=BACKENDS)
    parser.add_argument("--profile", default="paper-qwen3b", help="where the other settings come from")
    parser.add_argument("--results", type=Path, default=project_root() / "data" / "results" / "gpu")
    parser.add_argument("--no_colab", action="store_true", help="leave out colab-t4 under 15 GB")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if arguments.shapes and not on_gpu:
        parser.error("--shapes needs an NVIDIA GPU, and none is visible: leave it out for a trial at a tiny shape.")
    import_early(arguments.backend)  # before anything imports TRL
    try:
        backend = start_backend(arguments.backend)
    except ValueError as error:
        parser.error(str(error))
    if not on_gpu:
        print("No GPU is visible: a trial at a tiny shape, of which nothing is kept.", flush=True)
    # δ = 0, so that even the rewards of random completions make pairs
    changes = {"max_steps": arguments.steps, "save_steps": 0, "reward_margin": 0.0} | (
        {} if on_gpu else _TINY_SETTINGS
    )
    rows: dict[str, list[dict]] = {part: [] for part in arguments.parts}
    with tempfile.TemporaryDirectory() as folder:
        for name in (arguments.shapes or SHAPES) if on_gpu else [TINY]:
            base = random_policy(name, Path(folder) / name.replace("/", "-"))
            for part in rows:
                rows[part] += rows_of(part, name, settings_of(arguments.profile, changes), base, backend)
        if not arguments.no_colab:
            name = "Qwen/Qwen2.5-0.5B-Instruct" if on_gpu else TINY
            base = random_policy(name, Path(folder) / "colab")
            if on_gpu:
                memory = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, LIMITED / memory))
            for part in rows.keys() - {"gradient"}:  # which would be that of the same shape
                rows[part] += rows_of(part, name, settings_of("colab-t4", changes), base, backend)
    if on_gpu:
        for part in rows:
            keep(part, pd.DataFrame(rows[part]), arguments.results)


def keep(part: str, rows: pd.DataFrame, results: Path) -> None:
    """Write the rows, in place of what was measured before of the same."""
    path = results / f"{part}.csv"
    before = pd.read_csv(path) if path.exists() else rows.iloc[:0]
    together = pd.concat([before, rows]).drop_duplicates(list(PARTS[part]), keep="last")
    atomic_write(path, lambda part: together.to_csv(part, index=False))
    write_text(results / "provenance.json", to_json(provenance() | {"driver": driver()}))


if __name__ == "__main__":
    main()
