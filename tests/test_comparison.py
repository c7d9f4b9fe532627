"""Every method at one budget, on a toy task: what is trained, what it costs, where it goes on, what is sealed. And two
tasks, one after the other: every stage is measured against the untrained model, SFT in GRPO's seconds."""

from dataclasses import replace

import pytest
from tiny import PROMPT, perturb, tiny_profile, toy_task

from recr1_lite.__main__ import main
from recr1_lite.common import RecR1Error
from recr1_lite.evaluate import capability
from recr1_lite.ledger import Ledger, record_of
from recr1_lite.policy.models import load_policy, save_adapter
from recr1_lite.recipes import comparison
from recr1_lite.recipes.comparison import (
    ACCURACY,
    GRPO,
    KL,
    LM_TEACHER,
    METHODS,
    REJECTION,
    TEACHER,
    TRAINERS,
    VOTED,
    WARM,
    compare_methods,
    continual,
)
from recr1_lite.search.metrics import mean_interval
from recr1_lite.tasks.prompts import restyled
from recr1_lite.train import grpo


def teach(request: str) -> tuple[str, str]:
    """A word of GOOD for a request of one or two words; silence for a longer one."""
    return ("w119", "w1 w2") if len(request.split()) < 3 else ("", "")


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    profile = tiny_profile(tiny_folder, steps=4, n_val=8, n_test=8, sft_learning_rate=1e-2, max_prompt_tokens=200)
    ledger = Ledger(folder / "ledger.jsonl")
    options = dict(profile=profile, out=folder / "toy-run", ledger=ledger, task=toy_task(), teach=teach, progress=False)
    return options, compare_methods(**options)


