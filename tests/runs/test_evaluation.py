"""Completions of a run's policies: drawn once, graded against their own problem's answer, resumed where they stopped."""

import contextlib
import itertools
import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
from datasets import Dataset

from amir_grpo.policies import engines, loading, sampling
from amir_grpo.policies.source import PolicySource
from amir_grpo.results import tables
from amir_grpo.runs import evaluation
from amir_grpo.runs.evaluation import Evaluation
from amir_grpo.runs.run import Run, open_run
from amir_grpo.settings import replace
from amir_grpo.system import cluster


def never(*args, **kwargs):
    raise AssertionError("done again")


def calibrated(run):
    """The run with calibration, which the sandbox's policy is refused."""
    config = run.folder / "config.json"
    config.write_text(config.read_text().replace('"calibration": false', '"calibration": true'))
    again = Run(run.folder, run.profile, replace(run.settings, calibration=True))
    again.problems = again.evaluation.problems = run.problems
    again.training_problems = run.training_problems
    return again


def test_samples_are_drawn_once(open_tiny, monkeypatch):
    first = open_tiny().samples(["base"])
    assert len(first) == 2 * 2 * 8
    assert set(first["benchmark"]) == {"chain3", "chain6"}
    monkeypatch.setattr(sampling, "draw_batches", never)
    monkeypatch.setattr(engines, "load_engine", never)
    pd.testing.assert_frame_equal(open_tiny().samples(["base"]), first)
    (open_tiny().folder / "samples" / "base" / "chain6.parquet").unlink()
    with pytest.raises(AssertionError, match="done again"):
        open_tiny().samples(["base"])
    assert len(open_tiny().samples(["base"], ["chain3"])) == 16


@pytest.mark.parametrize("calibration", [False, True])
def test_formatted_means_the_format_that_was_asked_for(open_tiny, monkeypatch, calibration):
    plain = r"<think>1+1=2</think><answer>\boxed{2}</answer>"
    texts = [plain, plain + "<analysis>sure</analysis><confidence>0.9</confidence>", "2"]

    def draw_batches(engine, problems, *arguments, **options):
        yield pd.DataFrame({"problem_id": problems["id"], "text": texts, "sample": 0})

    monkeypatch.setattr(sampling, "draw_batches", draw_batches)
    run = open_tiny(benchmarks=["chain3"], eval_limit=3)
    run = calibrated(run) if calibration else run
    rows = run.samples(["base"])
    assert rows["formatted"].tolist() == [not calibration, calibration, False]
    if calibration:
        assert rows["confidence"].tolist() == pytest.approx([math.nan, 0.9, math.nan], nan_ok=True)
    else:
        assert "confidence" not in rows


def test_correct_is_against_the_answer_of_the_rows_own_problem(open_tiny, monkeypatch):
    run = open_tiny(benchmarks=["chain6"], eval_limit=3)
    answers = [eval(chain) for chain in run.problems("chain6")["question"]]
    assert len(set(answers)) == 3
    said = [answers[0], answers[1], answers[2], answers[0], answers[1] + 1]
    about, number = [0, 1, 2, 1, 1], [0, 0, 0, 1, 2]

    def draw_batches(engine, problems, *arguments, **options):
        ids = [problems["id"][index] for index in about]
        texts = [rf"<answer>\boxed{{{value}}}</answer>" for value in said]
        yield pd.DataFrame({"problem_id": ids, "sample": number, "text": texts})

    monkeypatch.setattr(sampling, "draw_batches", draw_batches)
    assert run.samples(["base"])["correct"].tolist() == [True, True, False, False, True]


def test_a_killed_evaluation_goes_on_where_it_stopped(open_tiny, monkeypatch):
    """Killed after each batch in turn: the same file in the end, and nothing drawn twice."""
    whole = open_tiny(eval_limit=4, eval_token_budget=700)
    expected = whole.samples(["base"], ["chain3"])
    path = whole.folder / "samples" / "base" / "chain3.parquet"
    assert not path.with_suffix(".parts").exists()
    path.unlink()

    drawn, plain = [], sampling.draw_batches

    def killed_after_one(*arguments, **options):
        for batch in itertools.islice(plain(*arguments, **options), 1):
            drawn.extend(batch["problem_id"].unique())
            yield batch
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "draw_batches", killed_after_one)
    for _ in range(len(expected["problem_id"].unique())):
        if path.exists():
            break
        with contextlib.suppress(KeyboardInterrupt):
            open_tiny(eval_limit=4, eval_token_budget=700).samples(["base"], ["chain3"])
    else:
        open_tiny(eval_limit=4, eval_token_budget=700).samples(["base"], ["chain3"])
    assert len(drawn) == len(set(drawn)) == expected["problem_id"].nunique() > 2
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected)
    assert not path.with_suffix(".parts").exists()


def test_completions_of_a_policy_that_was_trained_anew_are_refused(open_tiny, monkeypatch):
    """On a GPU another training ends with other weights."""
    run = open_tiny(benchmarks=["chain3"])
    weights = adapter(run.folder / "grpo", 4) / "adapter_model.safetensors"
    weights.write_bytes(b"first")

    def draw_batches(engine, problems, *arguments, **options):
        yield pd.DataFrame({"problem_id": problems["id"], "text": "2", "sample": 0})

    monkeypatch.setattr(Run, "train", lambda *_: None)
    monkeypatch.setattr(engines, "load_engine", lambda *_: None)
    monkeypatch.setattr(sampling, "draw_batches", draw_batches)
    assert len(run.samples(["grpo"])) == len(run.samples(["grpo"])) == 2
    weights.write_bytes(b"second")
    with pytest.raises(ValueError, match=r"samples/grpo holds completions of another grpo than .*\nResults would mix"):
        run.samples(["grpo"])


