"""Targets: the vote, the best of n, files of pairs, a paid server; killed runs lose and repeat nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from hub_files import write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from servers import server
from tiny import PROMPT, examples, tiny_policy, tiny_profile, toy_retriever

from recr1_lite.common import RecR1Error
from recr1_lite.policy.rewriters import EndpointRewriter, as_rewriter
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.train import targets
from recr1_lite.train.rewards import Scorer
from recr1_lite.train.targets import CHUNK, Budget, Cost, TargetFile, best_of_n, from_endpoint, read_pairs, vote


def sampler(folder, **changes):
    return as_rewriter(tiny_policy(folder, 0.0), PROMPT, tiny_profile(folder, **changes), "tiny")


def lines(path: Path) -> list[dict]:
    """The whole rows of a file of targets, without its settings."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True)[1:] if line.endswith("\n")]


def test_the_vote_takes_the_words_that_most_hold():
    assert vote(["red dress", "a dress", "blue jeans", "dress."]) == 3  # "dress" alone: three of four hold it
    assert vote(["", "skirt", ""]) == 1
    assert vote(["", ""]) == 0


@given(st.lists(st.text(st.characters(codec="ascii"), max_size=12), min_size=1, max_size=6))
def test_the_vote_is_one_of_them_and_case_does_not_matter(queries):
    assert 0 <= vote(queries) < len(queries) and vote(queries) == vote([query.upper() for query in queries])


def test_the_voting_teacher_answers_like_its_file(tiny_folder, tmp_path):
    inner = sampler(tiny_folder)
    found = best_of_n(inner, examples(CHUNK), tmp_path / "t.jsonl", n=3, temperature=1.0, seed=0)
    teacher = targets.VoteRewriter(inner, n=3, temperature=1.0, seed=0)
    answers = teacher.complete(examples(CHUNK)["request"].tolist())
    assert [PROMPT.read(answer.completion).query for answer in answers] == found["rewrite"].tolist()
    assert sum(answer.tokens for answer in answers) == found["tokens"].sum() > 0
    assert inner.temperature == 0.0


def test_best_of_n_by_reward_takes_the_best(tiny_folder, tmp_path):
    table, inner = examples(12), sampler(tiny_folder)
    scorer = Scorer(toy_retriever(), table, PROMPT, 10)
    found = best_of_n(inner, table, tmp_path / "t.jsonl", 6, "reward", 1.0, scorer, seed=3)
    assert found["example_id"].tolist() == table["example_id"].tolist()
    assert (found["score"] >= found["mean_score"]).all() and (found["score"] > found["mean_score"]).any()
    again = [row.ndcg for row in scorer.score(found["example_id"].tolist(), found["rewrite"].tolist())]
    assert again == found["score"].tolist()
    assert Cost.of(found).samples == 72 and Cost.of(found).tokens_generated == found["tokens"].sum() > 72


def test_choices_are_checked_and_other_settings_refused(tiny_folder, tmp_path):
    table, path, inner = examples(4), tmp_path / "t.jsonl", sampler(tiny_folder)
    other = as_rewriter(tiny_policy(tiny_folder, 0.3), PROMPT, tiny_profile(tiny_folder), "tiny")
    best_of_n(inner, table, path, 2)
    before = path.read_bytes()
    for rewriter, options, message in (
        (inner, {"n": 2, "choose": "reward"}, "with a scorer"),
        (inner, {"n": 2, "choose": "mean"}, "vote"),
        (inner, {"n": 3, "seed": 1}, r"other settings \(n, seed\)"),
        (other, {"n": 2}, r"other settings \(adapter\)"),
    ):
        with pytest.raises(RecR1Error, match=message):
            best_of_n(rewriter, table, path, **options)
    best_of_n(inner, table, path, 2)
    assert path.read_bytes() == before, "what is whole stays as it is"


def test_another_engine_does_not_get_the_scores_of_the_first(tiny_folder, tmp_path):
    items = pd.DataFrame({"item_id": ["gold", "lead"], "text": ["w110 w111", "w1 w2"]})

    def scored(k1: float) -> pd.DataFrame:
        scorer = Scorer(BM25Retriever.build(items, k1=k1), examples(4), PROMPT, 10)
        return best_of_n(sampler(tiny_folder), examples(4), tmp_path / "t.jsonl", 2, "reward", scorer=scorer)

    assert len(scored(1.2)) == 4
    with pytest.raises(RecR1Error, match=r"was made with other settings \(scorer\)"):
        scored(3.0)


