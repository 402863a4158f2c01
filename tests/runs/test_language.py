"""The profile smollm2 on real weights: warm-up, two steps, evaluation, export and reload; `.ci/language` runs this."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from amir_grpo.policies.engines import Request, load_engine
from amir_grpo.runs.export import export_policy
from amir_grpo.runs.run import open_run

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
