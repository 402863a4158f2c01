"""Graded completions of policies on a run's benchmarks, and their log-probabilities: drawn once, then read back."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd

from amir_grpo.choices import ENGINES, SANDBOX, SMOLLM2, check_names
from amir_grpo.policies.source import PolicySource
from amir_grpo.runs.opening import stage_lock
from amir_grpo.runs.stages import read_table, write_stage, write_table
from amir_grpo.settings import RunSettings
from amir_grpo.system.cluster import run_jobs, submitting, visible_gpus
from amir_grpo.system.files import write_text
from amir_grpo.system.provenance import now, provenance, read_json, to_json

if TYPE_CHECKING:
    from datasets import Dataset

    from amir_grpo.policies.engines import Engine

_POLICY = "policy.json"  # beside the samples: the policy and engine that drew them
_DRAWN_COLUMNS = ("problem_id", "sample", "text")  # every table of completions has them
_SAMPLE_COLUMNS = ("policy", "benchmark", *_DRAWN_COLUMNS, "correct")


class Evaluation:
    """Drawing, grading and scoring of completions, kept in a run folder; `problems` loads a benchmark by its name."""

    def __init__(self, folder: Path, settings: RunSettings, problems: Callable[[str], Dataset]) -> None:
        self.folder = folder
        self.settings = settings
        self.problems = problems
        self._loaded: tuple[PolicySource, Engine] | None = None  # the engine used last
        self._lora_rank = settings.policy.lora_rank

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}  # an engine cannot be sent to a worker process

    def close(self) -> None:
        """Free the memory of the engine used last; another is loaded when it is needed."""
        if self._loaded:
            self._loaded[1].close()
            self._loaded = None

    def expect(self, sources: Iterable[PolicySource]) -> None:
        """Prepare for policies that will be evaluated in turn: the engine must accept the adapter of each."""
        self._lora_rank = max(source.lora_rank() for source in sources)

    def is_complete(self, name: str, benchmark: str) -> bool:
        """Return whether the samples and the greedy completions of a policy on a benchmark exist."""
        return all(self._path(name, benchmark, greedy).exists() for greedy in (False, True))

    def check_weights(self, name: str, source: PolicySource) -> None:
        """Refuse kept completions of a policy that has been retrained since they were drawn.

        Raises:
            ValueError: If they were drawn with other weights.
        """
        path = self.folder / "samples" / name / _POLICY
        if path.exists() and read_json(path).get("weights") not in (None, source.weights_hash()):
            raise ValueError(
                f"{path.parent} holds completions of another {name} than {source.adapter}, which was retrained.\n"
                f"Results would mix. Delete {path.parent} and {self.folder / 'scores'}: they are made again."
            )

    def completions(self, name: str, benchmark: str, source: PolicySource, greedy: bool = False) -> pd.DataFrame:
        """Return graded completions of a policy on one benchmark; columns as in `amir_grpo.runs.run.Run.samples`.

        Samples and greedy completions are drawn together, so that each policy is loaded once. Every batch is saved
        when it is drawn, so that a killed evaluation continues where it stopped. `name` names the policy in its column
        and the folder under samples/; `greedy` returns each problem's one greedy completion instead of its n samples.
        """
        for each in (False, True):
            path = self._path(name, benchmark, each)
            if not path.exists():
                with stage_lock(self.folder, self.settings, f"sampling {name} on {benchmark}"):
                    if not path.exists():  # unless another process has done it in the meantime
                        self._draw_and_grade(path, name, benchmark, source, each)
        return read_table(self._path(name, benchmark, greedy), _SAMPLE_COLUMNS)

    def all_completions(
        self, sources: Mapping[str, PolicySource], benchmarks: Sequence[str], greedy: bool = False, workers: int = 0
    ) -> pd.DataFrame:
        """Return graded completions of several policies, given by the names that `completions` takes, in one table.

        Each of `workers` processes draws for one policy and benchmark at a time; 0: one per visible GPU, or this one.
        The results are the same: a completion depends only on its policy, its problem and its own random stream.
        """
        pairs = list(product(sources, benchmarks))
        missing = [pair for pair in pairs if not self.is_complete(*pair)]
        gpus = visible_gpus(self.settings.policy.device) if len(missing) > 1 else []
        number = min(len(missing), workers or len(gpus))
        if number > 1:
            jobs = [
                SimpleNamespace(label=" on ".join(pair), draw=partial(self.completions, *pair, sources[pair[0]]))
                for pair in missing
            ]
            with submitting(number, gpus) as submit:
                run_jobs("evaluating", _draw, jobs, submit)
        frames = [self.completions(name, benchmark, sources[name], greedy) for name, benchmark in pairs]
        return pd.concat(frames, ignore_index=True)

    def logprobs(self, source: PolicySource, completions: pd.DataFrame) -> list[float]:
        """Return each completion's log-probability at temperature 1, in nats, from problem_id and completion_ids."""
        from amir_grpo.policies.loading import load_policy, load_tokenizer
        from amir_grpo.policies.sampling import sequence_logprobs, tokenize_prompts

        self.close()
        policy = load_policy(source.base, source.adapter, self.settings.policy)
        tokenizer = load_tokenizer(source.base, self.settings.policy.trust_remote_code)
        prompts = {}
        for benchmark in self.settings.evaluation.benchmarks:
            prompts |= tokenize_prompts(tokenizer, self.problems(benchmark))
        return sequence_logprobs(
            policy,
            tokenizer.pad_token_id,
            [prompts[problem] for problem in completions["problem_id"]],
            completions["completion_ids"].tolist(),
        )

    def _path(self, name: str, benchmark: str, greedy: bool) -> Path:
        return self.folder / "samples" / name / (f"{benchmark}.greedy.parquet" if greedy else f"{benchmark}.parquet")

    def _draw_and_grade(self, path: Path, name: str, benchmark: str, source: PolicySource, greedy: bool) -> None:
        started = now()
        self._record_policy(path.parent, source)
        parts = path.with_suffix(".parts")
        rows = self._graded(self._drawn(parts, name, benchmark, source, greedy), benchmark)
        rows.insert(0, "benchmark", benchmark)
        rows.insert(0, "policy", name)
        write_stage(path.with_suffix(".stage.json"), started)
        write_table(path, rows)
        shutil.rmtree(parts, ignore_errors=True)

    def _record_policy(self, folder: Path, source: PolicySource) -> None:
        """Record beside the samples which policy and engine drew them."""
        from amir_grpo.policies.loading import instructions_in, load_tokenizer

        if not (folder / _POLICY).exists():
            s = self.settings
            drawn_by = {
                "engine": self.engine_name(),
                "load_in_4bit": s.policy.load_in_4bit,
                "weights": source.weights_hash(),
                "instructions_in": instructions_in(load_tokenizer(source.base, s.policy.trust_remote_code)),
            }
            record = {"base": source.base, "adapter": source.adapter and str(source.adapter), **drawn_by}
            write_text(folder / _POLICY, to_json(record | {"provenance": provenance()}))

    def _drawn(self, parts: Path, name: str, benchmark: str, source: PolicySource, greedy: bool) -> pd.DataFrame:
        """Return all completions of a benchmark: the batches in `parts`, and those drawn and saved there now."""
        from amir_grpo.policies.sampling import draw_batches, in_order

        s = self.settings
        problems = self.problems(benchmark)
        frames = [read_table(path, _DRAWN_COLUMNS) for path in sorted(parts.glob("*.parquet"))]
        done = {problem for frame in frames for problem in frame["problem_id"]}
        if len(done) < len(problems):
            batches = draw_batches(
                self._engine(source),
                problems,
                1 if greedy else s.evaluation.num_samples,
                temperature=0.0 if greedy else s.evaluation.eval_temperature,
                top_p=s.evaluation.eval_top_p,
                max_new_tokens=s.evaluation.eval_max_new_tokens,
                seed=s.train.seed,
                token_budget=s.evaluation.eval_token_budget,
                done=done,
                label=f"sampling {name} on {benchmark}{', greedy' if greedy else ''}",
            )
            for batch in batches:
                write_table(parts / f"{len(frames):05d}.parquet", batch)
                frames.append(batch)
        return in_order(pd.concat(frames), problems)

    def _graded(self, rows: pd.DataFrame, benchmark: str) -> pd.DataFrame:
        from amir_grpo.grading import grade_many
        from amir_grpo.rewards import has_format, stated_confidence

        problems, calibration = self.problems(benchmark), self.settings.data.calibration
        answers = dict(zip(problems["id"], problems["answer"], strict=True))
        grades = grade_many(rows["text"].tolist(), [answers[problem] for problem in rows["problem_id"]])
        rows["correct"] = [grade.correct for grade in grades]
        rows["formatted"] = [has_format(text, calibration) for text in rows["text"]]
        if calibration:
            rows["confidence"] = pd.Series([stated_confidence(text) for text in rows["text"]], dtype=float)
        rows["seed"] = self.settings.train.seed
        return rows

    def _engine(self, source: PolicySource) -> Engine:
        from amir_grpo.policies.engines import load_engine

        if self._loaded is None or self._loaded[0] != source:
            last = self._loaded[1] if self._loaded else None
            rank = source.lora_rank()
            if last is not None and last.name == "vllm" and last.base == source.base and rank <= last.lora_rank:
                last.use(source.adapter)  # building an engine takes minutes
                self._loaded = source, last
            else:
                self.close()
                name = self.engine_name()
                room = self._room(source.base, rank) if name == "vllm" else ()
                self._loaded = source, load_engine(name, source.base, source.adapter, self.settings.policy, *room)
        return self._loaded[1]

    def _room(self, base: str, rank: int) -> tuple[int, int]:
        """Return the largest rank of this and later adapters, and the most tokens of a prompt and its completion."""
        from amir_grpo.policies.loading import load_tokenizer
        from amir_grpo.policies.sampling import tokenize_prompts

        tokenizer = load_tokenizer(base, self.settings.policy.trust_remote_code)
        prompts = [tokenize_prompts(tokenizer, self.problems(name)) for name in self.settings.evaluation.benchmarks]
        longest = max(len(ids) for benchmark in prompts for ids in benchmark.values())
        return max(rank, self._lora_rank), longest + self.settings.evaluation.eval_max_new_tokens

    def engine_name(self) -> str:
        """Name the engine; for auto it is the one of existing samples, so that compared policies share an engine."""
        from amir_grpo.policies.engines import engine_here

        if self.settings.evaluation.eval_engine == "auto":
            records = [read_json(path, ["engine"]) for path in self.folder.glob(f"samples/*/{_POLICY}")]
            if records:
                check_names("engine", recorded := [record["engine"] for record in records], ENGINES)
                return min(recorded)
        return engine_here(self.settings.evaluation.eval_engine, self.settings.policy)


def _draw(job: SimpleNamespace) -> None:
    """Draw in a worker process."""
    use_one_thread(job.draw.func.__self__.settings)
    job.draw()


def use_one_thread(settings: RunSettings) -> None:
    """Keep small policies on one thread, so that results do not depend on the number of cores.

    This slows down neither the sandbox's policy nor two trainings of smollm2 side by side.
    """
    if settings.policy.model_name in (SANDBOX, SMOLLM2):
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        else:  # reading results should not wait for torch
            os.environ.setdefault("OMP_NUM_THREADS", "1")
