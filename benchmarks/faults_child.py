"""What the parts of benchmarks/faults.py share: a count of faults, and a function in a forked process of its own."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any, ClassVar

from recr1_lite.common import RecR1Error


class Skipped(Exception):
    """Why a part cannot be run here."""


class Tally:
    """What was tried, how often it was not as it should be, and the first example of each kind."""

    def __init__(self) -> None:
        self.tried, self.faults, self.note, self.first = 0, 0, "", dict[str, str]()

    def add(self, kind: str, fault: str = "") -> None:
        """One more tried. fault: what was wrong, "" for nothing."""
        self.tried += 1
        if fault:
            self.faults += 1
            self.first.setdefault(kind, " ".join(fault.split())[:400])

    def merge(self, other: "Tally") -> None:
        self.tried, self.faults = self.tried + other.tried, self.faults + other.faults
        self.first, self.note = other.first | self.first, self.note or other.note


class Child:
    """A function in a forked process, which starts at once: all that is imported here is imported there."""

    live: ClassVar[list["Child"]] = []

    def __init__(self, act: Callable, *given):
        self.answer, there = multiprocessing.Pipe(duplex=False)
        self.pid = os.fork()
        if not self.pid:
            os.setsid()  # what it starts is killed with it
            for number in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            try:
                told: tuple[Any, str, bool] = act(*given), "", True
            except BaseException as error:
                sentence = isinstance(error, RecR1Error) and "\n" not in str(error)
                told = None, f"{type(error).__name__}: {error}", sentence
            there.send(told)
            os._exit(0)
        there.close()
        Child.live.append(self)

    def kill_after(self, seconds: float) -> bool:
        """kill -9 after so many seconds; whether it was still at work."""
        if self.answer.poll(seconds):
            return False
        self.end()
        return True

    def result(self, seconds: float = 300) -> tuple[Any, str, bool]:
        """What the function returned, what it raised ("" for nothing), and whether that was the kit's one sentence."""
        try:
            return self.answer.recv() if self.answer.poll(seconds) else (None, f"no end in {seconds:g} s", False)
        except EOFError:
            return None, "the process died", False
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
                kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(self.pid, 0)
        self.answer.close()
        Child.live.remove(self)

    @classmethod
    def end_all(cls) -> None:
        for child in list(cls.live):
            child.end()
