"""Train, evaluate and compare policies, with the same functions as the notebooks.

Each command is a function: its parameters are the options, its docstring is the help. One with `**settings` also takes
every setting of a run and every other option of TRL's GRPOConfig. What is not given comes from the run folder, or from
the profile if the folder is new.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from amir_grpo import choices
from amir_grpo.choices import POLICIES, SANDBOX, check_names
from amir_grpo.options import about, parse
from amir_grpo.settings import FIELDS, PROFILES, settings_of
from amir_grpo.system.cluster import ClusterOptions, cluster_of
from amir_grpo.system.files import atomic_write, check_folder, user_path, write_text
from amir_grpo.system.processes import die_with_parent, ending, is_main, leave_process_group, world_size
from amir_grpo.system.provenance import read_config

if TYPE_CHECKING:
    from amir_grpo.runs.run import Run

Method = Literal[choices.METHODS]
Workers = Annotated[int, Field(ge=0)]


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors that the user can fix end in exit code 2 and a short message."""
    arguments = sys.argv[1:] if arguments is None else arguments
    top = argparse.ArgumentParser(prog="amir_grpo", description=__doc__.splitlines()[0])
    names = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        names.add_parser(name, help=about(command), add_help=False)
    name = top.parse_known_args(arguments[:1])[0].command
    with ending(name):
        options = parse(name, COMMANDS[name], arguments[1:])
        if world_size() > 1:
            if name != "train":
                raise ValueError(
                    f"{name} runs in one process, and was started in {world_size()}: only train takes several.\n"
                    f"Start it as `python -m amir_grpo {name} …`."
                )
            die_with_parent()  # the launcher
        COMMANDS[name](**options)


def reproduce(
    cluster: ClusterOptions, profile: str | None = None, run_dir: str | None = None, **settings: Any
) -> None:
    """Run the whole experiment by executing the notebooks: train both methods, evaluate them, draw the figures.

    Args:
        profile: Profile that a new run starts from: {profiles}, or auto, which goes by the GPU. Default: sandbox.
        run_dir: Run folder; an existing one keeps its profile and settings. Default: runs/<profile>.
    """
    from amir_grpo.runs.reproduce import NotebookError, reproduce_run
    from amir_grpo.runs.run import open_run

    try:
        run = open_run(profile, run_dir, settings)
        reproduce_run(run, settings, cluster_of(cluster, run.folder))
    except NotebookError as error:
        raise SystemExit(f"amir_grpo reproduce: {error}") from error


def plan(profile: str = "colab-t4", **settings: Any) -> None:
    """Estimate the GPU memory of a training, without a GPU.

    Args:
        profile: Profile that the settings start from: {profiles}, or auto, which goes by the GPU. Default: colab-t4.
    """
    from amir_grpo.policies.plan import planned
    from amir_grpo.runs.opening import resolve_profile

    profile = resolve_profile(profile)
    chosen = settings_of(profile, settings)
    print(planned(profile, chosen, "unsloth" if chosen.policy.backend == "unsloth" else "transformers"))


