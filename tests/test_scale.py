"""When one machine is too small: the search server, asked by the retriever it is for; a task in the files of verl."""

import json
import random
import runpy
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import ITEMS, server
from test_remote import LOCAL, QUERIES
from tiny import PROMPT, requests, tiny_profile, tiny_tokenizer
from transformers import AutoTokenizer

from recr1_lite.__main__ import main
from recr1_lite.common import RecR1Error
from recr1_lite.deploy import scale
from recr1_lite.deploy.scale import SearchService, export_verl
from recr1_lite.deploy.serve import serving
from recr1_lite.search.remote import JSONRetriever
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.prompts import PROMPTS, STYLES, format_answer, parse
from recr1_lite.train.rewards import RECIPES, Scorer, reward


def shop(prompt=PROMPT) -> Task:
    """Graded requests over ITEMS, one with a special token in it."""
    rng, ids = random.Random(0), ITEMS["item_id"].tolist()

    def rows(split: str, n: int) -> pd.DataFrame:
        asked = [f"{text} {split} {at}" + " <|im_end|>" * (at == 1) for at, text in enumerate(requests(n))]
        wanted = [dict(zip(rng.sample(ids, 3), (1.0, 0.1, 0.01))) for _ in asked]
        gone = [[item for item in rng.sample(ids, 2) if item not in some] for some in wanted]
        columns = {"request": asked, "relevant": wanted, "exclude": gone}
        return pd.DataFrame({"example_id": [f"{split}{at}" for at in range(n)], **columns})

    items = ITEMS.assign(title=ITEMS["item_id"])
    return Task("shop", items, rows("train", 12), rows("val", 6), rows("test", 6), prompt, 4, 4, ("ndcg@4",))


@pytest.fixture(scope="module")
def url():
    with serving(SearchService(LOCAL, shop(replace(PROMPT, mode="expand", weight=2))).app()) as found:
        yield found


def post(url: str, body: object, path: str = "/search") -> httpx.Response:
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    return httpx.post(url + path, content=content, trust_env=False, timeout=60)


def test_the_same_hits_as_here_and_they_are_counted(url):
    for k in (1, 3, 1000):
        assert JSONRetriever(url + "/search", batch_size=2).search(QUERIES, k) == LOCAL.search(QUERIES, k)
    assert post(url, {"queries": [" ", "\ud800"]}).json() == {"results": [[], []]}
    rewrite = {"queries": ["swim", ""], "requests": ["red dress", "silk"], "k": 4}
    found = [[hit["id"] for hit in hits] for hits in post(url, rewrite).json()["results"]]
    assert found == [hits.ids for hits in LOCAL.search(["red dress swim swim", "silk"], 4)]
    post(url, b"nonsense")
    lines = httpx.get(url + "/metrics", trust_env=False).text.splitlines()
    assert lines[:2] == ["# TYPE recr1_search_requests_total counter", f"recr1_search_requests_total {3 * 3 + 3}"]
    assert {f"recr1_search_queries_total {3 * 6 + 4}", "recr1_search_errors_total 1"} < set(lines)
    assert float(lines[-1].removeprefix("recr1_search_seconds_total ")) > 0
    health = httpx.get(url + "/health", trust_env=False).json()
    assert health == {"status": "ok", "task": "shop", "engine": "BM25Retriever"}


