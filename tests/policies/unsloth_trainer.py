"""What a GPU machine trains with under Unsloth, asked on a CPU (gpu_on_cpu.py), against what this package assumes.

python -m tests.policies.unsloth_trainer WHAT FILE     what a function below finds, as JSON
"""

import copy
import json
import os
import shutil
import sys
from pathlib import Path

import torch

from tests.policies import gpu_on_cpu

# colab-t4's settings but for the sizes; with δ = 0 even the rewards of random completions make pairs
SMALL = {"max_prompt_length": 32, "max_completion_length": 8, "max_seq_length": 64, "reward_margin": 0.0}
SMALL |= {
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
}
SMALL |= {"max_steps": 3, "save_steps": 1, "save_total_limit": 3, "dataset_name": "sandbox", "backend": "unsloth"}
SMALL |= {"benchmarks": ["chain3"], "eval_limit": 2, "num_samples": 2, "ks": [1, 2], "eval_max_new_tokens": 8}


def random_policy(folder: Path, kind: str) -> Path:
    """A policy with random weights and the sandbox's tokenizer, saved."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from amir_grpo.sandbox.policy import build_tokenizer

    tokenizer = build_tokenizer(words=True)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 512}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **shape, **ends)
    set_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gradient(folder: Path, kind: str, dtype: str) -> dict:
    """How far the gradient by Unsloth's kernels is from that of L_GRPO + λ L_pref, and how far GRPO's alone."""
    from amir_grpo.policies.backend import Backend
    from amir_grpo.sandbox.problems import load_sandbox
    from amir_grpo.settings import settings_of
    from benchmarks.gradient import gradient_row

    policy = random_policy(folder, kind)
    settings, problems = settings_of("colab-t4", SMALL | {"model_name": str(policy)}), load_sandbox("sandbox", 40)
    return gradient_row(settings, policy, Backend("unsloth", "asked for"), problems, getattr(torch, dtype))


def colab_t4(folder: Path) -> dict:
    """Notebooks 01 and 02 with colab-t4's combination: NF4, float16 with loss scaler, AdamW in 8 bits; and a resumption."""
    from safetensors.torch import load_file

    from amir_grpo.policies import loading
    from amir_grpo.runs import training
    from amir_grpo.runs.run import open_run
    from tests.cells import run_cells

    loading.check_hardware = loading._need = lambda *_, **__: None
    loading.compute_dtype = training.compute_dtype = lambda *_: torch.float16
    trainers, make = [], training.run_trainer
    training.run_trainer = lambda *arguments: trainers.append(make(*arguments)) or trainers[-1]
    changes = SMALL | {"model_name": str(random_policy(folder, "qwen2"))}
    whole, again = (
        {"profile": "colab-t4", "run_dir": str(folder.parent / name), "overrides": changes}
        for name in ("whole", "again")
    )
    run_cells("01_train", method="amir_grpo", **whole)
    log = open_run(**whole).train("amir_grpo")
    (trainer,) = trainers
    weights = list(trainer.model.parameters())
    trained, begun = (Path(each["run_dir"]) / "amir_grpo" for each in (whole, again))
    shutil.copytree(trained / "checkpoints" / "checkpoint-1", begun / "checkpoints" / "checkpoint-1")
    open_run(**again).train("amir_grpo")
    adapter, resumed = (load_file(each / "adapter_model.safetensors") for each in (trained, begun))
    found = {
        "classes": [c.__name__ for c in type(trainer).__mro__],
        "trained": sorted({str(p.dtype) for p in weights if p.requires_grad}),
        "base": sorted({str(p.dtype) for p in weights if not p.requires_grad}),
        "optimizer": trainer.args.optim,
        "scaler": trainer.accelerator.scaler is not None,
        "log": log[["step", "preference/pairs"]].to_dict("list"),
        "moved": max(weight.abs().max().item() for name, weight in adapter.items() if "lora_B" in name),
        "resumed": all(torch.equal(weight, resumed[name]) for name, weight in adapter.items()),
        "padding": json.loads((trained / "tokenizer_config.json").read_text())["padding_side"],
    }
    run_cells("02_evaluate", **whole)  # trains GRPO, too
    return found


def losses(folder: Path) -> dict:
    """Of every loss type: the configurations of both methods, and the gradients."""
    return {"configurations": configurations(folder), "gradients": gradients(folder)}


