"""The little server: rewrites and results as JSON, a page to try it, OpenAI clients, and what it refuses."""

import importlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import httpx
import pandas as pd
import pytest
from tiny import PROMPT, requests, save_tiny, tiny_policy, tiny_profile

from recr1_lite.common import RecR1Error
from recr1_lite.deploy import serve
from recr1_lite.deploy.serve import Service, serving
from recr1_lite.policy.models import save_adapter
from recr1_lite.policy.rewriters import EndpointRewriter, ModelRewriter, RawRewriter
from recr1_lite.search.base import CallableRetriever
from recr1_lite.search.engines import BM25Retriever

NAMES = [f"i{number}" for number in range(40)]
TITLES = {name: f'<b>item</b> & {name[1:]} "q"' for name in NAMES}
TEXTS = [f"w{number} w{number + 1} w{number % 7}" for number in range(40)]
ITEMS = pd.DataFrame({"item_id": NAMES, "title": TITLES.values(), "text": TEXTS})
USER = {"role": "user"}


@pytest.fixture(scope="module")
def service(tiny_folder) -> Service:
    rewriter = ModelRewriter(tiny_policy(tiny_folder), PROMPT, "tiny", 5, 4, max_prompt_tokens=64)
    return Service(rewriter, BM25Retriever.build(ITEMS), TITLES)


@pytest.fixture(scope="module")
def url(service):
    with serving(service.app()) as found:
        yield found


def post(url: str, body: object, path: str = "/search", how: str = "POST") -> httpx.Response:
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    return httpx.request(how, url + path, content=content, trust_env=False, timeout=60)


def get(url: str, **options) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=60, **options)


def test_a_request_is_rewritten_and_answered(service, url):
    reply = post(url, {"request": "w3 w9", "k": 2})
    assert reply.status_code == 200 and reply.headers["Content-Type"] == "application/json"
    found = reply.json()
    (answer,) = service.rewriter.complete(["w3 w9"])
    said = [found[key] for key in ("request", "rewrite", "query", "outcome")]
    assert said == ["w3 w9", answer.completion, answer.query, answer.outcome]
    (hits,) = service.retriever.search([answer.query], 2)
    assert [hit["item_id"] for hit in found["results"]] == hits.ids and len(hits.ids) == 2
    assert [hit["score"] for hit in found["results"]] == pytest.approx(hits.scores)
    assert all(hit["title"] == TITLES[hit["item_id"]] for hit in found["results"])
    odd = post(url, b'{"request": "w1 \\ud800 <|im_end|> <|im_start|>"}')  # half a character, tags of the chat
    assert odd.status_code == 200 and odd.json()["request"] == "w1 ? <|im_end|> <|im_start|>"


def test_many_requests_in_one_call_and_their_order(service, url):
    found = post(url, {"request": requests(6)}).json()  # more than one batch
    assert [one["request"] for one in found] == requests(6)
    batches = requests(6)[:4], requests(6)[4:]
    assert [one["query"] for one in found] == [one.query for part in batches for one in service.rewriter.complete(part)]
    assert all(len(one["results"]) <= 10 for one in found)