def train(
    profile: str | None = None,
    run_dir: str | None = None,
    method: Method | None = None,
    model_dir: str | None = None,
    trainer_type: Method | None = None,
    wandb_api_key: str | None = None,
    **settings: Any,
) -> None:
    """Train one method into the run folder.

    Args:
        profile: Profile that a new run starts from: {profiles}, or auto, which goes by the GPU. Default: sandbox.
        run_dir: Run folder; an existing one keeps its profile and settings. Default: runs/<profile>.
        method: Method to train with. Default: amir_grpo.
        model_dir: Also save the trained adapter here.
        trainer_type: The published command's name for method.
        wandb_api_key: Key for report_to=wandb; it is set as WANDB_API_KEY and not saved.
    """
    from amir_grpo.policies.backend import import_early

    method = method or trainer_type or "amir_grpo"
    adapter = user_path(model_dir) if model_dir else None
    if adapter:
        check_folder(adapter, "model_dir")
    if wandb_api_key:
        os.environ["WANDB_API_KEY"] = wandb_api_key
    import_early(settings.get("backend") or _backend(profile, run_dir))  # Unsloth must come before transformers

    from amir_grpo.policies.source import copy_policy
    from amir_grpo.results.tables import reward_ends
    from amir_grpo.runs.run import open_run

    run = open_run(profile, run_dir, settings)
    log = run.train(method)
    leave_process_group()
    if not is_main():
        return
    first, last, steps = reward_ends(log)
    print(
        f"{method}: reward {first:.3f} over the first {steps} logged steps, {last:.3f} over the last. "
        f"Adapter and log: {run.folder / method}"
    )
    if adapter:
        copy_policy(run.folder / method, adapter)
        print(f"Adapter copied to {adapter}")


def _backend(profile: str | None, run_dir: str | None) -> str:
    """Return the backend of the run folder if it exists, else of the profile."""
    from amir_grpo.runs.opening import run_folder

    with contextlib.suppress(OSError, ValueError, KeyError):  # opening the run will report the error
        return read_config(run_folder(profile or SANDBOX, run_dir))["settings"]["backend"]
    return PROFILES.get(profile or SANDBOX, {}).get("backend", FIELDS["backend"].default)


def evaluate(
    profile: str | None = None,
    run_dir: str | None = None,
    model_dir: list[str] | None = None,
    workers: Workers = 0,
    **settings: Any,
) -> None:
    """Sample, grade, summarise and compare the policies of the run folder, or those in --model_dir.

    Args:
        profile: Profile that a new run starts from: {profiles}, or auto, which goes by the GPU. Default: sandbox.
        run_dir: Run folder; an existing one keeps its profile and settings. Default: runs/<profile>.
        model_dir: Evaluate these policies instead of the run's, on the same problems: folders (an adapter or a whole
            model) or Hub ids, as in runs/a/grpo or mine=runs/a/grpo.
        workers: Number of processes that sample. Default: one per visible GPU, or one without a GPU.
    """
    from amir_grpo.policies.source import named_policies
    from amir_grpo.results.tables import comparison_table, policy_summary, rounded, wide_summary
    from amir_grpo.runs.opening import runs_folder
    from amir_grpo.runs.run import open_run

    # as in the published command line, dataset_name names the benchmark here
    benchmark = settings.pop("dataset_name", None)
    sources = named_policies(model_dir or ())
    if sources and not run_dir:
        run_dir = str(runs_folder() / "evaluations" / "-vs-".join(sources))
    if run_dir and not sources and not user_path(run_dir).exists():
        print(f"{run_dir} is a new run: its policies are trained first.", flush=True)
    run = open_run(profile, run_dir, settings)
    benchmarks = [benchmark] if benchmark else run.settings.evaluation.benchmarks
    check_names("benchmark", benchmarks, run.settings.evaluation.benchmarks)
    draw = partial(run.samples_of_others, sources) if sources else run.samples
    samples = draw(benchmarks=benchmarks, workers=workers)
    greedy = draw(benchmarks=benchmarks, greedy=True)
    tables = {
        "policies": policy_summary(samples, run.settings.evaluation.ks, greedy),
        "comparisons": comparison_table(samples, run.settings.evaluation.ks, greedy),
    }
    if sources and any((run.folder / "samples" / name).exists() for name in POLICIES):
        print(f"Printed, not kept: the tables of {run.folder} are about its own policies.\n")
    elif sources or benchmarks == run.settings.evaluation.benchmarks:
        for name, table in tables.items():
            run.save_table(table, name)
    print(wide_summary(tables["policies"]).reset_index().to_string(index=False))
    print(
        "\nIn brackets: 95 % intervals over problems. tokens: mean per completion; brier, ece: 0 to 1; the rest: percent."
    )
    if rows := len(tables["comparisons"]):
        print(f"\nEach pair of policies, compared by problem; p_holm is corrected over these {rows} rows:\n")
        shown = ["benchmark", "quantity", "new", "old", "gain", "gain_low", "gain_high", "p_holm"]
        print(rounded(tables["comparisons"][shown]).to_string(index=False))
    print(f"\nCompletions: {run.folder / 'samples'}")