KILLED = """
import sys; sys.path.insert(0, sys.argv[1])
from test_targets import *
keep = targets.TargetFile.keep
def slowly(self, row):
    keep(self, row); print(len(self.rows), flush=True); time.sleep(0.05)
targets.TargetFile.keep = slowly
best_of_n(sampler(Path(sys.argv[2])), examples(3 * CHUNK), Path(sys.argv[3]) / "killed.jsonl", 3)
"""


def test_a_killed_teacher_run_resumes_with_nothing_lost_or_repeated(tiny_folder, tmp_path):
    expected = best_of_n(sampler(tiny_folder), examples(3 * CHUNK), tmp_path / "whole.jsonl", 3)
    path, command = tmp_path / "killed.jsonl", [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
    process = subprocess.Popen([*command, str(tiny_folder), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == str(CHUNK + 3):  # in the middle of the second chunk
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    path.write_bytes(path.read_bytes()[:-7])  # and within its last row
    kept = lines(path)
    assert CHUNK + 2 <= len(kept) < 3 * CHUNK
    found = best_of_n(sampler(tiny_folder), examples(3 * CHUNK), path, 3)
    assert lines(path)[: len(kept)] == kept  # what was there is as it was
    assert [row["example_id"] for row in lines(path)] == examples(3 * CHUNK)["example_id"].tolist()
    assert found.drop(columns="seconds").equals(expected.drop(columns="seconds"))


@pytest.mark.parametrize("damage", [b"no json\n", b'{"example": 1}\n', b"[]\n"])
def test_a_damaged_line_is_named_and_two_runs_do_not_write_one_file(tmp_path, damage):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"settings": {}}\n{"example_id": "a"}\n' + damage)
    for _ in range(2):  # and the lock is free again
        with pytest.raises(RecR1Error, match="line 3 of"), TargetFile(path, {}):
            pass
    with TargetFile(tmp_path / "u.jsonl", {}), pytest.raises(RecR1Error, match="another run"):
        TargetFile(tmp_path / "u.jsonl", {}).__enter__()


def test_pairs_join_the_training_examples(tmp_path):
    table = examples(4)
    ours = {"request": table["request"][2], "rewrite": "w5", "thought": "so"}
    path = write_jsonl(tmp_path / "pairs.jsonl", [ours, {"request": "of test", "rewrite": "w6", "thought": ""}])
    found = read_pairs(path, table)
    assert found[["example_id", "rewrite", "thought"]].values.tolist() == [["e2", "w5", "so"]]
    assert Cost.of(found) == Cost()
    write_jsonl(path, [{"example_id": "e1", "request": "whatever", "rewrite": "w5"}])
    assert read_pairs(path, table)["request"].tolist() == [table["request"][1]]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"request": "w0"}], "no column 'rewrite'"),
        ([{"rewrite": "w0"}], "no column 'request'"),
        ([{"request": "w0", "rewrite": " "}], "line 1: rewrite is empty"),
        ([{"request": "w0", "rewrite": None}], "line 1: rewrite is empty"),
        ([{"request": "w0", "rewrite": "a"}] * 2, "two rewrites for 'w0'"),
        ([{"request": "nobody", "rewrite": "a"}], "no request of pairs.jsonl is one of the 6"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, rows, message):
    with pytest.raises(RecR1Error, match=message):
        read_pairs(write_jsonl(tmp_path / "pairs.jsonl", rows), examples())


# a paid server


class Shop:
    """What the server answers to everything ("w7"), what it was asked, and where it fails or waits."""

    asked: list[str]
    fail_after, wait, text = 10**9, 0.0, "w7"
    usage: dict | None = {"completion_tokens": 10, "prompt_tokens": 40}

    def __call__(self, path, headers, body) -> tuple[int, str]:
        self.asked.append(body["messages"][-1]["content"])
        time.sleep(self.wait)
        choices = [{"message": {"content": self.text}, "finish_reason": "stop"}]
        return 400 if len(self.asked) > self.fail_after else 200, json.dumps({"choices": choices, "usage": self.usage})


