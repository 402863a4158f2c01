"""The sandbox's policies: their shape, their tokenizer, and the supervised warm-up that makes a base policy.

The base policy of `sandbox` is a causal LM of 0.1M parameters that was shown careful, hasty and rambling solutions of
arithmetic chains. It is right some of the time, and leaves a policy-gradient method something to choose: how to work,
and whether to keep to the format. `sandbox-medium` is the same with 1M parameters, to see whether a finding depends on
the size; it does not come with the package. `sandbox-large` is for a GPU: a policy of 26M parameters, longer chains,
and chains told as word problems.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import tempfile
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amir_grpo.choices import SANDBOX, SANDBOX_LARGE, SANDBOX_MEDIUM
from amir_grpo.sandbox import problems
from amir_grpo.sandbox.problems import ALL_FAMILIES, TRAINED_ON, WORDS, Habits, careful_solution, solution
from amir_grpo.settings import FIELDS, PROFILES

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

Examples = list[dict[str, list[int]]]


@dataclass(frozen=True)
class SandboxSpec(Habits):
    """Everything that a base policy is made from, including the habits of the solutions that it is shown.

    Attributes:
        shown: Families of the warm-up: those of the training, two easier ones, and a longer one, reported separately.
        seed: Seed of the weights, of the solutions shown and of their order.
        warmup_chains: Number of distinct chains in the warm-up.
        careful_first: Share of the warm-up, at its start, that shows only careful solutions, which teach arithmetic;
            the mixture that follows teaches the other habits.
    """

    shown: tuple[str, ...] = ("chain4", "chain5", *TRAINED_ON[SANDBOX], "chain8")
    seed: int = 0
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 192
    warmup_steps: int = FIELDS["sandbox_warmup_steps"].default
    warmup_batch_size: int = 16
    warmup_learning_rate: float = 5e-3
    warmup_chains: int = 6000
    careful_first: float = 0.4

    def fingerprint(self) -> str:
        """Hash the settings and the code that uses them into 12 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        for path in (__file__, problems.__file__):
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()[:12]

    @property
    def words(self) -> bool:
        """Whether some problems are told in words."""
        return any(ALL_FAMILIES[name].words for name in self.shown)


# By the value of model_name and dataset_name.
SPECS: dict[str, SandboxSpec] = {
    SANDBOX: SandboxSpec(),
    SANDBOX_MEDIUM: SandboxSpec(
        hidden_size=160,
        num_hidden_layers=3,
        intermediate_size=480,
        warmup_steps=PROFILES[SANDBOX_MEDIUM]["sandbox_warmup_steps"],
        warmup_learning_rate=1.2e-3,
    ),
    SANDBOX_LARGE: SandboxSpec(
        shown=TRAINED_ON[SANDBOX_LARGE],
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1408,
        warmup_steps=PROFILES[SANDBOX_LARGE]["sandbox_warmup_steps"],
        warmup_batch_size=64,
        warmup_learning_rate=1e-3,
    ),
}


_SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<unk>")
_UNITS = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "system", "user", "assistant", "hmm")
_CHARACTERS = "0123456789+-=*/()?.,: \n"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(words: bool = False) -> PreTrainedTokenizerBase:
    """Build a tokenizer with a chat template and one token per character, two-digit number and tag, and per word of
    `word_problem` if `words`. Text survives the round trip."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # the longest first, since a pattern takes the first alternative that matches
    units = [*_UNITS, *(sorted(WORDS, key=len, reverse=True) if words else ())]
    tokens = [*_SPECIAL, *_UNITS, *_CHARACTERS, *map(str, range(10, 100)), *(WORDS if words else ())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = "|".join(re.escape(unit) for unit in units) + r"|[1-9]\d|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def untrained_config(spec: SandboxSpec, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Return the architecture and size of a base policy."""
    # Llama, not Qwen2: if a folder's config says qwen2, AutoTokenizer replaces its tokenizer by Qwen2's own.
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_hidden_layers,
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_attention_heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


# --- the warm-up --------------------------------------------------------------------------------------------------


def warmup_examples(spec: SandboxSpec, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Return tokenised chains with solutions, in the order of the warm-up, with labels only on the solutions."""
    rng = random.Random(f"warm-up/{spec.seed}")
    shown = list(islice(problems.named_chains(spec.shown, held_out=False, seed=spec.seed), spec.warmup_chains))
    sequences = spec.warmup_steps * spec.warmup_batch_size
    examples = []
    for index in range(sequences):
        family, chain = rng.choice(shown)
        text = careful_solution(chain) if index < spec.careful_first * sequences else solution(chain, rng, spec)
        examples.append(example(tokenizer, problems.prompt_of(chain, family), text))
    return examples


def example(tokenizer: PreTrainedTokenizerBase, prompt: problems.Messages, completion: str) -> dict[str, list[int]]:
    """Return a prompt with its completion as token ids, with labels only on the completion and its end token."""
    posed = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = [*tokenizer.encode(completion), tokenizer.eos_token_id]
    return {"input_ids": posed + ids, "labels": [-100] * len(posed) + ids}


def warm_up(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    use_cpu: bool,
    threads: int,
) -> None:
    """Fine-tune all weights of a policy on the examples, once and in their order.

    Args:
        learning_rate: Peak learning rate, which falls along a cosine.
        threads: Number of threads, on which the rounding of sums depends.
    """
    import torch
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from amir_grpo.system.progress import stage

    steps, before = len(examples) // batch_size, torch.get_num_threads()
    if steps == 0:
        return
    settings = {"per_device_train_batch_size": batch_size, "train_sampling_strategy": "sequential"}
    settings |= {"learning_rate": learning_rate, "lr_scheduler_type": "cosine", "warmup_steps": 0.05}
    settings |= {"adam_beta2": 0.98, "weight_decay": 0.01}
    silent = {"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as scratch, stage("warming up the base policy", total=steps) as tick:

        class Progress(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                tick()

        trainer = Trainer(
            model=policy,
            args=TrainingArguments(scratch, max_steps=steps, seed=seed, use_cpu=use_cpu, **settings, **silent),
            train_dataset=Dataset.from_list(examples),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=[Progress()],
        )
        trainer.remove_callback(PrinterCallback)
        torch.set_num_threads(threads)
        try:
            trainer.train()
        finally:
            torch.set_num_threads(before)


def make_base_policy(spec: SandboxSpec, folder: Path) -> None:
    """Warm up a base policy by supervised learning, and save it in float32 with its tokenizer."""
    import torch
    from transformers import LlamaForCausalLM, set_seed

    set_seed(spec.seed)
    tokenizer = build_tokenizer(spec.words)
    policy = LlamaForCausalLM(untrained_config(spec, tokenizer))
    small = spec.hidden_size <= 256  # a GPU would be slower, and its weights would vary by machine
    warm_up(
        policy,
        tokenizer,
        warmup_examples(spec, tokenizer),
        batch_size=spec.warmup_batch_size,
        learning_rate=spec.warmup_learning_rate,
        seed=spec.seed,
        use_cpu=small or not torch.cuda.is_available(),
        threads=1 if small else torch.get_num_threads(),
    )
    save(policy, tokenizer, folder)


def save(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a policy in float32, and its tokenizer."""
    from amir_grpo.system.progress import quiet

    with quiet():
        policy.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