def evidence(
    cluster: ClusterOptions,
    study: Literal[choices.STUDIES] = "pilot",
    profile: str | None = None,
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
    only: str | None = None,
    folder: str | None = None,
    results: str | None = None,
    workers: Workers = 0,
    **settings: Any,
) -> None:
    """Make the missing runs of a study behind the claims, and print its results.

    Args:
        study: Study of the plan. Default: pilot.
        profile: One of sandbox, sandbox-medium, sandbox-large. Default: the plan's.
        arms: Make only these arms, as regime/arm, and the base policies. Default: all arms of the study.
        seeds: Make only runs with these seeds. Default: all.
        only: Make this run again, as regime/arm/seed, and compare it with its kept results.
        folder: Folder of the run folders. Default: runs/<study>.
        results: Folder of the results, one file per run. Default: data/results/<study>.
        workers: Number of parallel runs. Default: one per visible GPU, or one per core without a GPU.
    """
    from amir_grpo.runs.opening import project_root, runs_folder
    from amir_grpo.study.claims import study_report
    from amir_grpo.study.experiment import compare_with_kept, make_runs, runs_in_order, single_run
    from amir_grpo.study.kept import complete_arms, load_study
    from amir_grpo.study.plan import PLANS, check_frozen, is_pilot, read_plan

    plan = read_plan(PLANS[study])
    check_names("sandbox profile", [profile or SANDBOX], choices.SANDBOXES)
    changed = [*settings, *(["profile"] if profile not in (None, plan.profile) else [])]
    if changed and not results:
        raise ValueError(f"Results with another {', '.join(changed)} are kept apart from the others: give --results.")
    runs_in = user_path(folder or runs_folder() / study)
    kept_in = user_path(results or project_root() / "data" / "results" / study)
    check_folder(runs_in, "folder")
    common = {"overrides": settings, "profile": profile}
    if only:
        again = single_run(runs_in_order(plan, study, runs_in, **common), only)
        if differing := compare_with_kept(again, kept_in):
            raise SystemExit(f"{again.label}: other {' and '.join(differing)} than those that are kept in {kept_in}.")
        print(f"{again.label}: the same completions and weights as those that are kept.")
        return
    check_folder(kept_in, "results")
    runs = runs_in_order(plan, study, runs_in, arms or (), seeds or (), **common)
    if not is_pilot(study):
        check_frozen(plan)
    make_runs(runs, kept_in, cluster_of(cluster, runs_in) or workers)
    print(study_report(complete_arms(load_study(kept_in), plan), plan))
    print(f"\nResults: {kept_in}")


def export(
    profile: str | None = None,
    run_dir: str | None = None,
    method: Method = "amir_grpo",
    out: str | None = None,
    merged: bool = False,
    results: str | None = None,
) -> None:
    """Save a trained policy with a model card into a folder, or all completions with --results.

    Args:
        profile: Without run_dir, use the run in runs/<profile>. Default: sandbox.
        run_dir: Run folder. Default: runs/<profile>.
        method: Method whose policy is saved. Default: amir_grpo.
        out: Folder to create. Default: export/<method> or export/<method>-merged in the run folder.
        merged: Export the whole policy in float32 instead of the adapter.
        results: Folder to create for the run's results instead of a policy: a row per completion as Parquet, a data
            card, and samples in the format of lm-evaluation-harness.
    """
    from amir_grpo.runs.export import export_policy, export_results

    if results and (out or merged):
        raise ValueError("--results goes without --out and --merged, which are about a policy: give one or the other.")
    run = _existing(profile, run_dir)
    if results:
        folder = export_results(run, user_path(results))
    else:
        own = run.folder / "export" / (f"{method}-merged" if merged else method)  # replaced if it exists
        folder = export_policy(run, method, user_path(out) if out else own, merged, replace_old=not out)
    kind = " --repo-type dataset" if results else ""
    print(f"Saved: {folder}\nTo upload it to the Hub: hf upload --private{kind} me/name {folder}")