@pytest.mark.parametrize(
    "body, message",
    [
        *((body, "no JSON object") for body in (b"", b"{", b"[1]", b"[" * 100_000, b"\xff\xfe")),
        *(({"queries": wrong}, '"queries" is no list of texts') for wrong in (None, "red", {"a": 1}, ["red", 1])),
        ({"queries": ["red"], "requests": []}, "0 requests for 1 queries"),
        ({"queries": ["red"] * 1025}, "has 1025 texts, or one that is too long"),
        ({"queries": ["r" * 32_001]}, "send at most 1024 texts of 32000 letters"),
        *(({"queries": ["red"], "k": k}, f'"k" is {json.dumps(k)}') for k in (0, -1, 10_001, 1.5, "5", True, None)),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(url, body, message):
    reply = post(url, body)
    said = reply.json()["error"]["message"]
    assert reply.status_code == 400 and message in said and "\n" not in said
    assert post(url, b"x", "/elsewhere").status_code == 404 and post(url, b"x" * (1 << 20) + b"x").status_code == 413


def test_no_answer_waits_for_its_second_part(monkeypatch):
    made, create = [], socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda place: made.append(create(place)) or made[0])
    with serving(SearchService(LOCAL).app()) as url, socket.create_connection(made[0].getsockname()):
        assert httpx.get(url + "/health", trust_env=False).status_code == 200
        assert made[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_command(tmp_path, monkeypatch):
    (tmp_path / "items.csv").write_text("item_id,title,text\na,Dress,a red dress of silk\nb,Coat,a warm coat\n")
    (tmp_path / "asked.csv").write_text("request,relevant\n" + "".join(f"dress {i},a\n" for i in range(12)))
    files, made = ["--items", str(tmp_path / "items.csv"), "--requests", str(tmp_path / "asked.csv")], []
    monkeypatch.setattr(scale, "until_stopped", lambda *given: made.append(given))
    assert main(["search-server", "--task", "custom", "--port", "0", *files]) == 0
    (service, arguments, words), said = made[0], "BM25Retriever over the 2 items of custom answers at http://x/search: "
    assert arguments.port == 0 and words("http://x").startswith(said)
    assert [hit["id"] for hit in service.search({"queries": ["warm"]})["results"][0]] == ["b"]


def made(tmp_path, tiny_folder, task: Task, **changes):
    """The exported folder."""
    return export_verl(task, tiny_profile(tiny_folder, max_prompt_tokens=200, **changes), tmp_path / "verl")


def loaded(folder) -> SimpleNamespace:
    """Its reward file."""
    return SimpleNamespace(**runpy.run_path(str(folder / "reward.py")))


@pytest.mark.parametrize("prompt", [PROMPT, replace(PROMPT, prefix='w1 "\\n', system="w2"), PROMPTS["paper"]])
def test_rows_read_back_to_the_same_prompts_and_targets_and_no_test(tmp_path, tiny_folder, prompt):
    task = shop(prompt)
    folder = made(tmp_path, tiny_folder, task)
    names = "launch.sh reward.py tokenizer train.parquet val.parquet"
    assert " ".join(sorted(path.name for path in folder.iterdir())) == names
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    for split, frame in (("train", task.train), ("val", task.val)):
        found = pd.read_parquet(folder / f"{split}.parquet").to_dict("records")
        assert len(found) == len(frame)
        for row, example in zip(found, frame.to_dict("records")):
            text = tokenizer.apply_chat_template(list(row["prompt"]), tokenize=False, add_generation_prompt=True)
            assert text == prompt.render(tiny_tokenizer(), example["request"])
            truth, told = row["reward_model"]["ground_truth"], row["extra_info"]
            assert dict(zip(truth["target"], truth["gain"])) == example["relevant"]
            known = {"split": split, "index": told["index"], **example, "exclude": told["exclude"]}
            assert told == {name: known[name] for name in told}
            assert list(told["exclude"]) == example["exclude"] and known["index"] < len(frame)
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"test0" not in everything and b"train0" in everything
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import reward; "
    code += "sys.exit(bool({'torch', 'numpy', 'recr1_lite'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-I", "-c", code]).returncode == 0


def completions(rng: random.Random, style: str, n: int) -> list[str]:
    """Answers good and bad."""
    words = " ".join(ITEMS["text"]).split()
    queries = [" ".join(rng.choices(words, k=rng.randint(0, 30))) for _ in range(n)]
    good = [format_answer(query, rng.choice([style, style, style, *STYLES])) for query in queries]
    return [text[: rng.choice([len(text), rng.randint(0, len(text))])] for text in good]