def configurations(folder: Path) -> dict:
    """By loss type: how the configurations of a run's two methods differ, and what Unsloth's own would have changed."""
    import trl

    from amir_grpo.choices import LOSS_TYPES
    from amir_grpo.runs.training import trainer_config
    from amir_grpo.settings import settings_of

    result = {}
    for loss_type in LOSS_TYPES:
        settings = settings_of("sandbox", {"loss_type": loss_type})
        grpo, amir = (trainer_config(method, settings, folder).to_dict() for method in ("grpo", "amir_grpo"))
        own = trl.GRPOConfig(
            str(folder), loss_type=loss_type, scale_rewards="group", use_cpu=True, bf16=False
        ).to_dict()
        result[loss_type] = {
            "differ": {name: [value, amir.get(name)] for name, value in grpo.items() if amir.get(name) != value},
            "overruled": {
                name: [value, own[name]]
                for name, value in grpo.items()
                if name in ("scale_rewards", "epsilon_high") and own[name] != value
            },
        }
    return result


def gradients(folder: Path) -> dict:
    """By loss type and importance level: how far the gradient is from that of L_GRPO + λ L_pref, and GRPO's own.

    By Unsloth's trainer, with a policy of transformers: its kernels would take minutes for each.
    """
    from amir_grpo.choices import IMPORTANCE_SAMPLING_LEVELS, LOSS_TYPES
    from tests import test_trainer as by_hand
    from tests.test_speed import PROMPTS  # of unequal lengths, so that Unsloth packs them to the left

    tokenizer = by_hand.TOKENIZER
    by_hand.GRPOConfig = by_hand.AmirGRPOConfig  # whose constructor Unsloth has not replaced

    # what Unsloth's loader would have given the policy
    by_hand.LlamaForCausalLM.for_training = lambda policy, use_gradient_checkpointing=True: policy.train()
    by_hand.LlamaForCausalLM.for_inference = lambda policy: policy.eval()
    policy = by_hand.random_policy()
    # Unsloth takes every pad token for padding; an untrained policy must not draw one
    head = torch.nn.Linear(policy.config.hidden_size, len(tokenizer))
    head.weight, head.bias = policy.lm_head.weight, torch.nn.Parameter(torch.zeros(len(tokenizer)))
    head.bias.data[tokenizer.pad_token_id] = -40.0
    policy.lm_head = head

    def trainer(*arguments, **changes):
        made = by_hand.make_trainer(policy, folder, *arguments, prompts=PROMPTS, max_steps=1, **changes)
        # Unsloth computes in 16 bits, where rounding would hide a wrong factor
        made._autocast_enabled, made._autocast_force_float32, made._autocast_dtype = False, False, torch.bfloat16
        return made

    def case(**changes) -> dict:
        grpo = trainer(by_hand._Recording, **changes)
        start = copy.deepcopy(grpo.model.state_dict())
        alone = by_hand.sgd_gradient(grpo)
        grpo.model.load_state_dict(start)
        grpo.model.eval()
        drawn = grpo.rollout["completion_ids"][grpo.rollout["completion_mask"].bool()]
        if (drawn == tokenizer.pad_token_id).any() or grpo.rollout["prompt_mask"].all():
            raise AssertionError("the rollout is not one that tests this")
        wanted = alone + by_hand.LAMBDA * by_hand.explicit_preference_gradient(grpo)
        got = by_hand.sgd_gradient(trainer(**changes))
        return {"off": by_hand.off_by(got, wanted), "without_preference": by_hand.off_by(alone, wanted)}

    result = {}
    for loss_type in LOSS_TYPES:
        high = {"epsilon_high": 5.0} if loss_type == "cispo" else {}  # which clamps the ratio there
        for level in IMPORTANCE_SAMPLING_LEVELS:
            result[f"{loss_type}, {level}"] = case(loss_type=loss_type, importance_sampling_level=level, **high)
        # Unsloth then keeps the old log-probabilities, packed to the left, which the preference reads
        result[f"{loss_type}, reused"] = case(loss_type=loss_type, num_iterations=2, **high)
    return result


def main(what: str, file: str) -> None:
    if "gemma3" in what:
        # FlexAttention has no backward pass on a CPU; without it packed rows see each other, which random weights hide
        os.environ |= {
            f"UNSLOTH_{name}": "0" for name in ("ENABLE_FLEX_ATTENTION", "GRPO_SEQ_PACKING", "GRPO_PREFIX_GROUPER")
        }
    gpu_on_cpu.start(autocast=what.endswith(("float16", "t4")))
    name, *rest = what.split()
    asked = {"gradient": gradient, "colab-t4": colab_t4, "losses": losses}
    Path(file).write_text(json.dumps(asked[name](Path(file).parent / "policy", *rest)))


if __name__ == "__main__":
    main(*sys.argv[1:])
