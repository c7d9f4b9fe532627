"""JSON over HTTP, as both outside services of this kit need it: a model behind an API, a search engine.

What may pass is tried again, what is our own mistake is not; secrets go to their server and into no message.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from recr1_lite.errors import RecR1Error

BACKOFF = 1.0  # seconds before the first repeat; doubled for each further one
POLICY = ("default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
          "frame-ancestors 'none'")  # of pages served here
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is given up


class Server:
    """One address that JSON is posted to.

    authorization: value of that header, or "". advise: what to do about a status below 500. ease: what to
    try when the server was too slow or too busy. Timeouts, lost connections, 429 and 5xx are tried again
    `retries` times with doubled pauses, or after the server's Retry-After; any other failure never. timeout:
    seconds of silence. client: further settings of the httpx client.
    """

    def __init__(self, address: httpx.URL, authorization: str, timeout: float, retries: int,
                 advise: Callable[[int], str], ease: str, **client):
        self.address, self.retries, self.advise, self.ease = address, max(0, retries), advise, ease
        self.url = str(address.copy_with(userinfo=b"", query=None))  # what may be shown
        if not authorization.isascii() or not authorization.isprintable():
            raise RecR1Error(f"the key for {self.url} holds characters that no key has; copy it again")
        key = authorization.partition(" ")[2] or authorization  # "Bearer" may be shown
        self._secrets = [secret for secret in (key, address.password, address.query.decode()) if secret]
        headers = {"Content-Type": "application/json"} | client.pop("headers", {})
        headers |= {"Authorization": authorization} if authorization else {}
        # a proxy of the environment cannot reach this machine's own loopback; redirects are not followed
        loopback = address.host in ("localhost", "::1") or address.host.startswith("127.")
        self.client = httpx.Client(timeout=timeout, headers=headers, trust_env=not loopback, **client)

    @property
    def has_key(self) -> bool:
        return "Authorization" in self.client.headers or bool(self.address.userinfo)

    def post(self, body: str, hidden: Callable[[httpx.Response], tuple[int, str] | None] | None = None,
             ) -> httpx.Response:
        """The answer, of status 200. Raises RecR1Error: address, status and the server's first line.

        hidden: finds status and message of a failure in the body of an answer of status 200.
        """
        for attempt in range(self.retries + 1):
            pause = min(BACKOFF * 2**attempt, LONGEST_WAIT)
            try:
                reply = self.client.post(self.address, content=body)
            except httpx.TimeoutException:
                problem = f"did not answer within {self.client.timeout.read:g} s"
            except httpx.RequestError as error:
                problem = f"cannot be reached ({self.safe(str(error) or type(error).__name__)})"
            else:
                status = reply.status_code
                if status == 200:
                    if not (found := hidden(reply) if hidden else None):
                        return reply
                    status, said = found
                else:
                    said = _message(reply)
                problem = f"answered {status}: {self.safe(said)}"
                if status != 429 and status < 500:
                    raise RecR1Error(f"{self.url} {problem}; {self.advise(status)}")
                pause = _retry_after(reply.headers.get("Retry-After", ""), pause)
            if attempt == self.retries or pause > LONGEST_WAIT:
                break
            time.sleep(pause)
        asks = f" and asks for a pause of {pause:.0f} s" if pause > LONGEST_WAIT else ""
        raise RecR1Error(f"{self.url} {problem}{asks} (tried {attempt + 1} times); check that it runs, then "
                         f"try again with {self.ease}")

    def said(self, reply: httpx.Response) -> str:
        """The first line of what the server says is wrong, out of JSON where it is JSON; no secrets."""
        return self.safe(_message(reply))

    def safe(self, text: str) -> str:
        """The text cut short, without this server's secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:300]


def address_of(text: str, what: str, example: str) -> httpx.URL:
    """The URL; raises RecR1Error, with an example, for what is none."""
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise RecR1Error(f"the {what}'s address is no URL; it looks like {example}")
    return url


def same_server(one: httpx.URL, other: httpx.URL) -> bool:
    """Same scheme, host and port: a key for the one may be sent to the other."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


@contextmanager
def local_http(answer: Callable[[str, str], tuple[int, object]], port: int = 0, host: str = "127.0.0.1",
               page: Callable[[str], tuple[int, object]] | None = None,
               limit: int = 1 << 24) -> Iterator[str]:
    """Serve on `host` (port 0: a free one) while inside; gives the root URL, without a slash.

    answer: (path, body of the POST) -> (status, what goes back as JSON); what it raises is told as a 400.
    page: (path with its query) -> (status, HTML as text, or what goes back as JSON) of a GET. limit: bytes of
    a body; a longer one is not read. Raises RecR1Error where the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # seconds that a client may keep silent in the middle of a request

        def do_POST(self) -> None:
            self._reply(lambda: answer(self.path, self._body()))

        def do_GET(self) -> None:
            self._reply(lambda: page(self.path) if page else _refusal(404, "there is nothing to GET here"))

        def _body(self) -> str:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= limit:
                self.close_connection = True
                raise RecR1Error(f"the body has {length} bytes and {limit} are allowed; send less at a time")
            return self.rfile.read(length).decode()

        def _reply(self, make: Callable[[], tuple[int, object]]) -> None:
            try:
                status, reply = make()
            except Exception as error:  # told to the client, as servers do
                status, reply = _refusal(400, f"{type(error).__name__}: {error}")
            html = isinstance(reply, str)
            content = (reply if html else json.dumps(reply)).encode()
            with suppress(OSError):  # the client went away
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Content-Type-Options", "nosniff")
                if html:  # no script, nothing from elsewhere, whatever a title or a request holds
                    self.send_header("Content-Security-Policy", POLICY)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_) -> None:  # a client that broke off; what `answer` raises is told above
            pass

    try:
        server = Quiet((host, port), Handler)
    except (OSError, OverflowError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise RecR1Error(f"{host}:{port} cannot be served on ({reason}); give another --port, or 0 for a "
                         "free one") from problem
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _refusal(status: int, message: str) -> tuple[int, dict]:
    return status, {"error": {"message": message}}


def _message(reply: httpx.Response) -> str:
    found = reply.text
    with suppress(ValueError, AttributeError, LookupError, TypeError):
        found = reply.json().get("error") or reply.json()
        found = (found.get("root_cause") or [found])[0]  # OpenSearch
        found = found.get("message") or found.get("reason") or found.get("detail") or reply.text
    return next((line.strip() for line in str(found).splitlines() if line.strip()), "nothing")


def _retry_after(value: str, default: float) -> float:
    """Seconds in a Retry-After header (a number or a date), or `default`."""
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    with suppress(ValueError):
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return default
