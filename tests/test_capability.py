"""General capability: the kit's own items, the harness's scores on them and on benchmarks, KL, and the sandbox."""

import json
import math
import runpy
from types import SimpleNamespace
from unittest.mock import Mock

import nltk
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tiny import perturb, tiny_policy, tiny_tokenizer

from recr1_lite import assets
from recr1_lite.__main__ import main
from recr1_lite.common import RecR1Error
from recr1_lite.evaluate import harness
from recr1_lite.evaluate.capability import (
    CapabilityResult,
    capability_table,
    check,
    cluster_of,
    compare,
    continuations,
    forward_kl,
    neutral_prompts,
)
from recr1_lite.evaluate.harness import run_program
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import Policy

FOLDER = harness.kit_folder()
SETS = {
    name: [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    for name in ("instructions", "arithmetic", "knowledge", "reading")
}
TASKS = ["recr1_instructions", "recr1_arithmetic", "recr1_knowledge", "recr1_reading"]


@pytest.fixture(scope="module")
def policy(tiny_folder) -> Policy:
    return tiny_policy(tiny_folder)


@pytest.fixture(scope="module")
def checked(policy):
    """Four items a task of the offline suite by the tiny policy; read only."""
    return check(policy, limit=4, name="tiny")


def test_there_are_enough_items_each_with_one_name_and_one_right_answer():
    rows = [row for rows in SETS.values() for row in rows]
    texts = {tuple(map(row.get, ("passage", "question", "prompt"))) for row in rows}
    assert len({row["id"] for row in rows}) == len(texts) == len(rows) >= 300
    for name in ("knowledge", "reading"):
        for row in SETS[name]:
            assert len({choice.lower() for choice in row["choices"]}) == len(row["choices"]) == 4, row
            assert row["answer"] in range(4) and all(choice == choice.strip() != "" for choice in row["choices"])
        places = [sum(row["answer"] == place for row in SETS[name]) for place in range(4)]
        assert min(places) > len(SETS[name]) / 8, places  # no place is the safe guess
    lines = (FOLDER / "prompts.txt").read_text().splitlines()
    assert len(set(lines)) == len(lines) == 40 and all(lines)
    assert neutral_prompts(tiny_tokenizer())[0].startswith("<|im_start|> user")


def test_the_arithmetic_is_right_and_the_mechanical_sets_are_what_the_committed_script_makes():
    task = next(task for task in harness.load_tasks("offline") if task.task_name == "recr1_arithmetic")
    found = {" 12": "12", "It is 12, not 13.": "12", "twelve": "[invalid]", "-3": "-3"}  # the first number counts
    asked = [SimpleNamespace(doc={}, resps=[answer], filtered_resps={}) for answer in found]
    task._filters[0].apply(asked)
    assert [one.filtered_resps["first_number"] for one in asked] == list(found.values())
    for row in SETS["arithmetic"]:
        result = {"+": row["a"] + row["b"], "-": row["a"] - row["b"], "*": row["a"] * row["b"]}[row["sign"]]
        assert row["answer"] == str(result) and str(row["a"]) in row["question"] and str(row["b"]) in row["question"]
    made = runpy.run_path(str(FOLDER / "make.py"))
    for name in ("instructions", "arithmetic"):
        assert made["text"](made[name]()) == (FOLDER / f"{name}.jsonl").read_text()


def test_an_answer_that_follows_the_instructions_scores_1_and_another_0():
    task, rows = harness.load_tasks("offline")[0], SETS["instructions"]
    assert not any(task.process_results(row, [""])["acc"] for row in rows)  # the harness knows each instruction
    row = next(row for row in rows if row["instruction_id_list"] == ["punctuation:no_comma"])
    answers = "It rained. We stayed in.", "It rained, so we stayed in."
    assert [task.process_results(row, [answer])["acc"] for answer in answers] == [1.0, 0.0]


def test_scores_do_not_hang_on_the_batch_size_but_on_the_seed(policy, checked, network, monkeypatch):
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    again, one, other = (check(policy, limit=4, **how) for how in ({"name": "again"}, {"batch_size": 1}, {"seed": 1}))
    assert again.scores.equals(checked.scores) and set(other.scores["item"]) != set(checked.scores["item"])
    for task in TASKS:
        for a, b in zip(one.samples[task], checked.samples[task], strict=True):
            for (left,), (right,) in zip(a["resps"], b["resps"], strict=True):
                assert left == right if isinstance(left, str) else abs(left[0] - right[0]) < 1e-3, (task, left, right)
    assert (one.scores["value"] - checked.scores["value"]).abs().max() < 1e-3
    with pytest.raises(RecR1Error, match="same items"):
        compare(other, checked)
    with pytest.raises(RecR1Error, match="data_dir"):
        harness.load_tasks("gsm8k")  # from the Hub
    assert network == []


def test_the_shared_prompt_pass_gives_the_harnesses_own_log_probabilities(policy):
    ours = harness.language_model(policy.model, policy.tokenizer, 8)
    plain = HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=3, max_length=256)
    rows = [(("", ""), list(range(5, 5 + n)), ends) for n in (3, 9, 6) for ends in ([17], [18, 9], [8, 19, 10, 11])]
    rows += [(None, [3], [20, 21, 22])]
    expected = [value for value, _ in plain._loglikelihood_tokens(rows, disable_tqdm=True)]
    assert [value for value, _ in ours._loglikelihood_tokens(rows)] == pytest.approx(expected, abs=1e-4)


