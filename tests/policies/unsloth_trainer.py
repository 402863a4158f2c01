"""Unsloth's own GRPO trainer on a machine without a GPU: what it generates, against what this package assumes.

Unsloth's CPU backend uses TRL's trainer as it is. What a GPU machine trains with is TRL's source rewritten by Unsloth, and
that rewriting needs no GPU. So this module, run in a process of its own, lets Unsloth's modules be imported without the
package's __init__ (which asks for a GPU and its kernels), generates the trainer, and writes what was asked for as JSON:

    python -m tests.policies.unsloth_trainer configs|gradients|functions FILE
"""

import ast
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# What of the generated module κ and the trainer rely on: how each loss type normalises, where a completion stands in packed
# rows, and what TRL's trainer calls.
RELIED_ON = (
    "grpo_compute_loss",
    "grpo_accumulated_loss",
    "UnslothEfficientGRPO",
    "left_pack_padding",
    "calculate_pad_tokens_in_prompt",
    "create_completion_attention_mask",
    "_UnslothGRPOTrainer.compute_loss",
    "_UnslothGRPOTrainer._prepare_inputs",
    "_UnslothGRPOTrainer._generate_and_score_completions",
    "_UnslothGRPOTrainer._get_per_token_logps_and_entropies",
)


def generate() -> ModuleType:
    """Rewrite TRL's GRPO trainer as Unsloth does on a GPU machine; return the module that it has written."""
    os.environ |= {"UNSLOTH_IS_PRESENT": "1", "UNSLOTH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}
    (root,) = importlib.util.find_spec("unsloth").submodule_search_locations
    for name, path in (("unsloth", root), ("unsloth.models", f"{root}/models")):
        package, spec = ModuleType(name), ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = package.__path__ = [path]
        package.__spec__ = spec
        sys.modules[name] = package
    from unsloth.models import rl

    rl.patch_trl_disable_gradient_checkpointing()
    rl._patch_trl_rl_trainers_impl("grpo_trainer")
    import trl

    return sys.modules[trl.GRPOTrainer.__module__]


def configurations() -> dict:
    """By loss type: how the configurations of a run's two methods differ, and what Unsloth's own would have changed."""
    import trl

    from amir_grpo.choices import LOSS_TYPES
    from amir_grpo.runs.training import trainer_config
    from amir_grpo.settings import settings_of

    result = {}
    for loss_type in LOSS_TYPES:
        settings = settings_of("sandbox", {"loss_type": loss_type})
        grpo, amir = (trainer_config(method, settings, Path("out")).to_dict() for method in ("grpo", "amir_grpo"))
        own = trl.GRPOConfig("out", loss_type=loss_type, scale_rewards="group", use_cpu=True, bf16=False).to_dict()
        result[loss_type] = {
            "differ": {name: [value, amir.get(name)] for name, value in grpo.items() if amir.get(name) != value},
            "overruled": {
                name: [value, own[name]]
                for name, value in grpo.items()
                if name in ("scale_rewards", "epsilon_high") and own[name] != value
            },
        }
    return result


def gradients(folder: str) -> dict:
    """By case: how far AMIR-GRPO's gradient under Unsloth's trainer is from that of L_GRPO + λ L_pref, and GRPO's own."""
    import copy

    import torch

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


def functions(generated: ModuleType) -> dict:
    """Hashes of the functions in the generated module whose behaviour κ and the trainer assume, by name.

    Comments, docstrings and formatting do not count.
    """
    tree = ast.parse(Path(generated.__file__).read_text())
    found = {node.name: node for node in tree.body if hasattr(node, "name")}
    trainer = found["_UnslothGRPOTrainer"]
    found |= {f"{trainer.name}.{node.name}": node for node in trainer.body if hasattr(node, "name")}
    missing = [name for name in RELIED_ON if name not in found]
    if missing:
        raise AssertionError(f"the generated trainer has no {', '.join(missing)}; it has {', '.join(found)}")
    return {name: _hash(found[name]) for name in RELIED_ON}


def _hash(node: ast.AST) -> str:
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        if isinstance(body, list) and isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            inner.body = body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16]


def main(what: str, file: str) -> None:
    generated = generate()
    with tempfile.TemporaryDirectory() as folder:
        if what == "functions":
            answer = functions(generated)
        else:
            answer = configurations() if what == "configs" else gradients(folder)
    Path(file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
