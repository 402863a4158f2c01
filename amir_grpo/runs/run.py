"""A run folder: its settings and provenance, and the stages that fill it, each run once.

    runs/<name>/
      config.json              settings and provenance
      base/                    the sandbox's base policy (a Hub policy stays in the Hub's cache)
      grpo/, amir_grpo/        adapter, training log (log.csv), checkpoints, stage.json
      problems/<set>.json      where the problems came from, and their fingerprint
      samples/<policy>/<benchmark>.parquet, <benchmark>.greedy.parquet, each with a .stage.json; policy.json
      scores/<policy>.parquet  log-probabilities of shared and own completions under a policy
      tables/<name>.csv, and <name>.json with how it was made
      figures/, notebooks/, run.html

A complete stage is read back, not repeated. Every stage first runs the stages that it depends on, so that each
notebook can be run on its own.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from amir_grpo.choices import METHODS, POLICIES, SMOLLM2, check_names
from amir_grpo.policies import smollm2
from amir_grpo.policies.backend import Backend, start_backend
from amir_grpo.policies.source import ADAPTER_FILES, PolicySource
from amir_grpo.problems import fingerprint, load_problems
from amir_grpo.runs.evaluation import Evaluation, use_one_thread
from amir_grpo.runs.opening import configure, overrides_of, resolve_profile, run_folder, stage_lock
from amir_grpo.runs.stages import check_trained, read_table, write_stage, write_table
from amir_grpo.sandbox.base import base_policy, warmup_seed
from amir_grpo.sandbox.policy import SPECS
from amir_grpo.settings import RunSettings, differences, settings_of
from amir_grpo.system.files import (
    atomic_folder,
    atomic_write,
    explain_full_disk,
    hashes,
    write_text,
)
from amir_grpo.system.processes import is_main, main_first, wait_for_everyone, world_size
from amir_grpo.system.provenance import now, read_json, record_of, to_json

if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure

_SCORE_COLUMNS = ("scorer", "sampler", "benchmark", "problem_id", "sample", "tokens", "correct", "logprob")


class Run:
    """A run folder, its settings, the profile that they started from, and the evaluation of policies into it."""

    def __init__(self, folder: Path, profile: str, settings: RunSettings) -> None:
        self.folder = folder
        self.profile = profile
        self.settings = settings
        self.evaluation = Evaluation(folder, settings, self.problems)

    def check(self) -> None:
        """Check, before a whole run begins, that no stage lacks a requirement: GPU, packages, problems, tokenizer."""
        from amir_grpo.policies.loading import check_hardware, load_tokenizer

        s = self.settings
        check_hardware(s, evaluation=True)
        self.training_problems()
        self._check_problems(POLICIES, s.evaluation.benchmarks)
        if s.policy.model_name == SMOLLM2:
            smollm2.smollm2()
        elif not s.policy.is_sandbox:
            load_tokenizer(s.policy.model_name, s.policy.trust_remote_code)

    # --- problems -----------------------------------------------------------------------------------------------

    def training_problems(self) -> Dataset:
        """Load the training set; refuse one that is smaller than a rollout or differs from the one used before."""
        data, train = self.settings.data, self.settings.train
        name, split, calibration = data.dataset_name, data.dataset_split, data.calibration
        problems = load_problems(name, split, data.dataset_limit, calibration, seed=train.seed, shots=data.shots)
        prompts = train.prompts_per_rollout * world_size()
        if len(problems) < prompts:
            raise ValueError(
                f"The training set {name} holds {len(problems)} problems, fewer than the {prompts} prompts "
                "of a rollout: no step would be made.\nLower per_device_train_batch_size, or train in fewer processes."
            )
        self._record_problems(f"{name}-{split}", problems)
        return problems

    def problems(self, benchmark: str) -> Dataset:
        """Load the problems of one benchmark of the run; refuse any that differ from those it used before."""
        limit, seed = self.settings.evaluation.eval_limit, self.settings.evaluation.eval_seed
        data = self.settings.data
        problems = load_problems(benchmark, None, limit, data.calibration, seed=seed, shots=data.shots)
        self._record_problems(benchmark, problems)
        return problems

    def _check_problems(self, names: Iterable[str], benchmarks: Iterable[str]) -> None:
        """Load the problems of every incomplete benchmark, to see errors before hours are spent on another one."""
        for benchmark in benchmarks:
            if not all(self.evaluation.is_complete(name, benchmark) for name in names):
                self.problems(benchmark)

    def _record_problems(self, name: str, problems: Dataset) -> None:
        path = self.folder / "problems" / f"{name}.json"
        seen = fingerprint(problems)
        if path.exists():
            before = read_json(path, ("fingerprint", "source"))
            if before["fingerprint"] != seen:
                raise ValueError(
                    f"The problems of {name} have changed since this run used them: fingerprint {seen}, was "
                    f"{before['fingerprint']} ({before['source']}).\n"
                    "Results would mix. Restore the data, or give another run_dir."
                )
            return
        source = problems.info.description or "made on the spot"
        record = {"set": name, "source": source, "problems": len(problems), "fingerprint": seen}
        write_text(path, to_json(record))

    # --- policies -----------------------------------------------------------------------------------------------

    def base(self) -> str:
        """Return the folder or Hub id of the base policy; those of the sandbox and smollm2 are made now if missing."""
        policy = self.settings.policy
        if policy.model_name == SMOLLM2:
            return str(smollm2.base_policy(policy.smollm2_warmup_steps, warmup_seed(policy.base_seed)))
        if not policy.is_sandbox:
            return policy.model_name
        folder = self.folder / "base"
        if not folder.exists():
            seed, steps = warmup_seed(policy.base_seed), policy.sandbox_warmup_steps
            with explain_full_disk(self.folder):
                made = base_policy(
                    replace(SPECS[policy.model_name], warmup_steps=steps, seed=seed), self.folder.parent / ".cache"
                )
            with self._stage("copying the base policy"), atomic_folder(folder) as beside:
                shutil.copytree(made, beside, dirs_exist_ok=True)
        return str(folder)

    def train(self, method: str) -> pd.DataFrame:
        """Train one method, unless it is trained already, and return its log: see `amir_grpo.runs.training.train`."""
        check_names("method", [method], METHODS)
        folder = self.folder / method
        log_path = folder / "log.csv"
        if is_main():
            check_trained(folder)
        wait_for_everyone()
        if not (folder / "stage.json").exists():
            self.evaluation.close()  # its engine may hold the memory that training needs
            backend = self._start_training()
            from amir_grpo.policies.loading import instructions_in, load_tokenizer
            from amir_grpo.runs import training  # imports TRL, which has to come after the backend

            with main_first():
                problems, base, watched = self.training_problems(), self.base(), self._watched_problems()
            with self._stage(f"training {method}"):
                if not (folder / "stage.json").exists():  # unless another process has done it in the meantime
                    started = now()
                    log = training.train(method, self.settings, base, problems, folder, backend, watched)
                    if is_main():
                        atomic_write(log_path, lambda part: log.to_csv(part, index=False))
                        files = hashes(
                            folder / name for name in (*ADAPTER_FILES, training.ROLLOUTS_FILE, log_path.name)
                        )
                        told = instructions_in(load_tokenizer(base, self.settings.policy.trust_remote_code))
                        more = {"backend": asdict(backend), "processes": world_size(), "instructions_in": told}
                        write_stage(folder / "stage.json", started, **more, sha256=files)
            wait_for_everyone()
        return read_table(log_path, numbers=("step", "reward"))

    def _watched_problems(self) -> Dataset | None:
        """Return the first 8 problems of each benchmark if `eval_steps` asks to watch the training on them."""
        if not (self.settings.train.model_extra or {}).get("eval_steps"):
            return None
        from datasets import concatenate_datasets

        sets = [self.problems(benchmark) for benchmark in self.settings.evaluation.benchmarks]
        return concatenate_datasets([rows.select(range(min(8, len(rows)))) for rows in sets])

    def _stage(self, work: str) -> AbstractContextManager[None]:
        return stage_lock(self.folder, self.settings, work)

    def _start_training(self) -> Backend:
        """Check that the hardware supports the settings, and start the backend."""
        from amir_grpo.policies.loading import check_hardware

        s = self.settings
        check_hardware(s)
        backend = start_backend(s.policy.backend)
        from amir_grpo.policies.plan import announce  # imports transformers, so Unsloth comes first

        if is_main() and s.policy.device == "auto" and (line := announce(s, backend.name)):
            print(line)
        return backend

    def logs(self) -> pd.DataFrame:
        """Return the training logs of both methods in one table."""
        return pd.concat([self.train(method) for method in METHODS], ignore_index=True)

    def is_trained(self, method: str) -> bool:
        """Return whether the training of a method is complete."""
        return (self.folder / method / "stage.json").exists()

    # --- evaluation ---------------------------------------------------------------------------------------------

    def samples(
        self,
        policies: Iterable[str] = POLICIES,
        benchmarks: Iterable[str] | None = None,
        greedy: bool = False,
        workers: int = 0,
    ) -> pd.DataFrame:
        """Return graded completions of the run's policies, drawing those that are missing.

        Samples and greedy completions are drawn together, so that each policy is loaded once.

        Args:
            policies: Any of base, grpo and amir_grpo.
            benchmarks: Any of the run's; None for all.
            greedy: Return the one greedy completion of each problem instead of its n samples.
            workers: Processes, each drawing for one policy and benchmark. 0: one per visible GPU, or this one.

        Returns:
            One row per completion: policy, benchmark, problem_id, sample, text, completion_ids, tokens, finish_reason,
            logprob (sum under the sampling policy, at temperature 1), correct, formatted, seed; with calibration also
            confidence (NaN if none is stated).
        """
        check_names("policy", policies := list(policies), POLICIES)
        benchmarks = list(benchmarks or self.settings.evaluation.benchmarks)
        self._check_problems(policies, benchmarks)
        sources = {}
        for name in policies:
            sources[name] = PolicySource(self.base(), None if name == "base" else self.folder / name)
            if name != "base":
                self.train(name)
                self.evaluation.check_weights(name, sources[name])
        return self.evaluation.all_completions(sources, benchmarks, greedy, workers)

    def samples_of_others(
        self,
        sources: Mapping[str, PolicySource],
        benchmarks: Iterable[str] | None = None,
        greedy: bool = False,
        workers: int = 0,
    ) -> pd.DataFrame:
        """Return graded completions of other policies, given by name for the column policy; the rest as in `samples`.

        They are kept in samples/<name>-<hash of the weights>, apart from those of the run and of other policies.
        """
        benchmarks = list(benchmarks or self.settings.evaluation.benchmarks)
        folders = {name: f"{name}-{source.weights_hash()}" for name, source in sources.items()}
        self.evaluation.expect(sources.values())
        self._check_problems(folders.values(), benchmarks)
        in_folders = {folders[name]: source for name, source in sources.items()}
        completions = self.evaluation.all_completions(in_folders, benchmarks, greedy, workers)
        return completions.assign(policy=completions["policy"].map({folder: name for name, folder in folders.items()}))

    def scores(self) -> pd.DataFrame:
        """Return log-probabilities under GRPO and AMIR-GRPO: both score their own and the base policy's completions.

        Returns:
            A row per scorer and completion: scorer, sampler, benchmark, problem_id, sample, tokens, correct, logprob.
        """
        samples = self.samples()
        frames = []
        for method in METHODS:
            path = self.folder / "scores" / f"{method}.parquet"
            if not path.exists():
                with self._stage(f"scoring {method}"):
                    started = now()
                    shared = samples[samples["policy"] == "base"].copy()
                    scorer = PolicySource(self.base(), self.folder / method)
                    shared["logprob"] = self.evaluation.logprobs(scorer, shared)
                    own = samples[samples["policy"] == method]
                    frame = pd.concat([own, shared], ignore_index=True).rename(columns={"policy": "sampler"})
                    frame.insert(0, "scorer", method)
                    write_stage(path.with_suffix(".stage.json"), started)
                    write_table(path, frame[list(_SCORE_COLUMNS)])
            frames.append(read_table(path))
        return pd.concat(frames, ignore_index=True)

    # --- tables and figures -------------------------------------------------------------------------------------

    def save_table(self, table: pd.DataFrame, name: str) -> Path:
        """Write a table to tables/<name>.csv, and how it was made to <name>.json beside it."""
        record = {"table": name, "made": now(), **record_of(self.folder)}
        write_text(self.folder / "tables" / f"{name}.json", to_json(record))
        return atomic_write(self.folder / "tables" / f"{name}.csv", lambda part: table.to_csv(part, index=False))

    def save_figure(self, figure: Figure, name: str) -> tuple[Path, Path]:
        """Write a figure to figures/<name>.png and .svg."""
        from amir_grpo.results.style import save_figure

        (self.folder / "figures").mkdir(exist_ok=True)
        changed = differences(settings_of(self.profile), self.settings)
        command = ["python", "-m", "amir_grpo", "reproduce", "--profile", self.profile]
        for setting, (_, value) in changed.items():
            command += [f"--{setting}", *map(str, value if isinstance(value, list) else [value])]
        return save_figure(figure, self.folder / "figures" / name, shlex.join(command))


def open_run(
    profile: str | None = None, run_dir: str | Path | None = None, overrides: Mapping[str, Any] | str | None = None
) -> Run:
    """Open a run folder, or start one.

    An existing folder needs no profile: it supplies its own settings, which are compared only with what is given now.

    Args:
        profile: One of `amir_grpo.settings.PROFILES`, or auto: the largest that fits the GPU, or sandbox without one.
            None and auto keep an existing folder's own; None gives a new folder sandbox.
        run_dir: The folder; None for runs/<profile> in the project, or on Google Drive if Colab has mounted it.
        overrides: Settings that differ from the profile's: a mapping, or JSON text.

    Raises:
        ValueError: If a name or value is not valid, or the folder holds results made with other settings.
        OSError: If the folder cannot be written to, or its disk is full.
        Busy: If another process holds the lock of its configuration.
    """
    new_profile = resolve_profile(profile or "sandbox")
    folder = run_folder(new_profile, run_dir)
    given = None if profile == "auto" else profile or None
    name, settings = configure(folder, given, new_profile, overrides_of(overrides))
    use_one_thread(settings)
    return Run(folder, name, settings)
