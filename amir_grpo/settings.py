"""Every setting of an experiment, with its type, meaning and published value, and the profiles that change them."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from typing import Annotated, Any

from amir_grpo import choices
from amir_grpo.choices import Bounds, check_names, check_types, check_values, declared_types
from amir_grpo.preference_settings import PreferenceSettings


def _setting(default: Any, about: str, choices: tuple[str, ...] = ()) -> Any:
    metadata = {"help": about, "choices": choices} if choices else {"help": about}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


PositiveInt = Annotated[int, Bounds(above=0)]
PositiveFloat = Annotated[float, Bounds(above=0)]


@dataclass(frozen=True)
class _Training:
    """The settings of a training, except those of the preference term."""

    # policy
    model_name: str = _setting(
        "Qwen/Qwen2.5-3B-Instruct", f"Base policy: a Hub id, a folder, or one of {', '.join(choices.SANDBOXES)}."
    )
    lora_rank: PositiveInt = _setting(16, "Rank of the LoRA adapter.")
    lora_alpha: PositiveInt = _setting(16, "Scale of the LoRA adapter is lora_alpha / lora_rank.")
    lora_targets: list[str] = _setting(
        list(choices.LORA_TARGETS), "Names of the linear projections that get an adapter."
    )
    max_seq_length: PositiveInt = _setting(2048, "Longest prompt and completion together, in tokens.")
    load_in_4bit: bool = _setting(False, "Quantise the base policy to 4 bits (GPU only).")
    backend: str = _setting(
        "auto",
        "Library that loads the policy for training: unsloth, transformers, or auto (Unsloth if installed, with a GPU).",
        choices=choices.BACKENDS,
    )
    dtype: str = _setting(
        "auto",
        "Precision that policies compute in. auto: float32 on a CPU, 16 bits on a GPU. float64, for small policies on a "
        "CPU, gives the same numbers on every machine.",
        choices=choices.DTYPES,
    )
    device: str = _setting(
        "auto", "Where policies run: auto, the GPU where there is one, or cpu.", choices=choices.DEVICES
    )
    trust_remote_code: bool = _setting(False, "Run code that comes with a policy from the Hub.")
    safetensors_only: bool = _setting(True, "Refuse pickled weights, which can run code when they are loaded.")
    # training data
    dataset_name: str = _setting(
        "gsm8k", f"Training set: gsm8k, math, dapo_math, or that of {', '.join(choices.SANDBOXES)}."
    )
    dataset_split: str = _setting("train", "Split of the training set.")
    dataset_limit: Annotated[int | None, Bounds(above=0)] = _setting(
        None, "Use only this many training problems, the first ones. None: all."
    )
    calibration: bool = _setting(False, "Ask for a stated confidence and reward its Brier score.")
    # optimisation
    learning_rate: PositiveFloat = _setting(5e-6, "Peak learning rate.")
    weight_decay: Annotated[float, Bounds(at_least=0)] = _setting(0.1, "Weight decay of AdamW.")
    max_grad_norm: PositiveFloat = _setting(0.1, "Largest norm of the gradient, which is clipped to it.")
    per_device_train_batch_size: PositiveInt = _setting(
        1,
        "Completions per micro-batch on each device. 1 becomes num_generations where a rollout would otherwise not "
        "hold whole groups: the published value is 1, and Unsloth makes that of it.",
    )
    gradient_accumulation_steps: PositiveInt = _setting(4, "Micro-batches per optimizer step.")
    steps_per_generation: Annotated[int | None, Bounds(above=0)] = _setting(
        None, "Micro-batches per rollout. None: gradient_accumulation_steps."
    )
    max_steps: PositiveInt = _setting(1000, "Number of optimizer steps.")
    seed: Annotated[int, Bounds(at_least=0)] = _setting(0, "Seed of everything random.")
    lr_scheduler_type: str = _setting("cosine", "Learning-rate schedule, by its name in transformers.")
    warmup_ratio: Annotated[float, Bounds(at_least=0, below=1)] = _setting(
        0.1, "Share of the steps over which the learning rate warms up."
    )
    optim: str = _setting(
        "adamw_8bit", "Optimizer, by its name in transformers. adamw_8bit needs bitsandbytes and a GPU."
    )
    adam_beta1: Annotated[float, Bounds(at_least=0, below=1)] = _setting(0.9, "AdamW's β1.")
    adam_beta2: Annotated[float, Bounds(at_least=0, below=1)] = _setting(0.99, "AdamW's β2.")
    gradient_checkpointing: bool = _setting(True, "Recompute activations in the backward pass to save memory.")
    # rollouts
    num_generations: Annotated[int, Bounds(at_least=2)] = _setting(8, "G, completions per prompt.")
    max_prompt_length: PositiveInt = _setting(1024, "Longest prompt, in tokens; longer ones lose their beginning.")
    max_completion_length: PositiveInt = _setting(1024, "Longest completion of a rollout, in tokens.")
    use_vllm: bool = _setting(False, "Draw rollouts with vLLM (GPU only).")
    vllm_mode: str = _setting(
        "colocate",
        "Where vLLM runs: colocate, on the GPUs that train, or server, started by `vllm serve`.",
        choices=choices.VLLM_MODES,
    )
    vllm_server_base_url: str | None = _setting(None, "With vllm_mode=server: its address. None: port 8000 here.")
    vllm_gpu_memory_utilization: Annotated[float, Bounds(above=0, below=1)] = _setting(
        0.3, "With vllm_mode=colocate: vLLM's share of a GPU's memory."
    )
    # reward regimes, off by default
    nuisance: str = _setting(
        "none",
        "An added reward that has nothing to do with correctness: none; noise, uniform in ± nuisance_size; outliers, "
        "nuisance_size for a share of nuisance_rate of the completions; format, nuisance_size for the strict format; "
        "partial, up to nuisance_size for a number close to the answer.",
        choices=choices.NUISANCES,
    )
    nuisance_size: PositiveFloat = _setting(0.45, "Size of the nuisance, in units of reward.")
    nuisance_rate: Annotated[float, Bounds(above=0, below=1)] = _setting(
        1 / 16, "With nuisance=outliers: share of the completions that get it."
    )
    reward_clip: Annotated[float | None, Bounds(above=0)] = _setting(
        None, "Rewards above this are clipped to it. None: no clipping."
    )
    reward_terms: str = _setting(
        "all", "Which reward functions count: all, or correctness alone.", choices=choices.REWARD_TERMS
    )
    drop_uniform_groups: bool = _setting(False, "Give no advantage to groups that are all right or all wrong.")
    # GRPO
    loss_type: str = _setting("grpo", "TRL's loss type.", choices=choices.LOSS_TYPES)
    epsilon: PositiveFloat = _setting(0.2, "ε, lower clipping range (and upper, unless epsilon_high is given).")
    epsilon_high: Annotated[float | None, Bounds(above=0)] = _setting(None, "Upper clipping range. None: epsilon.")
    mask_truncated_completions: bool = _setting(False, "Leave truncated completions out of the loss.")
    scale_rewards: str = _setting(
        "group",
        "What advantages are divided by: the standard deviation of the group's rewards, the batch's, or none.",
        choices=choices.SCALE_REWARDS,
    )
    importance_sampling_level: str = _setting(
        "token", "Importance ratios per token, or per sequence (GSPO).", choices=choices.IMPORTANCE_SAMPLING_LEVELS
    )


# `AmirGRPOConfig` inherits the preference term's declarations as they are; what a run has is frozen.
_KINDS = declared_types(PreferenceSettings, include_extras=True)
_PreferenceOfARun = make_dataclass(
    "_PreferenceOfARun",
    [(f.name, _KINDS[f.name], field(default=f.default, metadata=f.metadata)) for f in fields(PreferenceSettings)],
    frozen=True,
)


@dataclass(frozen=True)
class Settings(_PreferenceOfARun, _Training):
    """The settings of one run folder. The defaults are the published ones (arXiv 2601.03661), for Qwen2.5-3B,
    where the paper's code has the setting; the training set is not among them, and gsm8k is our choice.

    Names are TRL's own where TRL has them. `method` is not here: a run folder holds both.

    Raises:
        ValueError: If a value is of the wrong type, ruled out by its setting's declaration or at odds with another one.
    """

    # bookkeeping
    logging_steps: PositiveInt = _setting(1, "Optimizer steps per row of the log.")
    save_steps: Annotated[int, Bounds(at_least=0)] = _setting(
        250, "Optimizer steps between checkpoints, rounded up to whole rollouts. 0: no checkpoints."
    )
    save_total_limit: Annotated[int | None, Bounds(above=0)] = _setting(
        2, "How many of the latest checkpoints are kept. None: all."
    )
    report_to: str = _setting("none", "Tracker: none, trackio, wandb or tensorboard.", choices=choices.TRACKERS)
    # evaluation
    benchmarks: list[str] = _setting(
        ["gsm8k", "aime25", "olympiadbench", "amc23", "minervamath", "aquarat", "livemathbench"],
        "Benchmarks, in the order of the tables.",
    )
    eval_limit: Annotated[int | None, Bounds(above=0)] = _setting(
        None,
        "Use only this many problems of each benchmark, the first ones. None: all; of the sandbox's, its profile's number.",
    )
    num_samples: PositiveInt = _setting(8, "n, completions per problem.")
    ks: list[int] = _setting([1, 2, 4], "The values of k in pass@k, none above num_samples.")
    eval_temperature: PositiveFloat = _setting(0.6, "Sampling temperature of the evaluation.")
    eval_top_p: Annotated[float, Bounds(above=0, at_most=1)] = _setting(
        1.0, "Top-p of the evaluation; 1 is the whole distribution."
    )
    eval_max_new_tokens: PositiveInt = _setting(1024, "Longest completion of the evaluation, in tokens.")
    eval_token_budget: PositiveInt = _setting(
        262_144, "Tokens per evaluation batch, prompts and completions together; halved where memory runs out."
    )
    eval_engine: str = _setting(
        "transformers",
        "Engine that samples for the evaluation: transformers, vllm, or auto (vLLM if installed, with a GPU).",
        choices=choices.EVAL_ENGINES,
    )
    # the sandbox's base policy
    base_seed: Annotated[int, Bounds(at_least=0, below=choices.BASE_POLICIES)] = _setting(
        0, f"Which of the sandbox's {choices.BASE_POLICIES} base policies."
    )
    sandbox_warmup_steps: PositiveInt = _setting(
        4000, "Steps of supervised training that make the sandbox's base policy."
    )

    def __post_init__(self) -> None:
        check_types(self, Settings)
        check_values(self, Settings)
        _check_relations(self)

    @property
    def micro_batches(self) -> int:
        """Micro-batches per rollout on each device."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def micro_batch(self) -> int:
        """Completions per micro-batch on each device: num_generations where a rollout would not divide into groups."""
        whole_groups = self.per_device_train_batch_size * self.micro_batches % self.num_generations == 0
        return self.per_device_train_batch_size if whole_groups else self.num_generations

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts of a rollout on each device; a training set with fewer makes no step."""
        return self.micro_batch * self.micro_batches // self.num_generations

    @property
    def is_sandbox(self) -> bool:
        """Whether the policy is one of `amir_grpo.sandbox`."""
        return self.model_name in choices.SANDBOXES


_SANDBOX: dict[str, Any] = {
    "model_name": choices.SANDBOX,
    "backend": "transformers",
    "dtype": "float64",
    "device": "cpu",
    "max_seq_length": 128,
    "dataset_name": choices.SANDBOX,
    "dataset_limit": 4000,
    "lora_rank": 4,
    "lora_alpha": 4,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 128,
    "gradient_accumulation_steps": 1,
    "max_steps": 60,
    "optim": "adamw_torch",
    "gradient_checkpointing": False,
    "max_prompt_length": 64,
    "max_completion_length": 64,
    # The published δ = 2.0 is strict, and a right and a wrong answer in the same form differ by just 2.0, so that it
    # loses those pairs. From 1.4 to below 2.0 every right completion beats every wrong one, and nothing else pairs.
    "reward_margin": 1.5,
    "save_steps": 0,
    "benchmarks": ["chain6", "chain7", "chain8"],
    "eval_limit": 200,
    "eval_max_new_tokens": 64,
    "eval_token_budget": 65_536,
}

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {
        **_SANDBOX,
        "per_device_train_batch_size": 32,
        "max_steps": 4,
        "dataset_limit": 200,
        "eval_limit": 24,
    },
    "sandbox": _SANDBOX,
    # The same problems for a policy of 1M parameters. It is warmed up on the spot, and so not the same on every machine:
    # float64 would cost two thirds more for nothing.
    "sandbox-medium": {
        **_SANDBOX,
        "model_name": choices.SANDBOX_MEDIUM,
        "dtype": "auto",
        "dataset_name": choices.SANDBOX_MEDIUM,
        "sandbox_warmup_steps": 1200,
    },
    # For a GPU: 26M parameters, longer chains and word problems, 64 prompts × 16 completions per rollout.
    "sandbox-large": {
        **_SANDBOX,
        "model_name": choices.SANDBOX_LARGE,
        "dtype": "auto",
        "device": "auto",
        "dataset_name": choices.SANDBOX_LARGE,
        "dataset_limit": 20_000,
        "max_seq_length": 256,
        "learning_rate": 3e-4,
        "per_device_train_batch_size": 256,
        "gradient_accumulation_steps": 4,
        "num_generations": 16,
        "max_steps": 200,
        "max_prompt_length": 128,
        "max_completion_length": 128,
        "benchmarks": ["chain5", "chain7", "words3", "words4", "chain9", "words6"],
        "eval_limit": 400,
        "eval_max_new_tokens": 128,
        "eval_token_budget": 262_144,
        "sandbox_warmup_steps": 6000,
        "lora_rank": 16,
        "lora_alpha": 16,
    },
    "colab-t4": {
        "model_name": "Qwen/Qwen2.5-0.5B-Instruct",
        "load_in_4bit": True,
        "max_seq_length": 1024,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "max_steps": 150,
        "max_prompt_length": 512,
        "max_completion_length": 384,
        "save_steps": 25,
        "benchmarks": ["gsm8k", "amc23"],
        "eval_limit": 100,
        "eval_max_new_tokens": 512,
    },
    "paper-qwen3b": {},
    "paper-qwen7b": {"model_name": "Qwen/Qwen2.5-7B-Instruct"},
    "paper-gemma4b": {"model_name": "google/gemma-3-4b-it"},
}


def settings_of(profile: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a profile with some of them changed.

    Raises:
        ValueError: If the profile or a setting is unknown (with the nearest ones), or a value is of the wrong type or
            impossible.
    """
    check_names("profile", [profile], PROFILES)
    changes = {**PROFILES[profile], **(overrides or {})}
    check_names("setting", changes, [f.name for f in fields(Settings)], "python -m amir_grpo train --help")
    kinds = declared_types(Settings)
    return Settings(**{name: _split(value, kinds[name]) for name, value in changes.items()})


