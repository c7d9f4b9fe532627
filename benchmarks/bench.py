"""What the benchmarks share: a function in a process of its own, and a JSON file of rows from which a call goes on."""

import contextlib
import ctypes
import json
import multiprocessing
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recr1_lite import ledger  # noqa: E402
from recr1_lite.common import RecR1Error, atomic_write  # noqa: E402


class Child:
    """A function in a process of its own, whose answer comes back.

    method: "fork" starts at once with all that is imported here; "spawn" is a new Python. words: the file for what it
    prints. Give `end_all` a place in a `finally`.
    """

    live: ClassVar[list["Child"]] = []

    def __init__(self, act: Callable, *given, method: str = "fork", words: str | Path = os.devnull):
        context: Any = multiprocessing.get_context(method)
        self.answer, there = context.Pipe(duplex=False)
        self.process = context.Process(target=_answer, args=(there, str(words), act, given))
        self.process.start()
        there.close()
        Child.live.append(self)

    def kill_after(self, seconds: float) -> bool:
        """kill -9 after so many seconds; whether it was still at work."""
        if self.answer.poll(seconds):
            return False
        self.end()
        return True

    def interrupt(self) -> None:
        """Ctrl-C; it may still answer."""
        os.kill(self.process.pid, signal.SIGINT)

    def result(self, seconds: float = 300) -> tuple[Any, str, bool]:
        """What the function returned, what it raised ("" for nothing), and whether that was the kit's one sentence."""
        try:
            if not self.answer.poll(seconds):
                return None, f"no end in {seconds:g} s", False
            told = self.answer.recv()
            self.process.join(5)  # time to tidy up
            return told
        except EOFError:
            self.process.join()
            return None, f"the process died ({self.process.exitcode})", False
        finally:
            self.end()

    def value(self, seconds: float = 300) -> Any:
        """What the function returned. Raises RuntimeError with what it raised."""
        value, error, _ = self.result(seconds)
        if error:
            raise RuntimeError(error)
        return value

    def end(self) -> None:
        """Kill it and what it started."""
        for kill in (os.killpg, os.kill):  # it may have had no time yet to make its group
            with contextlib.suppress(OSError):
                kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.answer.close()
        Child.live.remove(self)

    @classmethod
    def end_all(cls) -> None:
        for child in list(cls.live):
            child.end()


def _answer(there, words: str, act: Callable, given: tuple) -> None:
    """In the new process: what `act` gives or raises, into the pipe."""
    os.setsid()  # what it starts is killed with it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive its parent
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    try:
        told: tuple[Any, str, bool] = act(*given), "", True
    except BaseException as error:
        traceback.print_exc()
        sentence = isinstance(error, RecR1Error) and "\n" not in str(error)
        told = None, f"{type(error).__name__}: {error}", sentence
    there.send(told)


class Book:
    """A JSON file of rows by name and of what they were made on; written whole after each row."""

    def __init__(self, path: Path, key: str = "rows", **facts):
        self.path, self.key, self.facts = path, key, {"device": ledger.device(), **facts}
        try:
            self.content = json.loads(path.read_text()) if path.exists() else {key: {}}
            dict(self.rows)
        except (OSError, ValueError, KeyError, TypeError):
            raise RecR1Error(f"{path} holds no results of this benchmark; give another file") from None

    @property
    def rows(self) -> dict[str, dict]:
        return self.content[self.key]

    def put(self, name: str, row: dict, *private: tuple[Path, str]) -> None:
        """Add a row. private: folders of this machine, and what is written in their places."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.rows[name] = row | {"time": now, "commit": ledger.commit()}
        made = {"command": command(), "versions": ledger.versions(), "commit": ledger.commit(), "updated": now}
        text = json.dumps(self.content | self.facts | made, indent=1)
        for folder, shown in (*private, (ROOT, "."), (Path.home(), "~")):
            text = text.replace(json.dumps(str(folder))[1:-1], shown)
        self.content = json.loads(text)
        atomic_write(self.path, text + "\n")


def command() -> str:
    """The command line of this call."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def made(content: dict) -> str:
    """What the rows of a book were made on: command, device, versions, commit."""
    versions = ", ".join(f"{name} {version}" for name, version in content.get("versions", {}).items() if version)
    return f"`{content.get('command')}` on {content.get('device')}; {versions}; commit {content.get('commit')}"


class Skipped(Exception):
    """Why a part of benchmarks/faults.py cannot be run here."""


@dataclass
class Tally:
    """What was tried, how often it was not as it should be, and the first example of each kind."""

    tried: int = 0
    faults: int = 0
    note: str = ""
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, fault: str = "") -> None:
        """One more tried. fault: what was wrong, "" for nothing."""
        self.tried += 1
        if fault:
            self.faults += 1
            self.first.setdefault(kind, " ".join(fault.split())[:400])

    def merge(self, other: "Tally") -> None:
        self.tried, self.faults = self.tried + other.tried, self.faults + other.faults
        self.first, self.note = other.first | self.first, self.note or other.note
