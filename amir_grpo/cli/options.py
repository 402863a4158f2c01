"""What each command takes beside the settings: a dataclass per command, parsed by transformers' HfArgumentParser."""

from __future__ import annotations

from dataclasses import dataclass, field

from amir_grpo.choices import METHODS, SANDBOX, SANDBOXES, STUDIES
from amir_grpo.settings import PROFILES
from amir_grpo.system.cluster import ClusterOptions

_PROFILE_NAMES = ", ".join([*PROFILES, "auto (by the GPU)"])


@dataclass
class RunOptions:
    """Options of every command that opens a run."""

    profile: str | None = field(
        default=None,
        metadata={
            "help": f"Where the settings of a new run start from: {_PROFILE_NAMES}. Default: the run folder's own, or "
            "sandbox where it is new."
        },
    )
    run_dir: str | None = field(
        default=None,
        metadata={"help": "Run folder; one that exists supplies its own settings. Default: runs/<profile>."},
    )


@dataclass
class ExistingRunOptions:
    """Options of every command that reads a run and starts none."""

    profile: str | None = field(
        default=None, metadata={"help": "Where run_dir is not given: the run in runs/<profile>. Default: sandbox."}
    )
    run_dir: str | None = field(default=None, metadata={"help": "Run folder. Default: runs/<profile>."})


@dataclass
class PlanOptions:
    """Options of plan."""

    profile: str = field(default="colab-t4", metadata={"help": f"Where the settings start from: {_PROFILE_NAMES}."})


@dataclass
class TrainOptions(RunOptions):
    """Options of train."""

    method: str = field(default="amir_grpo", metadata={"help": "What to train by.", "choices": list(METHODS)})
    model_dir: str | None = field(default=None, metadata={"help": "Also save the trained adapter here."})


@dataclass
class EvaluateOptions(RunOptions):
    """Options of evaluate."""

    model_dir: list[str] | None = field(
        default=None,
        metadata={
            "help": "Evaluate these policies instead of the run's, on the same problems: folders (an adapter or a whole "
            "model) or Hub ids, as in `runs/a/grpo` or `mine=runs/a/grpo`."
        },
    )
    workers: int = field(default=0, metadata={"help": "Processes that draw. 0: one per visible GPU, or else one."})


@dataclass
class ExportOptions(ExistingRunOptions):
    """Options of export."""

    method: str = field(default="amir_grpo", metadata={"help": "Whose policy.", "choices": list(METHODS)})
    out: str | None = field(
        default=None,
        metadata={"help": "Folder to make. Default: in the run, export/<method> or <method>-merged."},
    )
    merged: bool = field(
        default=False, metadata={"help": "Export the whole policy in float32 instead of the adapter."}
    )
    push_to: str | None = field(
        default=None, metadata={"help": "Upload the export to this repository of the Hub, such as me/name."}
    )
    public: bool = field(
        default=False, metadata={"help": "Make the repository of --push_to public. Default: private."}
    )
    results: str | None = field(
        default=None,
        metadata={
            "help": "Folder to make for the run's results, in place of a policy: a row per problem and per completion as "
            "Parquet, with a data card, and samples in the form of lm-evaluation-harness."
        },
    )


@dataclass
class ReproduceOptions(ClusterOptions, RunOptions):
    """Options of reproduce."""


@dataclass
class EvidenceOptions(ClusterOptions):
    """Options of evidence."""

    study: str = field(default="pilot", metadata={"help": "Which study of the plan.", "choices": list(STUDIES)})
    profile: str = field(default=SANDBOX, metadata={"help": f"One of {', '.join(SANDBOXES)}."})
    arms: list[str] | None = field(
        default=None, metadata={"help": "Only these, as regime/arm, and the base policies. Default: all of the study."}
    )
    seeds: list[int] | None = field(default=None, metadata={"help": "Only runs with these seeds. Default: all."})
    only: str | None = field(
        default=None,
        metadata={"help": "Make this one run again, as regime/arm/seed, and compare it with what is kept of it."},
    )
    folder: str | None = field(default=None, metadata={"help": "Holds the run folders. Default: runs/<study>."})
    results: str | None = field(
        default=None, metadata={"help": "Gets the results, a file per run. Default: data/results/<study>."}
    )
    workers: int = field(
        default=0, metadata={"help": "Runs side by side. 0: one per visible GPU, or else one per core."}
    )


@dataclass
class VerifyOptions:
    """Options of verify."""

    runs: list[str]


@dataclass
class NotebooksOptions:
    """Options of notebooks."""

    folder: str