def test_calibrated_policies_are_evaluated_with_their_confidence(open_tiny, monkeypatch):
    """Completions of a policy that states one, on problems of a mirror, from the samples to the tables."""
    right, wrong = r"<think>.</think><answer>\boxed{27}</answer>", r"<think>.</think><answer>\boxed{2}</answer>"
    said = "<analysis>.</analysis><confidence>{}</confidence>"
    texts = [right + said.format(0.9), right + said.format(0.8), wrong + said.format(0.9), wrong]

    def draw_batches(engine, problems, num_samples, **options):
        for problem in problems["id"]:
            yield pd.DataFrame(
                {
                    "problem_id": problem,
                    "sample": range(num_samples),
                    "text": texts[:num_samples],
                    "tokens": 5,
                    "finish_reason": "stop",
                    "logprob": -1.0,
                    "completion_ids": [[1]] * num_samples,
                }
            )

    monkeypatch.setattr(sampling, "draw_batches", draw_batches)
    run = open_tiny(benchmarks=["chain3"], ks=[1], num_samples=4)
    run = calibrated(run)
    problems = Dataset.from_list([{"id": f"p-{n}", "answer": ["27"]} for n in range(3)])
    monkeypatch.setattr(run.evaluation, "problems", lambda name: problems)
    summary = tables.policy_summary(run.samples(), run.settings.evaluation.ks, run.samples(greedy=True))
    base = summary[summary["policy"] == "base"].set_index("quantity")["estimate"]
    assert base["stated"] == 75
    assert base["brier"] == pytest.approx((0.01 + 0.04 + 0.81) / 3)
    table = tables.reliability_table(run.samples())
    assert table.loc[table["policy"] == "base", "right"].tolist() == [1.0, 0.5]


class _Built(SimpleNamespace):
    closed = False

    def use(self, adapter):
        self.used = adapter

    def close(self):
        self.closed = True


def adapter(folder, rank):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "base_model_name_or_path": "base"}))
    return folder


def test_one_engine_for_all_policies_of_a_run_and_room_for_the_longest(open_tiny, tmp_path, monkeypatch):
    run = open_tiny()
    built = []

    def load_engine(name, base, adapter, settings, lora_rank, tokens):
        built.append(_Built(name=name, base=base, lora_rank=lora_rank, tokens=tokens, used=adapter))
        return built[-1]

    monkeypatch.setattr(engines, "load_engine", load_engine)
    monkeypatch.setattr(Evaluation, "engine_name", lambda self: "vllm")
    base = run.base()
    few, many = PolicySource(base, adapter(tmp_path / "few", 4)), PolicySource(base, adapter(tmp_path / "many", 64))
    sources = [PolicySource(base), few, many]
    run.evaluation.expect(sources)
    for each in sources:
        assert run.evaluation._engine(each).used == each.adapter
    assert len(built) == 1
    assert built[0].lora_rank == 64
    tokenizer = loading.load_tokenizer(base)
    prompts = [sampling.tokenize_prompts(tokenizer, run.problems(name)) for name in run.settings.evaluation.benchmarks]
    longest = max(len(ids) for benchmark in prompts for ids in benchmark.values())
    assert built[0].tokens == longest + run.settings.evaluation.eval_max_new_tokens
    run.evaluation.expect(sources[:1])
    assert run.evaluation._engine(sources[0]) is built[0], "more room than is needed is no reason to build it again"
    run.evaluation._engine(PolicySource(base, adapter(tmp_path / "larger", 65)))
    assert len(built) == 2
    assert built[1].lora_rank == 65
    assert [engine.closed for engine in built] == [True, False]


def test_an_engine_gives_its_memory_back_before_scoring_and_training(open_tiny, monkeypatch):
    """vLLM's processes outlive the last reference to them, and hold the card."""
    run, order = open_tiny(), []

    def begins(name):
        def stop(*_, **__):
            order.append(name)
            raise InterruptedError

        return stop

    monkeypatch.setattr(loading, "load_policy", begins("scoring"))
    monkeypatch.setattr(Run, "_start_training", begins("training"))
    for work in (lambda: run.evaluation.logprobs(PolicySource("base"), None), lambda: run.train("grpo")):
        run.evaluation._loaded = None, SimpleNamespace(close=lambda: order.append("closed"))
        with pytest.raises(InterruptedError):
            work()
    assert order == ["closed", "scoring", "closed", "training"]


@pytest.mark.xdist_group("server")
def test_two_worker_processes_draw_what_one_draws(open_tiny, runs, tiny_settings, server, monkeypatch):
    """Each the completions of a policy on a benchmark, at once: with a GPU for each where there are several."""
    monkeypatch.setattr(cluster, "get_context", {"spawn": server}.__getitem__)  # no imports to wait for
    expected = {greedy: open_tiny().samples(["base"], greedy=greedy) for greedy in (False, True)}
    two = open_run("sandbox", runs / "by two", tiny_settings | {"eval_limit": 2})
    with monkeypatch.context() as here:
        here.setattr(sampling, "draw_batches", never)  # in this process
        for greedy, rows in expected.items():
            pd.testing.assert_frame_equal(two.samples(["base"], greedy=greedy, workers=2), rows)
    monkeypatch.setattr(evaluation, "submitting", never)  # nothing is left to draw
    two.samples(["base"], workers=2)
