"""Tasks: a catalogue, requests with their relevant items, and splits; one file a data set."""

from __future__ import annotations

import inspect
from importlib import import_module

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import Task, history_examples, sealed
from recr1_lite.tasks.prompts import PROMPTS, Prompt, compose, format_answer, parse

KNOWN = ("clothing", "movielens", "esci", "amazon_c4", "amazon_reviews", "custom")

__all__ = [
    "KNOWN",
    "PROMPTS",
    "Prompt",
    "Task",
    "compose",
    "format_answer",
    "history_examples",
    "load_task",
    "parse",
    "sealed",
]


def load_task(task: str, /, **options) -> Task:
    """The task of that name, one of KNOWN, validated.

    `options` are the arguments of `load` in that task's module. Raises RecR1Error: unknown task or option,
    or data that do not pass `validate`.
    """
    if task not in KNOWN:
        raise RecR1Error(
            f"there is no task {task!r}; choose one of {', '.join(KNOWN)} (your own data: "
            'load_task("custom", items=..., requests=...))'
        )
    load = import_module(f"recr1_lite.tasks.{task}").load
    known = inspect.signature(load).parameters
    if unknown := [option for option in options if option not in known]:
        raise RecR1Error(f"task {task!r} has no option {unknown[0]!r}; its options are {', '.join(known)}")
    needed = [name for name, option in known.items() if option.default is option.empty]
    if missing := [name for name in needed if name not in options]:
        raise RecR1Error(f"task {task!r} needs {missing[0]}=; its options are {', '.join(known)}")
    return load(**options)