def test_before_and_after_go_to_the_ledger_with_paired_differences(policy, checked, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for task in TASKS:  # through the chat template, and the tokenizer is as before
        context = checked.samples[task][0]["arguments"][0][0]
        assert context.startswith("<|im_start|> user ") and "<|im_start|> assistant" in context, context
    assert policy.tokenizer.padding_side == "left" and policy.tokenizer.pad_token == "<pad>"
    after = check(policy, limit=4, name="GRPO", ledger=ledger)
    after.scores["value"] = after.scores["value"].where(after.scores["task"] != "recr1_reading", 1.0)
    table = capability_table([checked, after], ledger)
    assert list(table.columns) == ["task", "metric", "n", "tiny", "GRPO", "GRPO - tiny"] and len(table) == 7
    assert table["task"].iloc[[0, -1]].tolist() == ["all", "kl"] and table["GRPO - tiny"].iloc[-1] == ""
    rows = ledger.rows("capability")
    assert [row["task"] for row in rows] == [*TASKS, "recr1_perplexity", "kl"] and rows[0]["method"] == "GRPO"
    assert {row["metric"] for row in rows} == {"accuracy", "nats"} and all(row["n"] == 4 for row in rows)
    back = CapabilityResult.from_rows(rows)
    assert compare(back, back)["all", "accuracy"].mean == 0 and set(back.values) == set(after.values)
    fresh = check(policy, limit=4, name="GRPO")  # what `after` was when its rows were written
    assert back.summary["recr1_reading", "accuracy"] == fresh.summary["recr1_reading", "accuracy"]
    for damaged in ({"values": ""}, {"values": rows[1]["values"][:-9]}, {"n": 3}):
        with pytest.raises(RecR1Error, match="GRPO on recr1_arithmetic are missing or damaged"):
            CapabilityResult.from_rows([rows[1] | damaged])
    pairs = {row["task"]: row for row in ledger.rows("capability_compare")}
    assert set(pairs) == {*TASKS, "recr1_perplexity"} and pairs["recr1_reading"]["b"] == "tiny"
    gain = 1 - checked.summary["recr1_reading", "accuracy"].mean
    assert pairs["recr1_reading"]["difference"]["mean"] == pytest.approx(gain)
    assert compare(after, checked)["recr1_knowledge", "accuracy"].mean == 0


def test_kl_of_the_base_to_itself_is_0_and_of_a_changed_model_above(tiny_folder, policy):
    prompts = neutral_prompts(policy.tokenizer)[:5]
    fresh, values = tiny_policy(tiny_folder, scale=0.0), forward_kl(policy, prompts, tokens=6)
    assert max(forward_kl(fresh, prompts, tokens=6)) < 1e-6 < min(values)
    assert sum(forward_kl(perturb(fresh, 0.01), prompts, tokens=6)) < sum(values)
    drawn = continuations(policy, prompts, tokens=6)  # what the base says does not hang on the adapter
    assert forward_kl(policy, [], drawn=drawn) == pytest.approx(values) and sum(map(len, (d[0] for d in drawn))) == 5
    # by hand, of one prompt and its first token: the sum of p log(p / q) over the vocabulary
    ids = policy.tokenizer(prompts[0], return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        q = policy.model(ids).logits[0, -1].softmax(-1).tolist()
        with policy.model.disable_adapter():
            p = policy.model(ids).logits[0, -1].softmax(-1).tolist()
    by_hand = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert forward_kl(policy, prompts[:1], tokens=1) == pytest.approx([by_hand], rel=1e-3)


def test_items_of_one_template_or_passage_are_one_cluster():
    names = [f"recr1_{task}/{row['id']}" for task, rows in SETS.items() for row in rows]
    groups = pd.Series(names).map(cluster_of).groupby(lambda at: names[at].split("/")[0]).nunique()
    assert groups.to_dict() == dict(zip(sorted(TASKS), [80, 16, 100, 30], strict=True))
    assert cluster_of("ifeval/1000") == "ifeval/1000" and cluster_of("mmlu_anatomy/7-2") == "mmlu_anatomy/7-2"
    values = [1.0, 1.0, 0.0, 0.0] * 8
    scores = pd.DataFrame({"task": "recr1_reading", "metric": "accuracy", "value": values})
    scores["item"] = [f"recr1_reading/reading-{n // 2:02}-{n % 2}" for n in range(32)]
    together = CapabilityResult("x", "offline", scores, {}, {}, 0, []).summary["recr1_reading", "accuracy"]
    alone = CapabilityResult("x", "offline", scores.assign(item=[*map(str, range(32))]), {}, {}, 0, [])
    width = alone.summary["recr1_reading", "accuracy"].high - 0.5
    assert together.mean == 0.5 and 1.2 * width < together.high - 0.5 < 1.7 * width  # sqrt(2), the pairs being equal


def test_the_files_of_a_benchmark_are_read_as_they_are(shared_data):
    folder = shared_data / "capability"
    mmlu = {task.task_name: task for task in harness.load_tasks("mmlu", folder)}["mmlu_nutrition"]
    rows = pd.read_csv(folder / "mmlu" / "nutrition_test.csv", dtype=str, keep_default_na=False)
    for doc, row in zip(mmlu.eval_docs, rows.itertuples(), strict=True):
        assert doc == {"question": row[1], "choices": [*row[2:6]], "answer": int(row.answer)}
    for suite, name in (("gsm8k", "gsm8k_test"), ("ifeval", "ifeval")):
        (task,) = harness.load_tasks(suite, folder)
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        for doc, line in zip(task.eval_docs, lines, strict=True):
            assert doc.items() >= {key: value for key, value in json.loads(line).items() if key != "kwargs"}.items()


def test_a_benchmark_is_scored(shared_data, policy):
    result = check(policy, "gsm8k", limit=3, data_dir=shared_data / "capability", max_gen_toks=4)
    assert {metric for _, metric in result.values} == {"exact_match (strict-match)", "exact_match (flexible-extract)"}
    assert len(result.scores) == 6 and result.scores["value"].isin([0, 1]).all()


HUMANEVAL = {"prompt": "def add(a, b):\n", "entry_point": "add", "test": "def check(f):\n    assert f(2, 3) == 5\n"}


def test_humaneval_runs_no_code_without_permission(shared_data, policy, monkeypatch, network):
    executed = Mock(side_effect=AssertionError("a generated program was executed"))
    how = dict(data_dir=shared_data / "capability", max_gen_toks=4)
    monkeypatch.setattr(harness, "run_program", executed)
    result = check(policy, "humaneval", limit=2, **how)
    assert "not executed" in result.notes[0] and [metric for _, metric in result.values] == ["answered"]
    assert network == [] and not executed.called
    with pytest.raises(AssertionError, match="executed"):
        check(policy, "humaneval", limit=1, execute_code=True, **how)


BAD_PROGRAMS = {
    "endless": ("while True: pass", "stopped"),
    "sleeps": ("import time; time.sleep(60)", "stopped"),
    "memory": ("x = bytearray(3_000_000_000)", "failed"),
    "leaves early": ("import sys; sys.exit(0)", "failed"),
    "leaves earlier": ("import os; os._exit(0)", "failed"),
    "starts a process": ("import subprocess; subprocess.run(['touch', '{outside}'])", "failed"),
    "forks": ("import os; os.fork()", "failed"),
    "reaches out": ("import socket; socket.create_connection(('127.0.0.1', 9))", "failed"),
    "writes": ("open('{outside}', 'w').write('x')", "failed"),
    "creates": ("import os; os.open('{outside}', os.O_CREAT | os.O_WRONLY)", "failed"),
    "deletes": ("import os; os.remove('{victim}')", "failed"),
}


@pytest.mark.parametrize("what", BAD_PROGRAMS)
def test_a_program_that_runs_away_is_stopped(what, tmp_path):
    source, verdict = BAD_PROGRAMS[what]
    outside, victim = tmp_path / "outside", tmp_path / "victim"
    victim.write_text("here")
    text = source.replace("{outside}", str(outside)).replace("{victim}", str(victim))
    assert run_program(text, seconds=2) == verdict
    assert not outside.exists() and victim.read_text() == "here"


def test_an_ordinary_program_passes_without_the_environment(monkeypatch):
    for body, value in (("return a + b\n```\nThat adds.", 1.0), ("return a - b\n", 0.0), ("retur a + b\n", 0.0)):
        assert harness.executed(HUMANEVAL, [f"    {body}"]) == {"pass@1": value}
    monkeypatch.setenv("SECRET", "x")
    program = "import math, re, os, collections\nassert 'SECRET' not in os.environ and math.gcd(4, 6) == 2"
    assert run_program(program, seconds=20) == "passed"


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda policy: harness.load_tasks("chess"), "chess"),
        (lambda policy: harness.load_tasks("gsm8k", "nowhere"), "gsm8k_test.jsonl"),
        (lambda policy: harness.load_tasks("mmlu", "nowhere"), "mmlu"),
        (lambda policy: harness.load_tasks("humaneval", "nowhere"), "HumanEval"),
        (lambda policy: check(None, limit=0), "limit"),
        (lambda policy: forward_kl(Policy(policy.model.get_base_model(), policy.tokenizer, "stock"), []), "base"),
    ],
)
def test_wrong_use_is_one_sentence(policy, call, word):
    with pytest.raises(RecR1Error, match=word) as error:
        call(policy)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named_and_a_missing_checkout(tmp_path, monkeypatch):
    (tmp_path / "mmlu").mkdir()
    for split, rows in {"dev": "q,a,b,c,d,A\n", "test": "q,a,b,c,d,A\nq,a,b\n"}.items():  # as published: no names
        (tmp_path / "mmlu" / f"nutrition_{split}.csv").write_text(rows)
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "x"')
    for suite, named in (("mmlu", "nutrition_test.csv, line 2 is not"), ("gsm8k", "gsm8k_test.jsonl")):
        with pytest.raises(RecR1Error, match=named):
            harness.load_tasks(suite, tmp_path)
    monkeypatch.setattr(harness, "__file__", str(tmp_path / "recr1_lite" / "harness.py"))
    with pytest.raises(RecR1Error, match="checkout"):
        harness.kit_folder()


def test_punkt_is_unpacked_from_the_asset(monkeypatch, tmp_path):
    archive = assets.fetch("punkt-tab")
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path))
    monkeypatch.setattr(assets, "fetch", lambda name: {"punkt-tab": archive}[name])
    monkeypatch.setattr(nltk.data, "path", [])
    harness.punkt()
    assert str(nltk.data.find("tokenizers/punkt_tab")).startswith(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["nltk"]


def test_the_command_line(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path))
    monkeypatch.setattr("recr1_lite.policy.load_policy", lambda *_, **__: tiny_policy(tiny_folder))
    assert main(["capability", "--profile", "smoke", "--limit", "1", "--adapter", "somewhere", "--name", "GRPO"]) == 0
    said = capsys.readouterr().out
    assert "GRPO - untrained" in said and "perplexity" in said
    assert {row["kind"] for row in Ledger(tmp_path / "ledger.jsonl").rows()} == {"capability", "capability_compare"}
    assert main(["capability", "--suite", "gsm8k", "--data-dir", str(tmp_path / "no")]) == 2
