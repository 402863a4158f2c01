"""The command line: train, evaluate, figures and reproduce, the same functions as the notebooks.

Every setting of `amir_grpo.settings.Settings` is an option, parsed from the dataclass by transformers'
HfArgumentParser; what is not given comes from the profile.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

from amir_grpo.choices import METHODS, check_names
from amir_grpo.policies.backend import import_early
from amir_grpo.policies.source import copy_policy
from amir_grpo.settings import PROFILES, Settings
from amir_grpo.system.files import check_folder
from amir_grpo.system.locks import Busy
from amir_grpo.system.processes import is_main, leave_process_group, world_size

_ABOUT = {
    "reproduce": "Run the whole experiment by executing the notebooks: train both methods, evaluate, draw, report.",
    "plan": "Estimate the GPU memory and the time of a training, without a GPU.",
    "train": "Train one method into the run folder.",
    "evaluate": "Sample, grade, summarise and compare the policies of the run folder, or those in --model_dir.",
    "evidence": "Train and evaluate every arm behind the claims, over several seeds, and print the verdicts.",
    "export": "Save a trained policy with a model card, and upload it to the Hub where asked for.",
    "verify": "Compare two run folders and name the first difference.",
    "figures": "Draw the figures of a run that has been evaluated, and its report.",
}


_PROFILE_NAMES = ", ".join([*PROFILES, "auto (by the GPU)"])


@dataclass
class _RunOptions:
    profile: str = field(default="sandbox", metadata={"help": f"Where the settings start from: {_PROFILE_NAMES}."})
    run_dir: str | None = field(default=None, metadata={"help": "Run folder. Default: runs/<profile>."})


@dataclass
class _PlanOptions:
    profile: str = field(default="colab-t4", metadata={"help": f"Where the settings start from: {_PROFILE_NAMES}."})


@dataclass
class _TrainOptions(_RunOptions):
    method: str = field(default="amir_grpo", metadata={"help": "grpo or amir_grpo.", "choices": list(METHODS)})
    model_dir: str | None = field(default=None, metadata={"help": "Also save the trained adapter here."})


@dataclass
class _EvaluateOptions(_RunOptions):
    model_dir: list[str] | None = field(
        default=None,
        metadata={
            "help": "Evaluate these policies instead of the run's, on the same problems: folders (an adapter or a whole "
            "model) or Hub ids, as in `runs/a/grpo` or `mine=runs/a/grpo`."
        },
    )


@dataclass
class _ExportOptions(_RunOptions):
    method: str = field(default="amir_grpo", metadata={"help": "grpo or amir_grpo.", "choices": list(METHODS)})
    out: str | None = field(
        default=None, metadata={"help": "New folder for it. Default: in the run, export/<method> or <method>-merged."}
    )
    merged: bool = field(default=False, metadata={"help": "The whole policy in 16 bits instead of the adapter."})
    push_to: str | None = field(
        default=None, metadata={"help": "Upload it to this repository of the Hub, as in me/name."}
    )
    public: bool = field(default=False, metadata={"help": "With push_to: anyone may see it. Default: private."})


@dataclass
class _EvidenceOptions:
    profile: str = field(default="sandbox", metadata={"help": "sandbox, or sandbox-large (for a GPU)."})
    arms: list[str] | None = field(
        default=None,
        metadata={"help": "Only these arms (and grpo, amir_grpo). Default: all of amir_grpo.study.arms."},
    )
    folder: str | None = field(
        default=None, metadata={"help": "Holds the run folders. Default: runs/evidence or runs/evidence-large."}
    )
    results: str | None = field(default=None, metadata={"help": "Gets the tables. Default: tables/ in the folder."})
    workers: int = field(default=0, metadata={"help": "Runs side by side. 0: one a core."})


@dataclass
class _VerifyOptions:
    runs: list[str] | None = field(default=None, metadata={"help": "The two run folders."})


_OPTIONS: dict[str, type] = {
    "reproduce": _RunOptions,
    "plan": _PlanOptions,
    "train": _TrainOptions,
    "evaluate": _EvaluateOptions,
    "evidence": _EvidenceOptions,
    "export": _ExportOptions,
    "verify": _VerifyOptions,
    "figures": _RunOptions,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit code 2, and a message of a few lines, for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    top = argparse.ArgumentParser(prog="amir_grpo", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, about in _ABOUT.items():
        commands.add_parser(name, help=about, add_help=False)
    command = top.parse_known_args(arguments[:1])[0].command
    try:
        arguments = arguments[1:]
        if command == "verify":  # its folders stand alone, as those of diff do
            arguments = ["--runs", *arguments] if arguments and not arguments[0].startswith("-") else arguments
        if command == "train":
            _import_backend(arguments)
        options, overrides = _parse(command, arguments)
        if world_size() > 1 and command != "train":
            raise ValueError(
                f"{command} runs in one process, and was started in {world_size()}: only train takes several.\n"
                f"Start it as `python -m amir_grpo {command} …`."
            )
        run = {
            "reproduce": _reproduce,
            "plan": _plan,
            "train": _train,
            "evaluate": _evaluate,
            "evidence": _evidence,
            "export": _export,
            "verify": _verify,
            "figures": _figures,
        }
        run[command](options, overrides)
    except (ValueError, OSError, MemoryError, Busy) as error:
        print(f"amir_grpo {command}: {_in_three_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def _in_three_lines(error: BaseException) -> str:
    """The message of an error, at most three lines of it, without control characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()][:3]
    text = "\n".join(lines)[:4000] or type(error).__name__
    return "".join(c for c in text if c == "\n" or c.isprintable())