@pytest.fixture(scope="module", autouse=True)
def styles_of_words():
    """The tiny tokenizer knows one token per word; JSON and tags are none of them, so every style is words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison.sft, "variant", lambda prompt, method: restyled(prompt, "compact"))
        yield


def test_every_method_is_tested_once_on_the_same_requests(run):
    options, results = run
    assert [result.name for result in results] == ["raw request", "zero-shot", TEACHER, LM_TEACHER, *METHODS]
    assert {tuple(result.rows["example_id"]) for result in results} == {tuple(f"test{i}" for i in range(8))}
    rows = options["ledger"].rows()
    last_training = max(at for at, row in enumerate(rows) if row["kind"] == "train")
    assert all(at > last_training for at, row in enumerate(rows) if row["kind"] in ("unseal", "eval"))
    pairs = {(row["a"], row["b"]) for row in rows if row["kind"] == "compare"}
    assert {(method, base) for method in METHODS for base in ("raw request", TEACHER, GRPO) if method != base} <= pairs
    assert (VOTED, LM_TEACHER) in pairs
    assert len(options["ledger"].rows("unseal")) == 1, "the seal is opened once for all methods"
    assert {row["run_id"] for row in rows} == {record_of(options["out"])["id"]}
    assert (options["out"] / "report.html").exists()


def test_no_method_passes_the_budget_that_grpo_sets(run):
    rows = {row["method"]: row for row in run[0]["ledger"].rows("train")}
    costs = {method: row["cost"] for method, row in rows.items()}
    assert set(rows) == set(METHODS) and all(row["stopped"] == "finished" for row in rows.values())
    budget = rows[GRPO]["budget"]
    assert budget["samples"] == 4 * 2 * 4 == costs[GRPO]["samples"]
    assert budget["seconds"] == pytest.approx(costs[GRPO]["seconds"], abs=0.01)
    for name, row in rows.items():
        assert costs[name]["samples"] <= budget["samples"], name
        longest = max(step["seconds"] for step in row["curve"])
        assert costs[name]["seconds"] <= budget["seconds"] + longest + 0.5, name
        assert costs[name]["tokens_trained"] > 0
        assert row["val"][-1]["seconds"] == pytest.approx(costs[name]["seconds"], abs=0.1)
        assert row["val"][-1]["samples"] == costs[name]["samples"]
    assert costs["SFT"]["samples"] == 0 < costs[REJECTION]["samples"] == costs[VOTED]["samples"]
    assert rows[WARM]["val"][0]["seconds"] == pytest.approx(costs["SFT"]["seconds"], abs=0.1)


def test_again_it_trains_nothing_and_nothing_else(run, monkeypatch):
    options, results = run
    for change in (dict(seed=1), dict(profile=replace(options["profile"], steps=9)), dict(teach=str.split)):
        with pytest.raises(RecR1Error, match="whose (seed was 0|steps was 4|teacher was .teach.) and is now"):
            compare_methods(**options | change)
    book = options["ledger"].bind(run="toy-run", run_id="another folder of this name")
    assert comparison.Arena(toy_task(), None, options["profile"], teach, options["out"], ledger=book).seconds is None
    monkeypatch.setattr(comparison, "train_method", None)
    again = compare_methods(**options)
    assert [r.summary["ndcg@10"] for r in again] == [r.summary["ndcg@10"] for r in results]


def test_a_killed_comparison_goes_on(run, tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    options = run[0] | {"out": tmp_path / "run", "ledger": ledger, "methods": (GRPO, "SFT", REJECTION)}
    keep, left = comparison.record, [1]

    def record(*args):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return keep(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(comparison, "record", record)
        compare_methods(**options)
    assert [row["method"] for row in ledger.rows("train")] == [GRPO] and not ledger.rows("unseal")
    compare_methods(**options)
    assert [row["method"] for row in ledger.rows("train")] == [GRPO, "SFT", REJECTION]


def test_sft_learns_the_teacher_which_is_a_rewriter_like_the_others(run):
    results = {result.name: result for result in run[1]}
    scores = {name: result.summary["ndcg@10"].mean for name, result in results.items()}
    assert scores["SFT"] > scores["raw request"] and scores[TEACHER] > scores["raw request"]
    teacher = results[TEACHER]
    assert teacher.outcomes == {"ok": 4, "empty": 4}
    row = teacher.rows.iloc[3]  # four words: the teacher is silent, and the request is sent as it is
    assert row["query"] == row["request"] and PROMPT.mode == "rewrite"


def test_the_teacher_is_the_tasks_own_rule_unless_another_is_given(run, tmp_path):
    with pytest.raises(RecR1Error, match="the task toy has no rule .* give one with teach="):
        compare_methods(**run[0] | {"out": tmp_path, "teach": None})
    task = toy_task().map_splits(lambda _, rows: rows, rule=teach)
    again = compare_methods(**run[0] | {"task": task, "teach": None})
    assert [result.name for result in again] == [result.name for result in run[1]], "the same run goes on"


def test_an_interrupted_method_stops_the_comparison(run, tmp_path, monkeypatch):
    options = run[0] | {"out": tmp_path / "run", "ledger": Ledger(tmp_path / "ledger.jsonl"), "methods": (GRPO,)}
    close = grpo.Monitor.close

    def stopped(self, seconds):
        done = close(self, seconds)
        done.stopped = "interrupted"
        return done

    monkeypatch.setattr(grpo.Monitor, "close", stopped)
    with pytest.raises(RecR1Error, match="GRPO was stopped; run the same command again"):
        compare_methods(**options)
    assert not options["ledger"].rows("unseal")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--parts", "methods,magic"], "no part 'magic'"),
        (["--methods", "SFT"], "sets the budget"),
        (["--methods", "GRPO,DPO"], "sets the budget"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, arguments, message):
    assert main(["compare", "--profile", "smoke", "--out", str(tmp_path / "run"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Checked:
    """Stands in for the capability suite, whose words the tiny tokenizer does not know."""

    def __init__(self, level: float, kl: float):
        self.level, self.summary = level, {ACCURACY: mean_interval([level] * 4), KL: mean_interval([kl] * 4)}


def test_every_stage_of_two_tasks_is_measured(tiny_folder, tmp_path, monkeypatch):
    named, levels = [], iter([(0.5, 0.0), (0.4, 0.1), (0.3, 0.2), (0.45, 0.3), (0.2, 0.4)])
    monkeypatch.setattr(capability, "check", lambda _, name, **__: named.append(name) or Checked(*next(levels)))
    monkeypatch.setattr(capability, "compare", lambda a, b, _: {ACCURACY: mean_interval([a.level - b.level])})
    profile = tiny_profile(tiny_folder, steps=2, sft_learning_rate=1e-2, max_prompt_tokens=200)
    policies = {trainer: perturb(load_policy(profile), 0.05, number) for number, trainer in enumerate(TRAINERS)}
    first = {trainer: save_adapter(policy, tmp_path / trainer) for trainer, policy in policies.items()}
    tasks, ledger = [toy_task(), toy_task()], Ledger(tmp_path / "ledger.jsonl").bind(command="test")
    tasks[1].name = "second"
    options = dict(tasks=tasks, teach=teach, profile=profile, out=tmp_path / "out", ledger=ledger, seed=3)
    with pytest.raises(RecR1Error, match="no adapter of SFT"):
        continual({"GRPO": first["GRPO"]}, **options)
    rows = continual(first, **options)
    assert rows == ledger.rows("continual")
    assert {(row["run"], row["seed"], row["command"]) for row in rows} == {("out", 3, "test")}
    stages = list(enumerate(("untrained", "after toy", "after second")))
    seen = [(row["trainer"], row["stage"], row["name"]) for row in rows]
    assert seen == [(trainer, *stage) for trainer in TRAINERS for stage in stages]
    assert all(set(row["measures"]) == {"toy", "second", "capability", "kl"} for row in rows)
    assert [row["measures"]["capability"]["mean"] for row in rows] == [0.5, 0.4, 0.3, 0.5, 0.45, 0.2]
    lost = [row["differences"].get("capability", {}).get("mean") for row in rows]
    assert lost == pytest.approx([None, -0.1, -0.2, None, -0.05, -0.3])
    assert set(rows[1]["differences"]) == {"toy", "second", "capability"}
    assert rows[2]["seconds"] > 0 and not ledger.rows("unseal")
    assert named == ["untrained", "GRPO", "", "SFT", ""]  # the first three leave capability rows of their own
