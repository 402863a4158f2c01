"""AmirGRPOTrainer's gradient against the explicit objective L_GRPO + λ L_pref, and its identity with GRPO at λ = 0."""

import copy
import inspect
import itertools
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from amir_grpo.rewards import correctness
from amir_grpo.runs.study_trainer import StudyConfig, StudyTrainer
from amir_grpo.sandbox.policy import build_tokenizer
from amir_grpo.trainer import (
    LOSS_TYPES,
    AmirGRPOConfig,
    AmirGRPOTrainer,
    completion_columns,
    preference_factor,
    sequence_logps,
    use_one_gpu,
)

G, LAMBDA, BETA, MARGIN = 4, 0.7, 1.3, 0.4  # a strong preference term, so that a wrong factor shows
PROMPTS = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{a}+{b}"}]} for a in (1, 2, 3) for b in (4, 5)])
TOKENIZER = build_tokenizer()


def graded(completions, completion_ids, **columns):
    """A reward with ties and several values, read off the tokens alone."""
    return [0.5 * (sum(ids) % 4) for ids in completion_ids]


def random_policy():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), initializer_range=0.15, **shape, **tokens))


@pytest.fixture(scope="module")
def policy():
    return random_policy()


def make_trainer(policy, folder, trainer_class=AmirGRPOTrainer, peft=False, reward=graded, prompts=PROMPTS, **changes):
    values = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "num_generations": G,
        "max_completion_length": 12,
        "learning_rate": 1.0,  # so large that the difference of the parameters is the gradient to float32
        "max_steps": 3,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "loss_type": "grpo",
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "seed": 3,
    }
    config_class = GRPOConfig
    if issubclass(trainer_class, AmirGRPOTrainer):
        config_class = StudyConfig if issubclass(trainer_class, StudyTrainer) else AmirGRPOConfig
        values |= {"lambda_reg": LAMBDA, "beta_dpo": BETA, "reward_margin": MARGIN}
    trainer = trainer_class(
        model=copy.deepcopy(policy),
        reward_funcs=reward,
        args=config_class(**{**values, **changes}),
        train_dataset=prompts,
        processing_class=TOKENIZER,
        # of rank 4 and not zero at the start, so that the reference is not the policy
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if peft else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def sgd_gradient(trainer):
    """Gradient of one optimizer step, read off the step that plain gradient descent made."""
    before = parameters(trainer)
    trainer.train()
    return (before - parameters(trainer)) / trainer.args.learning_rate


class _Recording(GRPOTrainer):
    """GRPO that keeps its first rollout, rows in the order before TRL shuffles them, and the rewards."""

    rollout = None

    def _calculate_rewards(self, *arguments):
        self.rewards = super()._calculate_rewards(*arguments)
        return self.rewards

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.rollout is None:
            self.rollout = output
        return output


def explicit_preference_gradient(trainer, strategy="all", cap=None, reference=None):
    """Gradient of L_pref by automatic differentiation of the loss over the pairs, with a forward pass of its own."""
    rollout = trainer.rollout
    model = trainer.model
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    length = rollout["completion_ids"].size(1)

    def sequence_logps(m):
        logits = m(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]
        drawn = rollout["completion_ids"][..., None]
        token = torch.log_softmax(logits / trainer.temperature, -1).gather(2, drawn)[..., 0]
        return (token * rollout["completion_mask"]).sum(-1) / rollout["completion_mask"].sum(-1).clamp(min=1)

    logps = sequence_logps(model)
    score = logps if reference is None else logps - reference(sequence_logps, model)
    rewards = trainer.rewards.sum(dim=1)
    terms = []
    for start in range(0, len(rewards), G):
        rows = range(start, start + G)
        best = max(rows, key=lambda i: (rewards[i].item(), -i))
        pairs = [
            (i, j)
            for i, j in itertools.permutations(rows, 2)
            if rewards[i] - rewards[j] > MARGIN
            and rollout["completion_mask"][i].any()
            and rollout["completion_mask"][j].any()
            and (strategy == "all" or i == best)
        ]
        pairs.sort(key=lambda p: (-(rewards[p[0]] - rewards[p[1]]).item(), p))
        terms += [-torch.nn.functional.logsigmoid(BETA * (score[i] - score[j])) for i, j in pairs[:cap]]
    assert len(terms) > 3, "the rollout has too few pairs to test anything"
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(torch.stack(terms).mean(), trained)
    return torch.cat([g.flatten() for g in gradients])


def off_by(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def adapter_off(sequence_logps, model):
    with torch.no_grad(), model.disable_adapter():
        return sequence_logps(model)


def the_policy_itself(sequence_logps, model):
    """The initial policy, at the first step."""
    with torch.no_grad():
        return sequence_logps(model)


def check_gradient(policy, folder, strategy="all", cap=None, reference=None, peft=False, **changes):
    """AMIR-GRPO's step minus GRPO's must be λ times the gradient of the explicit preference loss."""
    if peft:  # the same random adapter in both
        torch.manual_seed(11)
    grpo = make_trainer(policy, folder, _Recording, peft=peft, max_steps=1, **changes)
    start = copy.deepcopy(grpo.model.state_dict())
    grpo_gradient = sgd_gradient(grpo)
    grpo.model.load_state_dict(start)
    grpo.model.eval()
    wanted = grpo_gradient + LAMBDA * explicit_preference_gradient(grpo, strategy, cap, reference)
    if peft:
        torch.manual_seed(11)
    term = {"pair_mining": strategy, "max_pairs_per_group": cap, "ref_free": reference is None}
    amir = make_trainer(policy, folder, peft=peft, max_steps=1, **term, **changes)
    assert off_by(wanted, grpo_gradient) > 1e-3, "the preference term is too small for the test to see it"
    assert off_by(sgd_gradient(amir), wanted) < 1e-5
    return amir


def objectives():
    """Every loss with every two of the other choices; all three at once in `make test-long`."""
    for loss_type, level, strategy, with_reference in itertools.product(
        LOSS_TYPES, ("token", "sequence"), ("all", "topk"), (False, True)
    ):
        odd = (level == "sequence") ^ (strategy == "topk") ^ with_reference
        yield pytest.param(loss_type, level, strategy, with_reference, marks=pytest.mark.long if odd else ())


@pytest.mark.parametrize(("loss_type", "level", "strategy", "with_reference"), objectives())
def test_gradient_is_that_of_the_explicit_objective(policy, tmp_path, loss_type, level, strategy, with_reference):
    changes = {"loss_type": loss_type, "importance_sampling_level": level, "peft": with_reference}
    if loss_type == "cispo":  # clamps the ratio at epsilon_high; at its usual value the ratio 1 is below it
        changes["epsilon_high"] = 5.0
    check_gradient(policy, tmp_path, strategy, reference=adapter_off if with_reference else None, **changes)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_groups_cut_by_micro_batches_make_the_same_update(policy, tmp_path, loss_type):
    # 4 micro-batches of 4 rows that TRL has shuffled: no group stays whole
    check_gradient(policy, tmp_path, loss_type=loss_type, per_device_train_batch_size=4, gradient_accumulation_steps=4)


@pytest.mark.parametrize(
    ("strategy", "cap", "changes"),
    [
        ("all", 2, {}),
        ("topk", 1, {}),
        ("all", None, {"loss_type": "cispo", "epsilon_high": 0.5}),  # clamps the ratio, which is 1
        ("all", None, {"loss_type": "cispo"}),  # at ε = 0.2, its default
        ("all", None, {"mask_truncated_completions": True, "max_completion_length": 120}),
        ("all", None, {"temperature": 0.7}),  # of the tempered policy, as GRPO's own
        ("all", None, {"temperature": 1.5, "loss_type": "dapo", "importance_sampling_level": "sequence"}),
    ],
)
def test_gradient_under_other_settings(policy, tmp_path, strategy, cap, changes):
    check_gradient(policy, tmp_path, strategy, cap, **changes)


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradient_with_the_adapter_switched_off_as_reference(policy, tmp_path, kl, temperature):
    check_gradient(policy, tmp_path, reference=adapter_off, peft=True, beta=kl, temperature=temperature)


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_gradient_with_a_copy_of_the_initial_policy_as_reference(policy, tmp_path, kl):
    policy.save_pretrained(tmp_path / "policy")  # a reference is read from where the policy came from
    whole = LlamaForCausalLM.from_pretrained(tmp_path / "policy")
    amir = check_gradient(whole, tmp_path / "out", reference=the_policy_itself, beta=kl)
    assert amir.args.beta == amir.beta == kl
    assert torch.equal(amir.ref_model.lm_head.weight, policy.lm_head.weight)  # as it was before the step


@pytest.mark.parametrize(
    ("loss_type", "factors"),
    [
        ("grpo", [8, 8]),
        ("dr_grpo", [8 * 6 / 1, 8 * 6 / 3]),
        ("bnpo", [8 * 4 / 2 / 1, 8 * 4 / 2 / 3]),  # 4 tokens in this micro-batch of 2
        ("dapo", [20 / 1, 20 / 3]),  # 20 tokens in all
        ("cispo", [20 / 1 / 0.5, 20 / 3 / 0.5]),
        ("luspo", [8 / 1, 8 / 3]),
    ],
)
def test_the_factor_of_a_completion_of_one_token(loss_type, factors):
    args = SimpleNamespace(generation_batch_size=8)
    trainer = SimpleNamespace(loss_type=loss_type, args=args, max_completion_length=6, epsilon_high=0.5)
    inputs = {"completion_mask": torch.tensor([[1, 0, 0], [1, 1, 1]]), "num_items_in_batch": torch.tensor(20.0)}
    inputs["advantages"] = torch.zeros(2)
    assert preference_factor(trainer, inputs).tolist() == pytest.approx(factors)


def test_a_sequence_counts_the_tokens_of_its_mask_alone():
    logps = torch.tensor([[-1.0, -2.0, torch.nan], [-3.0, -torch.inf, -9.0], [-9.0, -9.0, -9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert sequence_logps(logps, mask).tolist() == [-1.5, -3.0, 0.0]


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_lambda_zero_is_grpo_bit_for_bit(policy, tmp_path, micro_batches):
    shape = {"per_device_train_batch_size": 16 // micro_batches, "gradient_accumulation_steps": micro_batches}
    grpo = make_trainer(policy, tmp_path, GRPOTrainer, **shape)
    grpo.train()
    # seeds again, so only after the other's training
    amir = make_trainer(policy, tmp_path, lambda_reg=0.0, trim_micro_batches=False, **shape)
    amir.train()
    assert torch.equal(parameters(grpo), parameters(amir))
    assert not [name for row in amir.state.log_history for name in row if name.startswith("preference/")]


def test_lambda_zero_keeps_no_reference(policy, tmp_path):
    assert make_trainer(policy, tmp_path, lambda_reg=0.0, ref_free=False).ref_model is None


def test_a_rollout_without_a_pair_is_a_grpo_step(policy, tmp_path):
    def constant(completions, **columns):
        return [1.0] * len(completions)

    trainer = make_trainer(policy, tmp_path, reward=constant, max_steps=1)
    before = parameters(trainer)
    trainer.train()
    assert torch.equal(before, parameters(trainer))
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["preference/pairs"] == 0
    assert row["preference/loss"] == 0


def test_unscorable_completions_form_no_pair(policy, tmp_path):
    def half(completions, completion_ids, **columns):
        values = graded(completions, completion_ids)
        return [None if i % 2 else v for i, v in enumerate(values)]

    trainer = make_trainer(policy, tmp_path, reward=half, max_steps=1)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["preference/pairs"] <= 4  # 4 groups with 2 scored completions each


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lambda_reg", -0.1, "lambda_reg is -0.1; it must be greater than or equal to 0"),
        ("pair_mining", "permuted", "Unknown pair_mining 'permuted'.*\nValid: all, topk."),  # the study's
        ("loss_type", "ppo", "Unknown loss_type 'ppo'"),
        ("top_entropy_quantile", 0.2, "top_entropy_quantile=0.2 would"),
    ],
)
def test_impossible_settings_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        AmirGRPOConfig("folder", use_cpu=True, bf16=False, **{name: value})


def test_the_constructor_takes_what_its_parents_takes(policy, tmp_path):
    both = (inspect.signature(trainer.__init__).parameters for trainer in (AmirGRPOTrainer, GRPOTrainer))
    ours, parents = ([(name, given[name].default) for name in list(given)[:4]] for given in both)
    assert ours == parents
    args = AmirGRPOConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="No reward source"):  # TRL's own check: an environment may give the reward
        AmirGRPOTrainer(policy, args=args, processing_class=build_tokenizer())


def test_grpos_own_config_is_refused(policy, tmp_path):
    with pytest.raises(TypeError, match="GRPOConfig; AmirGRPOTrainer needs an AmirGRPOConfig"):
        AmirGRPOTrainer(policy, graded, GRPOConfig(str(tmp_path), use_cpu=True, bf16=False), train_dataset=PROMPTS)


def test_answers_are_checked_before_training_and_numbers_are_taken(policy, tmp_path):
    with pytest.raises(ValueError, match="Column 'answer', row 0: True is no answer"):
        make_trainer(policy, tmp_path, reward=correctness, prompts=PROMPTS.add_column("answer", [True] * 6))
    prompts = PROMPTS.add_column("answer", [1, 2, 3, 4, 5, 6])
    make_trainer(policy, tmp_path, reward=[correctness], prompts=prompts, max_steps=1).train()


def test_model_cards_name_the_method_and_its_paper(policy, tmp_path):
    make_trainer(policy, tmp_path).create_model_card()
    card = (tmp_path / "README.md").read_text()
    for said in ("trained with AMIR-GRPO", "huggingface.co/papers/2601.03661", "Cite AMIR-GRPO as"):
        assert said in card
    assert "amir-grpo" in ModelCard.load(tmp_path / "README.md").data.tags
    assert "2402.03300" not in card  # GRPO's


def test_log_probabilities_that_unsloth_has_packed_to_the_left_are_read_where_the_completion_stands():
    prompt_mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    completions = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    packed = []
    for row, completion in zip(prompt_mask, completions, strict=True):  # prompt and completion, then the padding
        whole = [-9.0] * int(row.sum()) + completion + [0.0] * int((row == 0).sum())
        packed.append(whole[-(2 + 2) :])  # T, and the padding of the shortest prompt
    batch = {"prompt_mask": prompt_mask, "completion_ids": torch.zeros(3, 2)}
    assert completion_columns(torch.tensor(packed), batch).tolist() == completions
    assert completion_columns(torch.tensor(completions), batch).tolist() == completions  # TRL's own


def test_a_process_that_sees_several_gpus_trains_on_one(tmp_path, monkeypatch):
    args, seen = AmirGRPOConfig(str(tmp_path), use_cpu=True, bf16=False), []
    monkeypatch.setattr("amir_grpo.trainer.logger.warning", lambda message, *values: seen.append(message % values))
    args._n_gpu = 4
    use_one_gpu(args)
    assert (args.n_gpu, args.train_batch_size) == (1, args.per_device_train_batch_size)
    assert seen == ["4 GPUs are visible; this process trains on the first. To train on all: accelerate launch."]