def _existing(profile: str | None, run_dir: str | None) -> Run:
    """Open an existing run with its own settings; never start one.

    Raises:
        FileNotFoundError: If the run does not exist.
    """
    from amir_grpo.runs.opening import resolve_profile, run_folder
    from amir_grpo.runs.run import open_run

    folder = run_folder(resolve_profile(profile or SANDBOX), run_dir)
    read_config(folder)
    return open_run(run_dir=folder)


def verify(first: str, second: str) -> None:
    """Compare two run folders and name the first difference.

    Args:
        first: A run folder.
        second: Another one.
    """
    from amir_grpo.runs.verify import first_difference

    difference = first_difference(user_path(first), user_path(second))
    if difference:
        print(f"They differ. First difference: {difference}")
        raise SystemExit(1)
    print("The same: settings, problems, policies, completions, scores, tables and figures.")


def compare(first: str, second: str, html: str | None = None, json: str | None = None) -> None:
    """Compare two sets of results by problem: the gain with its interval, and how much data would decide it.

    Args:
        first: New results: samples of lm-evaluation-harness, details of lighteval, a run, an export or a CSV (PATH:POLICY).
        second: Old results, in any of these forms; gains are first - second.
        html: Write a page with the figure here.
        json: Write the rows as JSON here.
    """
    from amir_grpo.compare import compare_results, read_results, shown_table, to_html, to_json

    for option in (html, json):
        if option:
            check_folder(user_path(option).parent, "folder of the output")
    names = (first, second)
    table, remarks = compare_results(read_results(first), read_results(second))
    print(shown_table(table).to_string(index=False))
    print("\nnew and old in percent; gain in points with its 95 % interval; p_holm over the benchmarks.")
    print("\n".join(remarks))
    for option, text in ((html, to_html), (json, to_json)):
        if option:
            write_text(user_path(option), text(table, remarks, names))


def doctor(path: str) -> None:
    """Name what keeps a training from learning: the symptom in its log, the cause, and the setting to change.

    Args:
        path: A run folder, an output folder or checkpoint of TRL, or a log file.
    """
    from amir_grpo.doctor import LEAST_STEPS, diagnose, read_log

    for name, log in read_log(user_path(path)).items():
        if len(log) < LEAST_STEPS:
            print(f"{name}: too short to judge, {len(log)} of at least {LEAST_STEPS} logged steps")
            continue
        found = diagnose(log)
        print(f"{name}: {len(found) or 'no'} finding{'s' * (len(found) != 1)} in {len(log)} logged steps")
        for finding in found:
            print(f"- {finding}")


def notebooks(folder: str) -> None:
    """Write the notebooks into a folder, to be opened in JupyterLab.

    Args:
        folder: Folder to write them into.
    """
    from amir_grpo.system.files import shipped

    place = user_path(folder)
    check_folder(place, "folder")
    found = sorted(shipped("notebooks").glob("*.ipynb"))
    there = [path.name for path in found if (place / path.name).exists()]
    if there:
        raise FileExistsError(f"{place} already holds {there[0]}, which may have been changed: give another folder.")
    for path in found:
        atomic_write(place / path.name, partial(shutil.copy2, path))
    print(f"{len(found)} notebooks written. Open them: jupyter lab {place}")


COMMANDS = {
    command.__name__: command
    for command in (reproduce, plan, train, evaluate, evidence, export, verify, compare, doctor, notebooks)
}
