"""The command `serve` of the kit under odd requests, for benchmarks/faults.py: all answered in JSON."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from bench import ROOT, Child, Skipped, Tally
from faults_files import world

AT_ONCE, WAIT, STOP = 50, 90.0, 2.0  # requests; seconds for an answer, and from Ctrl-C to the end
SEARCH, CHAT = "/search", "/v1/chat/completions"
METHODS = ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "get", "FOO", "GET")
PLACES = (SEARCH, CHAT, "/", "/health", "/../x", "/%00", "/v1/models")
PAGES = ("/?q=ba+be", "/health", "/?q=%ff%00", "/?q=" + "a" * 9000, "/" + "a" * 70_000)
BROKEN = (b"zz\r\n\r\n", b"-5\r\nabc\r\n", b"f" * 40 + b"\r\n", b"\x00")  # chunks
HEADERS = """Content-Length: abc|Content-Length: -1|Content-Length: 1e3|Content-Length: 3%Content-Length: 4
Content-Length: 99999999999999999999999|Transfer-Encoding: gzip|Transfer-Encoding: chunked%Content-Length: 5
Content-Type: text/plain; charset=no-such|Content-Encoding: gzip|X Bad: 1|X-Bad: \x00\x01|No colon|Expect: 100-continue
Upgrade: websocket%Connection: Upgrade|X-Long: LONG"""
BODIES = """|[]|null|"text"|NaN|{|{"request": 5}|{"request": ["w", null]}|{"request": "\\ud800"}
{"request": "ba", "k": NaN}|{"request": "ba", "k": 1e999}|{"messages": [{"role": ["x"], "content": "ba"}]}
{"messages": [{"role": "user"}]}|{"request": "ba", "k": 9NINES}|[DEEP
{"messages": [{"role": "user", "content": "ba"}], "max_tokens": -1}
{"messages": [{"role": "user", "content": "ba"}], "temperature": "hot"}"""
LONG = {"LONG": "a" * 100_000, "NINES": "9" * 5000, "DEEP": "[" * 50_000}


def one_of(rng: random.Random, listed: str) -> bytes:
    """One of a list between bars and line ends; % is the end of a line of HTTP, a word in capitals something long."""
    chosen = rng.choice(listed.replace("\n", "|").split("|")).replace("%", "\r\n")
    for name, text in LONG.items():
        chosen = chosen.replace(name, text)
    return chosen.encode()


def get(line: str) -> bytes:
    return f"{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()


def post(path: str, body: bytes, header: bytes = b"", length: bool = True) -> bytes:
    said = [f"POST {path} HTTP/1.1".encode(), b"Host: localhost", b"Connection: close", *filter(None, [header])]
    return b"\r\n".join([*said, *([b"Content-Length: %d" % len(body)] if length else []), b"", body])


def chunked(path: str, body: bytes, size: int, rng: random.Random, broken: bytes = b"") -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    framed = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    if broken:
        framed[rng.randrange(len(framed))] = broken
    return post(path, b"".join([*framed, b"0\r\n\r\n"]), b"Transfer-Encoding: chunked", length=False)


def draw(rng: random.Random) -> tuple[str, bytes, bool]:
    """Kind of a request, its bytes, and whether it is whole, so that an answer is due."""
    path, kind = rng.choice((SEARCH, CHAT)), rng.randrange(10)
    asked = {"request": f"ba {rng.choice(('be', 'bi', '日本', 'bo' * 3000))}", "k": rng.choice((1, 5, 100))}
    fine = json.dumps(asked | {"messages": [{"role": "user", "content": "ba"}], "max_tokens": 4}).encode()
    if kind == 0:
        return "random bytes", rng.randbytes(rng.randint(1, 3000)) + b"\r\n\r\n", False
    if kind == 1:
        return "wrong method", get(f"{rng.choice(METHODS)} {rng.choice(PLACES)}"), True
    if kind == 2:
        return "huge body", post(path, b"x" * rng.choice((2**20 + 1, 2**22))), True
    if kind == 3:
        return "cut short", post(path, fine, b"Content-Length: 1000000", length=False), False
    if kind == 4:
        body = rng.choice((fine, rng.randbytes(2**18) * 6))
        return "chunked", chunked(path, body, rng.choice((1 + len(body) // 50, 70_000)), rng), True
    if kind == 5:
        return "broken chunks", chunked(path, fine, 20, rng, rng.choice(BROKEN)), False
    if kind == 6:
        header = one_of(rng, HEADERS)
        return "bad header", post(path, fine, header, length=b"Length" not in header), b"chunked" not in header
    if kind == 7:
        return "bad JSON", post(path, one_of(rng, BODIES)), True
    if kind == 8:
        return "a page", get(f"GET {rng.choice(PAGES)}"), True
    return "as it should be", post(path, fine), True


def ask(port: int, data: bytes, due: bool = True) -> bytes:
    """Send and read to the end. due: False closes one direction first, which says that no more is to come."""
    came = b""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as line:
        with suppress(ConnectionError):  # a refusal may come before all is sent; it is there to be read
            line.sendall(data)
            if not due:
                line.shutdown(socket.SHUT_WR)
        try:
            while part := line.recv(2**16):
                came += part
        except TimeoutError:
            return came or b"TIMEOUT"
        except ConnectionError:
            pass
    return came


def judge(kind: str, data: bytes, due: bool, came: bytes, secrets: list[bytes]) -> str:
    """What is wrong with an answer, "" for nothing."""
    if came == b"TIMEOUT":
        return f"no answer and no end in {WAIT:g} s to {data[:60]!r}"
    if not came:
        return f"no answer to {data[:80]!r}" if due else ""
    if leak := next((secret for secret in secrets if secret in came), b""):
        return f"{leak!r} in the answer {came[-200:]!r}"
    while came.startswith(b"HTTP/1.1 100"):
        came = came.partition(b"\r\n\r\n")[2]
    head, _, body = came.partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.[01] [2-5]\d\d", head):
        return f"no HTTP answer: {came[:80]!r}"
    if data.startswith(b"HEAD") or data.startswith((b"GET / ", b"GET /?")) and b"text/html" in head:
        return ""
    try:
        said = json.loads(body)
    except ValueError:
        return f"no JSON but {head.splitlines()[0].decode()} {body[:60]!r} to {data[:60]!r}"
    good = isinstance(said, (dict, list)) and (b" 200 " in head.splitlines()[0] or "error" in said)
    return "" if good else f"neither result nor error: {body[:80]!r}"


@contextmanager
def server(command: list[str]) -> Iterator[tuple[subprocess.Popen, int]]:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        lines = process.stdout or ()
        found = next((match for line in lines if (match := re.search(r"http://127\.0\.0\.1:(\d+)", line))), None)
        if not found:
            raise RuntimeError(f"`python -m recr1_lite serve` did not start (status {process.wait()})")
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()


def stopped(process: subprocess.Popen) -> str:
    """Ctrl-C; what was wrong with the end, "" for nothing."""
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    took = time.monotonic() - begin
    return "" if took <= STOP and process.returncode in (0, 130) else f"status {process.returncode} after {took:.1f} s"


def serve(tally: Tally, count: int, seed: int, work: Path) -> None:
    for package in ("starlette", "uvicorn"):
        if not find_spec(package):
            raise Skipped(f"{package} is not installed")
    profile, task = world(work)
    task.items.to_csv(work / "items.csv", index=False)
    rows = [row | {"relevant": json.dumps(row["relevant"])} for row in task.train.to_dict("records")]
    (work / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "recr1_lite", "serve", "--profile=smoke", "--task=custom", "--port=0"]
    command += [f"--model={profile.model}", f"--items={work / 'items.csv'}", f"--requests={work / 'requests.jsonl'}"]
    tally.merge(Child(campaign, command, count, seed, work).value(3600))


def campaign(command: list[str], count: int, seed: int, work: Path) -> Tally:
    """The whole part, in a process that may have threads."""
    tally, rng = Tally(), random.Random(f"serve/{seed}")
    secrets = [b"Traceback", b'File "', b"site-packages", *map(os.fsencode, (ROOT, work, sys.prefix, Path.home()))]
    with server(command) as (process, port), ThreadPoolExecutor(AT_ONCE) as pool:
        drawn = [draw(rng) for _ in range(count)]
        for (kind, data, due), came in zip(drawn, pool.map(lambda one: ask(port, *one[1:]), drawn)):
            tally.add(kind, judge(kind, data, due, came, secrets))
        health = ask(port, get("GET /health"))
        tally.add("after all that", "" if b'"ok"' in health else f"/health says {health[:80]!r}")
        tally.add("Ctrl-C", stopped(process))
    with server(command) as (process, port):
        long = json.dumps({"messages": [{"role": "user", "content": "ba"}], "max_tokens": 1024}).encode()
        for _ in range(8):
            threading.Thread(target=ask, args=(port, post(CHAT, long)), daemon=True).start()
        time.sleep(0.5)
        tally.add("Ctrl-C while it answers", stopped(process))
    return tally
