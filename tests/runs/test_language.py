"""The profile smollm2 on real weights: warm-up, two steps, evaluation, export and reload; `.ci/language` runs this."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from amir_grpo.policies.engines import Request, load_engine
from amir_grpo.runs.export import export_policy
from amir_grpo.runs.run import open_run
from amir_grpo.sandbox.problems import load_sandbox

pytestmark = pytest.mark.language
SHORT = {
    "smollm2_warmup_steps": 1,
    "shots": 2,  # else one step of warm-up earns nothing
    "max_prompt_length": 200,
    "max_seq_length": 240,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 32,
    "reward_margin": 0.01,
    "benchmarks": ["story1"],
    "eval_limit": 4,
    "eval_max_new_tokens": 24,
    "num_samples": 4,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run("smollm2", tmp_path_factory.mktemp("runs") / "language", SHORT)


def test_both_methods_train_and_are_evaluated(run):
    logs = run.logs()
    assert list(logs["step"]) == [1, 2] * 2
    assert logs["grad_norm"].gt(0).any()
    samples = run.samples()
    assert len(samples) == 3 * 4 * 4
    assert samples["text"].str.contains("<think>").mean() > 0.1, "the examples in the prompt show the form"
    assert (
        run.base()
        == json.loads((run.folder / "amir_grpo" / "adapter_config.json").read_text())["base_model_name_or_path"]
    )


def test_an_exported_policy_writes_the_same_text_in_plain_transformers(run, tmp_path):
    export_policy(run, "amir_grpo", tmp_path / "whole", merged=True)
    question = run.problems("story1")[0]["prompt"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    written = plain.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :].tolist()
    engine = load_engine("transformers", run.base(), run.folder / "amir_grpo", run.settings.policy)
    ((drawn,),) = engine.generate([Request(ids, [0])], 0.0, 1.0, 16)
    assert drawn.ids == written


# --- the path of the large profiles -----------------------------------------------------------------------------------

# paper-qwen3b's own settings otherwise: LoRA on all linear layers, λ, β, δ, the published rewards, checkpointed layers
PAPER = {
    "model_name": "smollm2",
    "smollm2_warmup_steps": 15,  # enough for the format, so that rewards differ; 6 are not
    "device": "cpu",
    "dtype": "bfloat16",
    "backend": "transformers",
    "optim": "adamw_torch",
    "warmup_ratio": 0.0,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 32,
    "max_steps": 2,
    "benchmarks": ["gsm8k"],
    "eval_limit": 2,
    "eval_max_new_tokens": 24,
    "num_samples": 2,
    "ks": [1, 2],
}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "calibration"])
def paper(request, tmp_path_factory):
    """A run of AMIR-GRPO in 16 bits on GSM8K's prompt, trained for two steps of eight completions."""
    rows = load_sandbox("story2", 8)
    lines = [{"question": q, "answer": f"#### {a[0]}"} for q, a in zip(rows["question"], rows["answer"], strict=True)]
    mirror = tmp_path_factory.mktemp("mirror")
    (mirror / "gsm8k").mkdir()
    for split in ("train", "test"):
        (mirror / "gsm8k" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMIR_GRPO_DATA", str(mirror))
        run = open_run(
            "paper-qwen3b", tmp_path_factory.mktemp("runs") / "paper", PAPER | {"calibration": request.param}
        )
        yield run


def test_a_large_profile_trains_and_evaluates_in_16_bits(paper):
    log = paper.train("amir_grpo")
    assert list(log["step"]) == [1, 2]
    assert log["grad_norm"].gt(0).any()
    assert ("rewards/brier/mean" in log) == paper.settings.data.calibration
    assert "rewards/arithmetic_claims/mean" not in log, "the published lists do not pay for claims"
    adapter = load_file(paper.folder / "amir_grpo" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 30, "two matrices for each linear layer"
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    samples = paper.samples(["base", "amir_grpo"])
    assert len(samples) == 2 * 2 * 2
    assert ("confidence" in samples) == paper.settings.data.calibration


def test_its_adapter_writes_the_same_in_plain_peft_and_merged_in_transformers(paper, tmp_path):
    paper.train("amir_grpo")
    question = paper.problems("gsm8k")[0]["prompt"]
    export_policy(paper, "amir_grpo", tmp_path / "whole", merged=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    adapter = paper.folder / "amir_grpo"
    base = AutoModelForCausalLM.from_pretrained(paper.base(), dtype=torch.bfloat16)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    in_float32 = paper.settings.policy.model_copy(update={"dtype": "auto"})
    for plain, settings in (
        (PeftModel.from_pretrained(base, adapter), paper.settings.policy),
        (whole, in_float32),
    ):
        options = {"max_new_tokens": 16, "do_sample": False}
        written = plain.eval().generate(input_ids=torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        engine = load_engine("transformers", paper.base(), adapter, settings)
        ((drawn,),) = engine.generate([Request(ids, [0])], 0.0, 1.0, 16)
        assert drawn.ids == written