def _import_backend(arguments: list[str]) -> None:
    """Unsloth is to be imported before transformers, which reads the options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile", default=_RunOptions.profile)
    parser.add_argument("--backend")
    known = parser.parse_known_args(arguments)[0]
    import_early(known.backend or PROFILES.get(known.profile, {}).get("backend", Settings.backend))


def _parse(command: str, arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """The command's own options, and the settings given on the command line (and no others)."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        [_OPTIONS[command], _optional_settings()],
        prog=f"amir_grpo {command}",
        usage="%(prog)s [--option value ...]",
        description=_ABOUT[command],
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    arguments, none = _without_none(arguments)
    parsed, unknown = parser.parse_known_args(arguments)
    valid = sorted({a.dest for a in parser._actions if a.dest != "help" and not a.dest.startswith("no_")})
    check_names("setting", [argument.lstrip("-").split("=")[0] for argument in unknown], valid)
    values = vars(parsed)
    own = {f.name for f in fields(_OPTIONS[command])}
    options = _OPTIONS[command](**{name: values[name] for name in own})
    overrides = {n: v for n, v in values.items() if n not in own and v is not None}
    return options, overrides | none


def _without_none(arguments: list[str]) -> tuple[list[str], dict[str, None]]:
    """The arguments without pairs like ``--eval_limit none`` for settings that may be None, and those settings."""
    import typing

    may_be_none = {n for n, kind in typing.get_type_hints(Settings).items() if type(None) in typing.get_args(kind)}
    rest, none = [], {}
    words = iter(arguments)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word.startswith("--") and name in may_be_none:
            value = value or next(words, "")
            if value.lower() == "none":
                none[name] = None
                continue
            word = f"--{name}={value}"
        rest.append(word)
    return rest, none


def _optional_settings() -> type:
    """Settings with None for every default, so that what the user gave can be told from what was left out."""
    import typing

    hints = typing.get_type_hints(Settings)
    columns = [
        # a plain bool, so that HfArgumentParser lets the option stand alone: --calibration
        (
            f.name,
            bool if hints[f.name] is bool else hints[f.name] | None,
            field(
                default=None,
                metadata={"help": f"{f.metadata['help']} (paper-qwen3b: {_default(f)})".replace("%", "%%")},
            ),
        )
        for f in fields(Settings)
    ]
    return make_dataclass("OptionalSettings", columns)


def _default(setting: Field) -> str:
    """The default of a setting, which is the value of profile paper-qwen3b, as the command line would be given it."""
    value = setting.default_factory() if setting.default is MISSING else setting.default
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _open(options: _RunOptions, overrides: dict[str, Any]):
    from amir_grpo.runs.run import open_run

    return open_run(options.profile, options.run_dir, overrides)