def paid(folder, texts: list[str], url: str) -> list[dict]:
    """What the reward file pays for each text, by threads at once, as verl calls it."""
    rows, module = pd.read_parquet(folder / "train.parquet").to_dict("records"), loaded(folder)

    def one(at: int) -> dict:
        row = rows[at % len(rows)]
        known = row["data_source"], texts[at], row["reward_model"]["ground_truth"], row["extra_info"]
        return module.compute_score(*known, url=url, reward_router_address=None)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(len(texts))))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_reward_file_pays_what_the_trainer_pays(tmp_path, tiny_folder, recipe):
    style = {"paper": "paper", "ndcg": "compact", "gain_over_raw": "json", "length_penalised": "think"}[recipe]
    prompt = replace(PROMPTS[style], mode="expand" if style == "json" else "rewrite", distinct=style == "compact")
    task, texts = shop(prompt), completions(random.Random(1), style, 200)
    folder = made(tmp_path, tiny_folder, task, recipe=recipe)
    asked = [task.train["example_id"].iloc[at % len(task.train)] for at in range(len(texts))]
    rows = Scorer(LOCAL, task.train, prompt, task.k_train).score(asked, texts)
    service = SearchService(LOCAL, task)
    with serving(service.app()) as url:
        found = paid(folder, texts, url + "/search")
        assert service.counts["requests"] < service.counts["queries"], "threads ask together"
    assert [one["score"] for one in found] == pytest.approx([reward(recipe, row) for row in rows])
    assert [one["read"] for one in found] == [float(row.outcome == "ok") for row in rows]
    assert len({round(one["score"], 6) for one in found}) > 10


TAGS = '<think>|</think>|<answer>|</answer>|{"query": "|"}|{|\n|- |Keywords:|```|red|é\ud800'.split("|")


@pytest.fixture(scope="module")
def read(tmp_path_factory, tiny_folder):
    return loaded(made(tmp_path_factory.mktemp("read"), tiny_folder, shop())).parse


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(), st.lists(st.sampled_from(TAGS)).map("".join)), st.sampled_from(STYLES), st.booleans())
def test_the_reward_file_reads_as_the_kit_does(read, text, style, truncated):
    assert tuple(read(text, style, truncated)) == tuple(parse(text, style, truncated))


def test_a_search_that_fails_is_no_reward(tmp_path, tiny_folder, monkeypatch):
    folder, waits = made(tmp_path, tiny_folder, shop()), []
    monkeypatch.setattr("time.sleep", waits.append)
    for status in (400, 503):
        with server(lambda *_, status=status: (status, "no"), "/search") as (url, seen):
            with pytest.raises(ValueError, match=f"answered {status}: no"):
                paid(folder, ["red"], url)
        assert len(seen) == {400: 1, 503: 6}[status]
    with pytest.raises(ValueError, match="cannot be reached .* start it with python -m recr1_lite"):
        paid(folder, ["red"], url)


def test_what_export_verl_refuses(tmp_path, tiny_folder):
    with pytest.raises(RecR1Error, match="a prompt has .* tokens and the limit is 5"):
        export_verl(shop(), tiny_profile(tiny_folder, max_prompt_tokens=5), tmp_path / "verl")
    with pytest.raises(RecR1Error, match="the tokenizer of .* cannot be had"):
        made(tmp_path, tmp_path, shop())
    assert not (tmp_path / "verl").exists()


@pytest.mark.slow
def test_the_reward_file_in_ray_workers(tmp_path, tiny_folder):
    ray, task = pytest.importorskip("ray"), shop()
    file, texts = str(made(tmp_path, tiny_folder, task) / "reward.py"), completions(random.Random(2), "compact", 40)

    def work(some: list[str], url: str) -> list[dict]:
        known = [{"target": ["d1"], "gain": [1.0]}] * len(some), [{"request": "x", "exclude": []}] * len(some)
        return runpy.run_path(file)["compute_scores"](["shop"] * len(some), some, *known, url)

    with serving(SearchService(LOCAL, task).app()) as url:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            parts = [ray.remote(work).remote(texts[at::2], url + "/search") for at in range(2)]
            assert ray.get(parts) == [work(texts[at::2], url + "/search") for at in range(2)]
        finally:
            ray.shutdown()