def _split(value: Any, kind: Any) -> Any:
    """A list that papermill -p could only give as text, such as "chain3 chain4" or "1 2"; other values as they are."""
    if typing.get_origin(kind) is not list or not isinstance(value, str):
        return value
    words = value.replace(",", " ").split()
    return [int(word) if word.isdigit() else word for word in words]


# Settings that a run of an earlier version does not name, and what it did.
ADDED_SINCE: dict[str, Any] = {
    "backend": "transformers",
    "use_vllm": False,
    "vllm_mode": "colocate",
    "vllm_server_base_url": None,
    "vllm_gpu_memory_utilization": 0.3,
    "lora_targets": list(choices.LORA_TARGETS),
    "base_seed": 0,
    "dtype": "auto",
    "device": "auto",
    "nuisance": "none",
    "nuisance_size": 0.45,
    "nuisance_rate": 1 / 16,
    "reward_clip": None,
    "reward_terms": "all",
    "drop_uniform_groups": False,
}


def differences(a: Settings | Mapping[str, Any], b: Settings | Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings whose values differ: name -> (value in a, value in b); a mapping may be of an earlier version."""
    a, b = (ADDED_SINCE | s if isinstance(s, Mapping) else asdict(s) for s in (a, b))
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _check_relations(s: Settings) -> None:
    """Refuse values that do not go with those of other settings, or with what reads them."""
    if s.seed >= 2**32:
        raise ValueError(f"seed is {s.seed}; NumPy takes seeds below 2**32.")
    if (s.dtype, s.device) != ("auto", "auto"):
        optim = "adamw_torch" if "8bit" in s.optim else s.optim
        engine = "transformers" if s.eval_engine == "vllm" else s.eval_engine
        ruled_out = {"backend": "transformers", "load_in_4bit": False, "use_vllm": False, "optim": optim}
        for name, value in (ruled_out | {"eval_engine": engine}).items():
            if getattr(s, name) != value:
                raise ValueError(
                    f"{name}={getattr(s, name)} needs dtype=auto and device=auto, and they are {s.dtype} and {s.device}:\n"
                    f"set {name} to {value}, or both of these to auto."
                )
    if s.drop_uniform_groups and s.lambda_schedule in ("share", "mixture"):
        raise ValueError(f"drop_uniform_groups would change what lambda_schedule={s.lambda_schedule} is a share of.")
    rollout = s.per_device_train_batch_size * s.micro_batches
    if rollout % s.num_generations and s.per_device_train_batch_size > 1:
        raise ValueError(
            f"A rollout of {rollout} completions (per_device_train_batch_size × steps_per_generation) does not divide "
            f"into groups of num_generations = {s.num_generations}: make it a multiple."
        )
    if s.dataset_limit is not None and s.dataset_limit < s.prompts_per_rollout:
        raise ValueError(
            f"dataset_limit is {s.dataset_limit}, below the {s.prompts_per_rollout} prompts of a rollout: no step would be "
            "made. Raise it, or lower per_device_train_batch_size."
        )
    if s.logging_steps > s.max_steps:
        raise ValueError(f"logging_steps is {s.logging_steps}, above max_steps = {s.max_steps}: lower it.")
    if max(s.ks) > s.num_samples or min(s.ks) < 1:
        raise ValueError(f"ks is {s.ks}; each k must be between 1 and num_samples = {s.num_samples}.")
    if s.max_prompt_length + s.max_completion_length > s.max_seq_length:
        raise ValueError(
            f"max_prompt_length + max_completion_length is {s.max_prompt_length + s.max_completion_length}, above "
            f"max_seq_length = {s.max_seq_length}: raise the latter or lower one of the former."
        )
    if s.use_vllm and s.load_in_4bit:
        raise ValueError("use_vllm=True cannot read load_in_4bit=True's packed weights: set one of them to False.")
    if s.model_name[:1] in tuple("=+-@\t\r "):  # a spreadsheet would take a table's cell for a formula
        raise ValueError(
            f"model_name is {s.model_name!r}; it must be a Hub id, a folder, or one of {', '.join(choices.SANDBOXES)}."
        )


__all__ = ["PROFILES", "Settings", "differences", "replace", "settings_of"]