def _plan(options: _PlanOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.policies.memory_plan import planned
    from amir_grpo.runs.run import resolve_profile
    from amir_grpo.settings import settings_of

    profile = resolve_profile(options.profile)
    print(planned(profile, settings_of(profile, overrides)))


def _train(options: _TrainOptions, overrides: dict[str, Any]) -> None:
    adapter = Path(options.model_dir).expanduser() if options.model_dir else None
    if adapter:
        check_folder(adapter, "model_dir")
    run = _open(options, overrides)
    log = run.train(options.method)
    leave_process_group()
    if not is_main():
        return
    tenth = max(1, len(log) // 10)
    print(
        f"{options.method}: reward {log['reward'][:tenth].mean():.3f} over the first {tenth} logged steps, "
        f"{log['reward'][-tenth:].mean():.3f} over the last. Adapter and log: {run.folder / options.method}"
    )
    if adapter:
        copy_policy(run.folder / options.method, adapter)
        print(f"Adapter copied to {adapter}")


def _evaluate(options: _EvaluateOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.policies.source import named_policies
    from amir_grpo.results import formatting, report, tables
    from amir_grpo.runs.locations import project_root

    # as in the published command line, the data set that `evaluate` is given is the one to evaluate on
    benchmark = overrides.pop("dataset_name", None)
    sources = named_policies(options.model_dir or ())
    if sources and not options.run_dir:
        options.run_dir = str(project_root() / "runs" / "evaluations" / "-vs-".join(sources))
    run = _open(options, overrides)
    benchmarks = [benchmark] if benchmark else run.settings.benchmarks
    check_names("benchmark", benchmarks, run.settings.benchmarks)
    if not sources and benchmarks == run.settings.benchmarks:
        summary, comparisons = report.policies_result(run)
    else:
        draw = (lambda **which: run.samples_of_others(sources, **which)) if sources else run.samples
        samples, greedy = draw(benchmarks=benchmarks), draw(benchmarks=benchmarks, greedy=True)
        summary = tables.policy_summary(samples, run.settings.ks, greedy)
        comparisons = tables.comparison_table(samples, run.settings.ks, greedy)
        if sources:
            run.save_table(summary, "policies")
            run.save_table(comparisons, "comparisons")
        if sources and run.settings.calibration:
            report.reliability_result(run, samples)
    print(formatting.wide_summary(summary).reset_index().to_string(index=False))
    print("\nIn brackets: 95 % intervals over problems. tokens: mean of a completion; all else in percent.")
    if len(comparisons):
        print(f"\nEvery two policies, paired by problem; p_holm is corrected over these {len(comparisons)} rows:\n")
        shown = comparisons[["benchmark", "quantity", "new", "old", "gain", "gain_low", "gain_high", "p_holm"]]
        print(formatting.rounded(shown).to_string(index=False))
    print(f"\nCompletions: {run.folder / 'samples'}")


def _evidence(options: _EvidenceOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.results.formatting import rounded
    from amir_grpo.runs.locations import project_root
    from amir_grpo.study.arms import ARMS, with_references
    from amir_grpo.study.claims.comparisons import gain_table
    from amir_grpo.study.claims.verdicts import verdicts
    from amir_grpo.study.running import run_study
    from amir_grpo.study.tables import keep

    check_names("arm", options.arms or (), ARMS)
    check_names("sandbox profile", [options.profile], ["sandbox", "sandbox-large"])
    if options.workers < 0:
        raise ValueError(f"workers is {options.workers}; it must be at least 0 (0: one a core).")
    wanted = with_references([*options.arms, "amir_grpo"]) if options.arms else list(ARMS.values())
    name = options.profile.replace("sandbox", "evidence")
    folder = Path(options.folder or project_root() / "runs" / name).expanduser().resolve()
    results = Path(options.results).expanduser().resolve() if options.results else folder / "tables"
    check_folder(folder, "folder")
    check_folder(results, "results")
    tables = run_study(folder, wanted, overrides, options.workers, options.profile)
    keep(tables, folder, results, options.profile)
    if not options.arms:
        print(verdicts(tables).to_string(index=False))
    others = [arm.name for arm in wanted if arm.against]
    gains = gain_table(tables, others, ks=(1,)).drop(columns=["about", "quantity"])
    print("\npass@1 of each arm against another, in points, 95 % intervals for new seeds and problems:\n")
    print(rounded(gains, 3).to_string(index=False))
    print(f"\nTables: {results}")


def _export(options: _ExportOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.runs import export as publish

    if options.push_to:
        publish.check_push(options.push_to)
    run = _open(options, overrides)
    if options.out:
        out = Path(options.out).expanduser()
    else:  # the run's own, made anew
        out = run.folder / "export" / (f"{options.method}-merged" if options.merged else options.method)
        shutil.rmtree(out, ignore_errors=True)
    print(f"Saved: {publish.export(run, options.method, out, options.merged)}")
    if options.push_to:
        print(f"Uploaded: {publish.push(out, options.push_to, private=not options.public)}")


def _verify(options: _VerifyOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.runs.verify import first_difference

    folders = [Path(folder).expanduser().resolve() for folder in options.runs or ()]
    if len(folders) != 2:
        raise ValueError(f"verify compares two run folders, and got {len(folders)}: amir_grpo verify runs/a runs/b.")
    difference = first_difference(*folders)
    if difference:
        print(f"They differ. First difference: {difference}")
        raise SystemExit(1)
    print("The same: settings, problems, policies, completions, scores, tables and figures.")


def _figures(options: _RunOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.results import report

    run = _open(options, overrides)
    for path in report.draw(run):
        print(path)
    print(report.write(run))


def _reproduce(options: _RunOptions, overrides: dict[str, Any]) -> None:
    from amir_grpo.runs.reproduce import NotebookError, reproduce

    try:
        reproduce(_open(options, overrides), overrides)
    except NotebookError as error:
        if error.mendable:
            raise ValueError(str(error)) from error
        raise SystemExit(f"amir_grpo reproduce: {error}") from error