@pytest.mark.parametrize(
    "body, message",
    [
        *((body, "no JSON object") for body in (b"", b"{", b"[1]", b"[" * 100_000, b"\xff\xfe")),
        ({}, '"request" is no text'),
        *(({"request": blank}, "an empty one") for blank in ("", " \n")),
        *(({"request": wrong}, "no text") for wrong in (5, None, ["w1", 2])),
        ({"request": []}, "0 requests in one call; send 1 to 32"),
        ({"request": ["w1"] * 33}, "33 requests"),
        ({"request": "w" * 4001}, "a request has 4001 letters and 4000 are allowed"),
        ({"request": " ".join(["w1"] * 70)}, "a prompt has .* tokens and the limit is 64"),
        ({"request": "w1", "k": 0}, '"k" is 0; send a whole number'),
        *(({"request": "w1", "k": k}, f'"k" is {json.dumps(k)}') for k in (101, "5", True, 2.5)),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_sentence(url, body, message):
    reply = post(url, body)
    assert reply.status_code == 400
    said = reply.json()["error"]["message"]
    assert re.search(message, said) and "\n" not in said
    assert get(url + "/health").json()["status"] == "ok", "it goes on"


def test_other_addresses_and_too_large_a_body(url):
    for how, path in (("POST", "/elsewhere"), ("GET", "/elsewhere"), ("PUT", "/search")):
        assert post(url, b"x", path, how).status_code == 404
    for body in (b"x" * (serve.BODY + 1), iter([b"x" * serve.BODY, b"x"])):  # with its length said, and without
        reply = post(url, body)
        assert reply.status_code == 413 and "bytes and 1048576 are allowed" in reply.json()["error"]["message"]


def raw(url: str, data: bytes) -> bytes:
    """What comes back for these very bytes."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as line:
        line.sendall(data)
        return b"".join(iter(lambda: line.recv(65_536), b""))


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n{}",
        b"POST /search HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_answered_in_json(url, data):
    head, _, body = raw(url, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and "no HTTP request" in json.loads(body)["error"]["message"]


def test_a_fault_is_one_sentence_and_no_path_goes_out(service, capfd):
    def broken(*_):
        raise KeyError("/home/somebody/model")

    rewriter = ModelRewriter(service.rewriter.policy, PROMPT, "b", 5)
    rewriter.complete = broken
    search = Service(service.rewriter, CallableRetriever(broken), {})
    with serving(search.app()) as one, serving(Service(rewriter, None, {}).app()) as two:
        for url, status in ((one, 502), (two, 500)):
            reply = post(url, {"request": "w1"})
            assert reply.status_code == status and set(reply.json()["error"]) == {"message"}
            assert "its log says why" in reply.text and "somebody" not in reply.text + get(url + "/?q=w1").text
    said = capfd.readouterr().err
    assert "RetrieverError" in said and "KeyError" in said and "test_serve.py:" in said and "Traceback" not in said


def test_a_client_that_goes_away_and_half_a_character_of_a_title_are_no_fault(service, capfd):
    with serving(Service(service.rewriter, service.retriever, dict.fromkeys(TITLES, "\ud800")).app()) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            client.sendall(b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
            time.sleep(0.3)
        time.sleep(0.3)
        assert post(url, {"request": "w1"}).status_code == get(url + "/?q=w1").status_code == 200
    assert capfd.readouterr().err == ""


def test_the_page_shows_both_and_escapes_everything(service, url):
    empty = get(url + "/")
    assert empty.status_code == 200 and "text/html" in empty.headers["Content-Type"] and "<form" in empty.text
    asked = '"><script>alert(1)</script> w3'
    page = get(url + "/", params={"q": asked})
    assert page.status_code == 200 and "<script" not in page.text and "<b>item" not in page.text
    assert "&lt;script&gt;" in page.text and "&lt;b&gt;item&lt;/b&gt; &amp; 3" in page.text
    assert "The request itself" in page.text and "With the rewrite" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "http" not in page.text, "nothing from elsewhere"
    raw = RawRewriter().complete([asked])[0].query
    assert TITLES[service.retriever.search([raw], 1)[0].ids[0]].split()[2] in page.text
    long = get(url + "/", params={"q": "w" * 4001})
    assert long.status_code == 400 and "4001 letters" in long.text


def test_openai_clients(service, url):
    rewriter = EndpointRewriter(PROMPT, "tiny", url + "/v1", max_tokens=5)
    assert rewriter.rewrite(requests(3)) == [service.rewriter.complete([request])[0].query for request in requests(3)]
    turn = {"role": "user", "content": [{"type": "text", "text": "find w1"}]}
    chat = {"messages": [turn], "temperature": 0, "max_completion_tokens": 3}
    reply = post(url, chat, "/v1/chat/completions").json()
    assert reply["choices"][0]["message"]["role"] == "assistant" and reply["usage"]["completion_tokens"] <= 3
    assert get(url + "/v1/models").json()["data"][0]["id"] == service.rewriter.policy.name


@pytest.mark.parametrize(
    "change, message",
    [
        *(({"messages": wrong}, '"messages" is no list of turns') for wrong in ([], "hi", ["hi"])),
        ({"stream": True}, "does not stream"),
        ({"messages": [{"content": "hi"}]}, "a turn has no role"),
        ({"messages": [USER]}, 'content" is no text'),
        ({"messages": [USER | {"content": [{"type": "image_url"}]}]}, 'content" is no text'),
        ({"messages": [USER | {"content": "w1 " * 12000}]}, "more than 32000 letters"),
        ({"messages": [USER | {"content": "w1 " * 70}]}, "tokens and the limit is 64"),
        ({"max_tokens": 10**9}, '"max_tokens" is 1000000000; send a number up to 1024'),
        ({"max_tokens": "many"}, '"max_tokens" is "many"'),
        ({"temperature": -1}, '"temperature" is -1'),
        ({"temperature": float("nan")}, '"temperature" is NaN'),
        ({"messages": [USER | {"role": ["user"], "content": "hi"}]}, '"role" is no text'),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "nothing is asked"),
    ],
)
def test_chats_that_are_refused(url, change, message):
    reply = post(url, {"messages": [USER | {"content": "hi"}]} | change, "/v1/chat/completions")
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]


def test_one_generation_at_a_time_and_a_busy_server_says_so(service, monkeypatch):
    running, most, over = [], [], threading.Event()

    class Slow(ModelRewriter):
        def complete(self, asked):
            running.append(asked)
            most.append(len(running))
            over.wait(30 if asked == ["long"] else 0.15)
            running.remove(asked)
            return super().complete(asked)

    slow = Slow(service.rewriter.policy, PROMPT, "slow", 5, max_prompt_tokens=64)
    with serving(Service(slow, service.retriever, TITLES).app()) as url, ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda text: post(url, {"request": text}), requests(4)))
        assert [reply.status_code for reply in replies] == [200] * 4 and set(most) == {1}
        monkeypatch.setattr(serve, "WAIT", 0.01)
        long = pool.submit(post, url, {"request": "long"})
        while not running:
            time.sleep(0.01)
        reply, page = post(url, {"request": "w1"}), get(url + "/?q=w1")
        assert reply.status_code == page.status_code == 503 and get(url + "/health").status_code == 200
        assert "busy with other requests" in reply.json()["error"]["message"] and "busy" in page.text
        monkeypatch.setattr(Service, "queue", 1)  # and so does one with too many in the queue
        monkeypatch.setattr(serve, "WAIT", 60)
        assert int(post(url, {"request": "w1"}).headers["Retry-After"]) > 0
        over.set()
        assert long.result().status_code == post(url, {"request": "w1"}).status_code == 200


TASK = types.SimpleNamespace(prompt=PROMPT, items=ITEMS)


def command(**changes) -> types.SimpleNamespace:
    known = {"adapter": None, "model": None, "port": 0, "host": "127.0.0.1", "k": 5}
    return types.SimpleNamespace(**(known | changes))


def test_what_the_command_refuses(tiny_folder, tmp_path, url):
    adapter = str(save_adapter(tiny_policy(tiny_folder), tmp_path / "adapter"))
    for arguments, message in (
        (command(adapter=adapter, model="m"), "not both"),
        (command(k=0), "--k 0 is not served"),
        (command(model=adapter), "give it with --adapter"),
        (command(adapter="nowhere"), "there is no adapter"),
    ):
        with pytest.raises(RecR1Error, match=message):
            serve.run(arguments, tiny_profile(tiny_folder), TASK, None)
    taken = int(url.rpartition(":")[2])
    with pytest.raises(RecR1Error, match="cannot be served on .*give another --port"), serving(None, taken):
        pass


SERVED = """
import sys, time
sys.path.insert(0, "tests")
from test_serve import *
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
answer = ModelRewriter.complete
def complete(self, asked):
    if asked == ["stuck"]:
        print("at work", flush=True)
        time.sleep(60)
    return answer(self, asked)
ModelRewriter.complete = complete
serve.run(command(model=sys.argv[1], host="0.0.0.0"), tiny_profile("none"), TASK, BM25Retriever.build(ITEMS))
"""


@pytest.mark.parametrize("stuck", [False, True])
def test_it_serves_until_ctrl_c_which_waits_for_no_answer_and_no_open_line(tmp_path, stuck):
    model = save_tiny(tmp_path / "my-model")
    child = subprocess.Popen([sys.executable, "-c", SERVED, str(model)], stdout=-1, stderr=-1, text=True)
    late = threading.Timer(120, child.kill)  # on a machine too busy for this it fails, instead of waiting for ever
    late.start()
    try:
        port = int(re.match(r"my-model answers at http://0.0.0.0:(\d+): ", child.stdout.readline())[1])
        assert "nobody is asked for a key" in child.stdout.readline()
        url, place = f"http://127.0.0.1:{port}", ("127.0.0.1", port)
        found, health = post(url, {"request": "w3"}).json(), get(f"{url}/health").text
        assert found["request"] == "w3" and len(found["results"]) <= 5
        assert "my-model" in health and str(tmp_path) not in health
        lines = [socket.create_connection(place) for _ in range(6)]
        lines[0].sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")  # stays open
        assert b"200 OK" in lines[0].recv(4096)
        lines[1].sendall(b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")  # never ends
        for line in lines[2:] if stuck else ():  # one is being answered for a minute, three wait
            line.sendall(b'POST /search HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n{"request": "stuck"}')
        assert not stuck or child.stdout.readline() == "at work\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert out == "\nstopped serving\n" and not err and child.returncode == 0
    finally:
        late.cancel()
        child.kill()
    with pytest.raises(httpx.TransportError):
        get(f"{url}/health")


@pytest.mark.parametrize("missing", ["starlette.applications", "uvicorn"])
def test_without_the_extra_its_name_is_told(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, serve.__name__)
    with pytest.raises(RecR1Error, match=r"needs starlette and uvicorn; run pip install -e \"\.\[server\]\""):
        importlib.import_module(serve.__name__)
