"""The command line: the same functions as the notebooks.

Where a command takes settings, every setting of `amir_grpo.settings` is an option, parsed from the dataclass by
transformers' HfArgumentParser; what is not given comes from the run folder, or from the profile where that is new.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from amir_grpo.choices import POLICIES, SANDBOX, SANDBOXES, check_names
from amir_grpo.cli.options import (
    EvaluateOptions,
    EvidenceOptions,
    ExistingRunOptions,
    ExportOptions,
    NotebooksOptions,
    PlanOptions,
    ReproduceOptions,
    RunOptions,
    TrainOptions,
    VerifyOptions,
)
from amir_grpo.cli.parsing import Command, parse
from amir_grpo.policies.backend import import_early
from amir_grpo.policies.source import copy_policy
from amir_grpo.settings import FIELDS, PROFILES
from amir_grpo.system.cluster import check_workers, cluster_of
from amir_grpo.system.files import atomic_write, check_folder, user_path
from amir_grpo.system.processes import die_with_parent, ending, is_main, leave_process_group, world_size
from amir_grpo.system.provenance import read_config

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit code 2, and a message of a few lines, for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    top = argparse.ArgumentParser(prog="amir_grpo", description=__doc__.splitlines()[0])
    names = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in _COMMANDS.items():
        names.add_parser(name, help=command.about, add_help=False)
    name = top.parse_known_args(arguments[:1])[0].command
    command, arguments = _COMMANDS[name], arguments[1:]
    with ending(name):
        if name == "train":
            _import_backend(arguments)
        options, overrides = _parse(name, arguments)
        if world_size() > 1 and name != "train":
            raise ValueError(
                f"{name} runs in one process, and was started in {world_size()}: only train takes several.\n"
                f"Start it as `python -m amir_grpo {name} …`."
            )
        if world_size() > 1:
            die_with_parent()  # the launcher
        if command.takes_settings:
            command.run(options, overrides)
        else:
            command.run(options)


def _parse(name: str, arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    return parse(name, _COMMANDS[name], arguments)


def _import_backend(arguments: list[str]) -> None:
    """Import Unsloth, where it is the backend, before transformers, which reads the options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--profile", "--run_dir", "--backend"):
        parser.add_argument(option)
    known = parser.parse_known_args(arguments)[0]
    backend = known.backend
    if backend is None and known.run_dir:
        with contextlib.suppress(OSError, ValueError, KeyError):  # opening the run will name the trouble
            backend = read_config(user_path(known.run_dir))["settings"]["backend"]
    import_early(backend or PROFILES.get(known.profile or "sandbox", {}).get("backend", FIELDS["backend"].default))


def _open(options: RunOptions, overrides: Mapping[str, Any] | None = None) -> Run:
    from amir_grpo.runs.run import open_run

    return open_run(options.profile, options.run_dir, overrides)


def _open_existing(options: ExistingRunOptions) -> Run:
    """The run that is there, with its own settings; none is started by a command that reads.

    Raises:
        FileNotFoundError: If there is none.
    """
    from amir_grpo.runs.locations import run_folder
    from amir_grpo.runs.run import open_run, resolve_profile

    folder = run_folder(resolve_profile(options.profile or SANDBOX), options.run_dir)
    read_config(folder)
    return open_run(run_dir=folder)


