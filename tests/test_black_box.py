"""One path to the black box: wherever the kit searches, no blank query is sent and no answer passes that is none."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from servers import ITEMS, search_server

from recr1_lite import __main__ as cli
from recr1_lite.deploy.serve import Service
from recr1_lite.evaluate.evaluation import evaluate, evaluate_recommender
from recr1_lite.policy import models, rewriters
from recr1_lite.profiles import PROFILES
from recr1_lite.recipes import comparison
from recr1_lite.recipes.demo import demo
from recr1_lite.recipes.rerank import with_candidates
from recr1_lite.search.base import CallableRetriever, Hits, RetrieverError, check_engine, environment_check, search_all
from recr1_lite.search.engines import BM25Retriever, DenseRetriever, HybridRetriever
from recr1_lite.tasks import load_task
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.train.grpo import train_task
from recr1_lite.train.rewards import Scorer

GOODS = pd.DataFrame(
    [("07", "Oak chair", "a chair of oak"), ("12", "Pine table", "a table of pine"), ("3", "Lamp", "a green lamp")],
    columns=["item_id", "title", "text"],
)
ASKED = pd.DataFrame({"request": [f"green thing {row}" for row in range(9)], "relevant": ["3"] * 9})
PROMPT = Prompt("compact", "find {request}", mode="rewrite")
TASK = load_task("custom", items=GOODS, requests=ASKED, prompt=PROMPT, k_train=5, k_eval=5)
TITLES = dict(zip(GOODS["item_id"], GOODS["title"]))


def answering(answer, fits: bool = True):
    """An engine that gives each query this answer; without `fits`, this is what it gives for all of them."""
    return SimpleNamespace(search=lambda queries, k: [answer] * len(queries) if fits else answer)


def paid(engine, query: str = "lamp") -> float:
    scorer = Scorer(engine, TASK.train, TASK.prompt, 5)
    return scorer.score(TASK.train["example_id"][:1].tolist(), [query])[0].ndcg


def scored(engine, query: str = "lamp") -> float:
    result = evaluate(lambda texts: [query] * len(texts), TASK, engine, "val", progress=False)
    return result.summary[result.metric].mean


PLACES = {
    "reward": paid,
    "evaluation": scored,
    "candidates": lambda engine: with_candidates(TASK.val, engine, GOODS, 2),
    "server": lambda engine: Service(None, engine, TITLES).hits(["lamp"], 5),
    "a function": lambda engine: CallableRetriever(engine.search).search(["lamp"], 5),
    "half of a fusion": lambda engine: HybridRetriever([BM25Retriever.build(GOODS), engine]).search(["lamp"], 5),
}
NEVER = {  # no list of hits, whatever the catalogue holds
    "a lone id": "3",
    "bytes": b"37",
    "a set": {"3"},
    "nothing": None,
    "a number": 3,
    "read only once": (item for item in ["3"]),
    "a truth for an id": Hits([True], [1.0]),
    "a fraction for an id": [3.0],
    "bytes for an id": [b"37"],
    "two lists that are no Hits": (["3"], [1.0]),
    "a lone id in Hits": Hits("3", [1.0]),
    "too few scores": Hits(["3", "12"], [1.0]),
    "no scores": Hits(["3"], None),
    "not a number": Hits(["3"], [math.nan]),
    "without end": [("3", math.inf)],
    "a text for a score": Hits(["3"], ["high"]),
    "a score that no float holds": [("3", 10**400)],
}
STRAY = {  # no list of hits of this catalogue
    "twice": Hits(["3", "3", "12"], [3.0, 2.0, 1.0]),
    "twice, as number and text": [3, "3"],
    "of another catalogue": Hits(["gone"], [1.0]),
    "a number that lost its zero": Hits([7], [1.0]),
    "spaces": ["3 "],
}
WHOLE = {"nothing": None, "one text": "3", "lone hits": Hits([], []), "by query": {"lamp": ["3"]}, "many": [[]] * 99}
ANSWERS = [(answering(wrong), f"{name}, each", PLACES) for name, wrong in NEVER.items()]
ANSWERS += [(answering(wrong), name, list(PLACES)[:4]) for name, wrong in STRAY.items()]
ANSWERS += [(answering(wrong, fits=False), f"{name}, in all", PLACES) for name, wrong in WHOLE.items()]
CASES = [pytest.param(place, engine, id=f"{place}-{name}") for engine, name, places in ANSWERS for place in places]


@pytest.mark.parametrize("place, engine", CASES)
def test_an_answer_that_is_none_is_told_in_one_sentence_with_its_query(place, engine):
    with pytest.raises(RetrieverError, match="'lamp'|'green thing") as caught:
        PLACES[place](engine)
    assert "\n" not in str(caught.value)


def test_what_is_said_of_ids_that_the_catalogue_lacks(tmp_path, monkeypatch, capsys):
    said = r"for 'lamp' the retriever found '7', which the catalogue lacks \(ids there look like '07'\); build its inde"
    with pytest.raises(RetrieverError, match=said):
        paid(answering([7]))
    with pytest.raises(RetrieverError, match="peak found 'gone', which the catalogue lacks"):
        evaluate_recommender(SimpleNamespace(name="peak", recommend=lambda rows, k: [["gone"]] * len(rows)), TASK)
    # and behind the command line
    monkeypatch.setattr(models, "load_policy", lambda *_, **__: None)
    monkeypatch.setattr(rewriters, "as_rewriter", lambda *_: rewriters.RawRewriter())
    for table, name in ((GOODS, "items"), (ASKED, "requests")):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    with search_server(answering(["gone"])) as url:
        named = ["--task", "custom", "--items", "items.csv", "--requests", "requests.csv", "--retriever", url]
        assert cli.main(["inspect", "green lamp", *named, "--profile", "smoke"]) == 2
    assert "for 'green lamp' the retriever found 'gone', which the catalogue lacks" in capsys.readouterr().err


RIGHT = {
    "hits": Hits(["12", "3"], [2.0, 1.0]),
    "scores that rise": Hits(["12", "3"], [1.0, 2.0]),
    "a whole number": Hits(["12", 3], [2.0, 1.0]),
    "numbers of NumPy": [np.int64(12), np.int32(3)],
    "an array": np.array(["12", "3"]),
    "pairs": [["12", np.float32(0.5)], ("3", 0)],
}


@pytest.mark.parametrize("answer", RIGHT.values(), ids=RIGHT)
def test_reward_and_evaluation_read_an_answer_alike(answer):
    assert paid(answering(answer)) == scored(answering(answer)) == pytest.approx(1 / math.log2(3))


BLANK = ["", "  \n", "\u00a0", "\u200b\u200d", "\ufeff", "\u00ad \u2060", "\u3164", "\ufe0f", "\x00"]


@pytest.mark.parametrize("query", BLANK, ids=ascii)
def test_a_blank_query_is_never_asked_and_has_no_hits(query):
    def refuses(queries, k):
        queries, before = list(queries), queries.clear()  # nor does it matter what an engine does to its list
        assert before is None and all(text.startswith("green thing") for text in queries), queries
        return [["3"] for _ in queries]

    engine = CallableRetriever(refuses)
    assert paid(engine, query) == scored(engine, query) == 0 and paid(engine, "green thing here") == 1
    dense = DenseRetriever.build(GOODS, lambda texts: np.ones((len(texts), 2)))
    assert dense.search([query], 2) == [Hits([], [])]


def test_each_distinct_query_is_asked_once_and_more_hits_than_asked_for_are_cut():
    asked = []
    counting = SimpleNamespace(search=lambda queries, k: asked.extend(queries) or [[query] for query in queries])
    hits = search_all(counting, ["x", "", "y", "x"], 5)
    assert [hit.ids for hit in hits] == [["x"], [], ["y"], ["x"]] and asked == ["x", "y"]
    more = answering(Hits(["12", "3", "07", "x", "y", "y"], [1.0] * 6))
    assert search_all(more, ["lamp"], 3, TITLES) == [Hits(["12", "3", "07"], [1.0] * 3)]


def changed(query=str, hits=list, k=int):
    """BM25 whose queries, ids or cut-offs are changed on the way."""
    inner = BM25Retriever.build(ITEMS)

    def search(queries, cutoff):
        return [hits(found.ids) for found in inner.search([query(text) for text in queries], k(cutoff))]

    return SimpleNamespace(search=search)


ONCE, EMPTY = "hits are items of the catalogue, each once", "an empty query has no hits"
# what is changed, the rule that breaks, and whether nothing can be trained then
BROKEN = [
    (dict(query=lambda query: query.partition(" ")[2]), "one word finds its documents", False),  # loses the first word
    (dict(query=lambda query: query.partition(" ")[2]), "order never matters", False),
    (dict(query=lambda query: query if query.islower() else ""), "case never matters", False),
    (dict(query=lambda query: query.replace('"', "qq")), "quotes, brackets and operators do no harm", False),
    (dict(query=lambda query: "dress" if "zq" in query else query), "an unknown word has no hits", False),
    (dict(query=lambda query: "dress" if "?" in query else query), EMPTY, False),
    (dict(query=lambda query: query or "dress"), EMPTY, False),
    (dict(hits=lambda ids: ids[:1] + ids), ONCE, True),
    (dict(hits=lambda ids: ["other"] * bool(ids)), ONCE, True),
    (dict(hits=lambda ids: random.sample(ids, len(ids))), "the same search gives the same list", True),
    (dict(k=lambda k: 100), "at most k hits", True),
]


@pytest.mark.parametrize("change, rule, fatal", BROKEN)
def test_the_environment_check_catches(change, rule, fatal, capsys):
    engine = changed(**change)
    found = {rule.name: rule for rule in environment_check(engine, ITEMS, n=30)}
    assert not found[rule].passed and found[rule].detail.startswith("broken by '")
    random.seed(2)  # for a fair chance of another order in a short check
    if fatal:
        with pytest.raises(RetrieverError, match="does not hold for the search engine .broken by '.*; mend it first"):
            check_engine(engine, ITEMS)
    else:
        check_engine(engine, ITEMS)
        assert f"{rule!r} is broken by '" in capsys.readouterr().err


def test_a_sound_engine_gets_one_line_and_leaves_all_random_states_alone(capsys):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for engine in (changed(), changed(query=lambda query: query or 1 / 0)):  # a blank query may be refused
        check_engine(engine, ITEMS)
        assert capsys.readouterr() == ("the search engine holds to all 10 rules of a bag of words\n", "")
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_the_check_of_a_large_catalogue_and_of_one_without_a_word_asks_little():
    asked = []

    def search(queries, k):
        asked.extend((query, k) for query in queries)
        return [[]] * len(queries)

    items = pd.DataFrame({"item_id": range(50_000), "text": [f"word{row} and more{row}" for row in range(50_000)]})
    for catalogue in (items, items.assign(text="!")):
        asked.clear()
        check_engine(SimpleNamespace(search=search), catalogue)
        assert len(asked) < 60 and max(k for _, k in asked) <= 1000


def test_long_work_begins_with_the_check(tmp_path, monkeypatch):
    bad, profile = answering(["gone"]), PROFILES["smoke"]
    monkeypatch.setattr(comparison.BM25Retriever, "build", lambda items: bad)
    for start in (
        lambda: train_task(None, TASK, bad, profile, tmp_path / "a"),
        lambda: demo(profile, tmp_path / "b", task=TASK, retriever=bad),
        lambda: comparison.compare_methods(profile, tmp_path / "c", task=TASK, teach=str),
    ):
        with pytest.raises(RetrieverError, match="does not hold for the search engine"):
            start()
    assert not list(tmp_path.iterdir())
