"""A real HTTP server on this machine that answers as a test says, and what all tests of search share."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import RetrieverError, search_all

ITEMS = pd.DataFrame(
    [
        ("d1", "A red summer dress with pockets; the dress runs small."),
        ("d2", "Blue denim jeans, slim and stretchy. No pockets!"),
        ("d3", "Warm wool sweater in red and blue, great for winter"),
        ("d4", "Silk blouse. Elegant, buttons down the back"),
        ("d5", "Summer shorts in denim with a drawstring"),
        ("d6", "Café-style apron, naïve print, size 42"),
        *((item, "Swim suit, two pieces, runs large") for item in ("d7", "d8", "d9")),
    ],
    columns=["item_id", "text"],
)


def refuses_bad_searches(search):
    for k in (0, -3, 1.5, "10", None, True):
        with pytest.raises(RecR1Error, match="cut-off k must be a whole number"):
            search(["red"], k)
    with pytest.raises(RetrieverError, match="list of queries, not one string"):
        search("red dress", 5)
    for wrong in (None, float("nan"), 1):
        with pytest.raises(RetrieverError, match=f"query 1 is {wrong!r}"):
            search(["red", wrong], 5)


@contextmanager
def server(answer, root="/v1"):
    """A server that calls answer(path, headers, body) -> (status, text) or (status, text, headers); gives its
    URL and a list of (path, headers, body) as they come in. A body that is no JSON comes as text."""
    seen: list[tuple] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            try:
                body = json.loads(body)
            except ValueError:
                pass
            seen.append((self.path, {name.title(): value for name, value in self.headers.items()}, body))
            status, text, *headers = answer(self.path, self.headers, body)
            content = text if isinstance(text, bytes) else text.encode()
            try:
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the client went away
                pass

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}{root}", seen
    finally:
        running.shutdown()
        running.server_close()


def in_turn(*answers):
    """Give these answers one after the other, the last one for ever."""
    left = list(answers)
    return lambda *_: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def search_server(retriever):
    """Any retriever behind JSONRetriever's contract, as a service of a user's would be; gives its URL."""

    def answer(_, __, asked):
        try:
            hits = search_all(retriever, asked["queries"], asked["k"])
        except Exception as error:
            return 400, json.dumps({"error": {"message": f"{type(error).__name__}: {error}"}})
        results = [[{"id": item, "score": score} for item, score in zip(*pair, strict=True)] for pair in hits]
        return 200, json.dumps({"results": results})

    with server(answer, "/search") as (url, _):
        yield url