def _plan(options: PlanOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.policies.plan import planned
    from amir_grpo.runs.run import resolve_profile
    from amir_grpo.settings import settings_of

    profile = resolve_profile(options.profile)
    settings = settings_of(profile, overrides)
    print(planned(profile, settings, "unsloth" if settings.policy.backend == "unsloth" else "transformers"))


def _train(options: TrainOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.results.tables import reward_ends

    adapter = user_path(options.model_dir) if options.model_dir else None
    if adapter:
        check_folder(adapter, "model_dir")
    run = _open(options, overrides)
    log = run.train(options.method)
    leave_process_group()
    if not is_main():
        return
    first, last, steps = reward_ends(log)
    print(
        f"{options.method}: reward {first:.3f} over the first {steps} logged steps, {last:.3f} over the last. "
        f"Adapter and log: {run.folder / options.method}"
    )
    if adapter:
        copy_policy(run.folder / options.method, adapter)
        print(f"Adapter copied to {adapter}")


def _evaluate(options: EvaluateOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.policies.source import named_policies
    from amir_grpo.results import formatting
    from amir_grpo.results.run_results import EvaluationResults
    from amir_grpo.runs.locations import runs_folder
    from amir_grpo.runs.showing import save_results

    # as in the published command line, the data set that `evaluate` is given is the one to evaluate on
    benchmark = overrides.pop("dataset_name", None)
    sources = named_policies(options.model_dir or ())
    if sources and not options.run_dir:
        options.run_dir = str(runs_folder() / "evaluations" / "-vs-".join(sources))
    check_workers(options.workers)
    run = _open(options, overrides)
    benchmarks = [benchmark] if benchmark else run.settings.evaluation.benchmarks
    check_names("benchmark", benchmarks, run.settings.evaluation.benchmarks)
    draw = (lambda **which: run.samples_of_others(sources, **which)) if sources else run.samples
    samples = draw(benchmarks=benchmarks, workers=options.workers)
    greedy = draw(benchmarks=benchmarks, greedy=True)
    results = EvaluationResults(samples, greedy, run.settings.evaluation.ks)
    if sources and any((run.folder / "samples" / name).exists() for name in POLICIES):
        print(f"Printed, not kept: the tables of {run.folder} are about its own policies.\n")
    elif sources or benchmarks == run.settings.evaluation.benchmarks:
        save_results(run, results)
    comparisons = results.comparisons
    print(formatting.wide_summary(results.policies).reset_index().to_string(index=False))
    print("\nIn brackets: 95 % intervals over problems. tokens: mean of a completion; all else in percent.")
    if len(comparisons):
        print(f"\nEvery two policies, paired by problem; p_holm is corrected over these {len(comparisons)} rows:\n")
        shown = comparisons[["benchmark", "quantity", "new", "old", "gain", "gain_low", "gain_high", "p_holm"]]
        print(formatting.rounded(shown).to_string(index=False))
    print(f"\nCompletions: {run.folder / 'samples'}")


def _evidence(options: EvidenceOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.runs.locations import project_root, runs_folder
    from amir_grpo.study.claims import study_report
    from amir_grpo.study.experiment import compare_with_kept, make_runs, runs_in_order, single_run
    from amir_grpo.study.kept import complete_arms, load_study
    from amir_grpo.study.plan import check_frozen, read_plan

    plan = read_plan()
    check_names("sandbox profile", [options.profile], SANDBOXES)
    check_workers(options.workers)
    changed = [*overrides, *(["profile"] if options.profile != "sandbox" else [])]
    if changed and not options.results:
        raise ValueError(f"With another {', '.join(changed)}, results do not belong to the kept ones: give --results.")
    folder = user_path(options.folder or runs_folder() / options.study)
    results = user_path(options.results or project_root() / "data" / "results" / options.study)
    check_folder(folder, "folder")
    common = {"overrides": overrides, "profile": options.profile}
    if options.only:
        again = single_run(plan, options.study, folder, options.only, **common)
        if differing := compare_with_kept(again, results):
            raise SystemExit(f"{again.label}: other {' and '.join(differing)} than those that are kept in {results}.")
        print(f"{again.label}: the same completions and weights as those that are kept.")
        return
    check_folder(results, "results")
    runs = runs_in_order(plan, options.study, folder, options.arms or (), options.seeds or (), **common)
    if options.study == "confirmation":
        check_frozen(plan)
    make_runs(runs, results, cluster_of(options, folder) or options.workers)
    print(study_report(complete_arms(load_study(results), plan), plan))
    print(f"\nResults: {results}")


def _export(options: ExportOptions) -> None:
    from amir_grpo.runs.export import check_login, export_policy, push

    if options.results:
        _export_results(options)
        return
    if options.push_to:
        check_login(options.push_to)
    elif options.public:
        raise ValueError("--public is about the repository of --push_to: give that, too, or leave --public out.")
    run = _open_existing(options)
    if options.out:
        out = user_path(options.out)
    else:  # the run's own, made anew
        out = run.folder / "export" / (f"{options.method}-merged" if options.merged else options.method)
    export_policy(run, options.method, out, options.merged, replace_old=not options.out)
    print(f"Saved: {out}")
    if options.push_to:
        print(f"Uploaded: {push(out, options.push_to, private=not options.public)}")


def _export_results(options: ExportOptions) -> None:
    from amir_grpo.runs.export import export_results

    of_policies = {"out": options.out, "merged": options.merged, "push_to": options.push_to, "public": options.public}
    if given := [name for name, value in of_policies.items() if value]:
        raise ValueError(
            f"--results goes without --{given[0]}, which is about a policy: results are saved, not uploaded.\n"
            "To upload them: hf upload --repo-type dataset me/name DIR."
        )
    print(f"Saved: {export_results(_open_existing(options), user_path(options.results))}")


def _verify(options: VerifyOptions) -> None:
    from amir_grpo.runs.verify import first_difference

    folders = [user_path(folder) for folder in options.runs]
    if len(folders) != 2:
        raise ValueError(f"verify compares two run folders, and got {len(folders)}: amir_grpo verify runs/a runs/b.")
    difference = first_difference(*folders)
    if difference:
        print(f"They differ. First difference: {difference}")
        raise SystemExit(1)
    print("The same: settings, problems, policies, completions, scores, tables and figures.")


def _reproduce(options: ReproduceOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.runs.reproduce import NotebookError, reproduce_run

    try:
        run = _open(options, overrides)
        reproduce_run(run, overrides, cluster_of(options, run.folder))
    except NotebookError as error:
        raise SystemExit(f"amir_grpo reproduce: {error}") from error


def _notebooks(options: NotebooksOptions) -> None:
    from amir_grpo.runs.locations import notebooks_folder

    folder = user_path(options.folder)
    check_folder(folder, "folder")
    notebooks = sorted(notebooks_folder().glob("*.ipynb"))
    there = [path.name for path in notebooks if (folder / path.name).exists()]
    if there:
        raise FileExistsError(f"{folder} holds {there[0]} already, which may have been changed: give another folder.")
    for path in notebooks:
        atomic_write(folder / path.name, partial(shutil.copy2, path))
    print(f"{len(notebooks)} notebooks written. Open them: jupyter lab {folder}")


_COMMANDS = {
    "reproduce": Command(
        "Run the whole experiment by executing the notebooks: train both methods, evaluate, draw, report.",
        ReproduceOptions,
        _reproduce,
    ),
    "plan": Command("Estimate the GPU memory and the time of a training, without a GPU.", PlanOptions, _plan),
    "train": Command("Train one method into the run folder.", TrainOptions, _train),
    "evaluate": Command(
        "Sample, grade, summarise and compare the policies of the run folder, or those in --model_dir.",
        EvaluateOptions,
        _evaluate,
    ),
    "evidence": Command(
        "Make the runs of the study behind the claims that are not kept yet, and print what they say.",
        EvidenceOptions,
        _evidence,
    ),
    "export": Command(
        "Save a trained policy with a model card, and upload it to the Hub where asked for.",
        ExportOptions,
        _export,
        takes_settings=False,
    ),
    "verify": Command(
        "Compare two run folders and name the first difference.",
        VerifyOptions,
        _verify,
        takes_settings=False,
        arguments={"runs": {"nargs": "*", "metavar": "RUN_DIR", "help": "The two run folders."}},
    ),
    "notebooks": Command(
        "Write the notebooks into a folder, to be opened in JupyterLab.",
        NotebooksOptions,
        _notebooks,
        takes_settings=False,
        arguments={"folder": {"metavar": "DIR", "help": "Folder to write them into."}},
    ),
}