@pytest.fixture
def shop():
    with server(answer := Shop()) as (answer.url, _):
        answer.asked = []
        yield answer


def many(n: int = 12) -> pd.DataFrame:
    """Each request twice."""
    return examples(n).assign(request=[f"w{row // 2}" for row in range(n)])


def client(shop: Shop, **options) -> EndpointRewriter:
    return EndpointRewriter(PROMPT, "m", shop.url, max_tokens=16, retries=0, **options)


def test_equal_requests_are_sent_once(shop, tmp_path):
    found = from_endpoint(client(shop), many(), tmp_path / "t.jsonl")
    assert sorted(shop.asked) == [f"find w{number}" for number in range(6)]
    assert found["rewrite"].tolist() == ["w7"] * 12 and found["example_id"].tolist() == many()["example_id"].tolist()
    assert Cost.of(found).samples == 6 and Cost.of(found).tokens_generated == 60
    from_endpoint(client(shop), many(14), tmp_path / "t.jsonl")
    assert len(shop.asked) == 7  # the new request alone


def test_a_failure_keeps_what_arrived(shop, tmp_path):
    shop.fail_after = 3
    with pytest.raises(RecR1Error, match="answered 400"):
        from_endpoint(client(shop, workers=1), many(), tmp_path / "t.jsonl")
    assert len(shop.asked) == 4 and len(lines(tmp_path / "t.jsonl")) == 6
    shop.fail_after = 10**9
    from_endpoint(client(shop), many(), tmp_path / "t.jsonl")
    assert len(shop.asked) == 7 and len(set(shop.asked)) == 6  # the one that failed, again


def test_the_budget_is_not_passed(shop, tmp_path, capsys):
    priced = Budget(money=0.001, input_price=1.0, output_price=10.0)  # an answer costs 0.00014, at worst a bit more
    found = from_endpoint(client(shop), many(40), tmp_path / "t.jsonl", priced)
    sent = len(shop.asked)
    assert found["money"].sum() == pytest.approx(0.00014 * sent) and 0.0005 < found["money"].sum() <= 0.001
    assert f"{20 - sent} requests are not asked yet" in capsys.readouterr().out
    from_endpoint(client(shop), many(40), tmp_path / "t.jsonl", priced)
    assert len(shop.asked) == sent, "the budget counts what was asked before"


def test_ctrl_c_keeps_what_is_under_way(shop, tmp_path):
    shop.wait = 0.3
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    threading.Timer(0.45, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        from_endpoint(client(shop, workers=2), many(40), tmp_path / "t.jsonl")
    signal.signal(signal.SIGINT, before)
    time.sleep(0.4)
    sent = len(shop.asked)
    assert 2 <= sent < 20 and len(lines(tmp_path / "t.jsonl")) == 2 * sent
    shop.wait = 0.0
    from_endpoint(client(shop), many(40), tmp_path / "t.jsonl")
    assert sorted(shop.asked) == sorted(f"find w{number}" for number in range(20))  # each exactly once


def test_the_thought_is_kept_apart_and_a_silent_server_is_booked_at_the_worst(shop, tmp_path):
    shop.text, shop.usage = "a\nb</think>w7", {"completion_tokens": 4}  # the template opened the thought
    priced = Budget(money=0.001, input_price=1.0, output_price=10.0)
    with pytest.warns(UserWarning, match="booked at the worst") as told:
        found = from_endpoint(client(shop), many(400), tmp_path / "t.jsonl", priced)
    assert len(told) == 1 and set(found["thought"]) == {"a b"} and set(found["rewrite"]) == {"w7"}
    # the prompt at the worst, 4 tokens of answer
    assert found["money"].sum() <= 0.001 and found["money"].max() > 0.00006
    shop.text, shop.asked, shop.usage = "warm <think>or", [], None
    with pytest.warns(UserWarning, match="booked at the worst"):
        cut = from_endpoint(client(shop), many(400), tmp_path / "u.jsonl", priced)
    assert set(cut["rewrite"]) == {""} and set(cut["outcome"]) == {"no_answer"} and len(shop.asked) <= 5
