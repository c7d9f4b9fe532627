"""Tasks: a catalogue, requests with their relevant items, and splits; one file per data set."""

import inspect
import math
import pkgutil
from collections.abc import Callable, Sequence
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import Task, sealed
from recr1_lite.tasks.prompts import PROMPTS, Prompt, compose, format_answer, parse
from recr1_lite.tasks.sequential import history_examples

LOADERS = {
    "clothing": "clothing:load",
    "movielens": "sequential:load_movielens",
    "esci": "amazon:load_esci",
    "amazon_c4": "amazon:load_c4",
    "amazon_reviews": "sequential:load_reviews",
    "custom": "custom:load",
}
__all__ = ["LOADERS", "PROMPTS", "Prompt", "Task", "compose", "format_answer", "history_examples"]
__all__ += ["load_task", "parse", "read_options", "sealed"]


def loader(task: str) -> Callable[..., Task]:
    """The function that loads the task of that name. Raises RecR1Error for another."""
    if task not in LOADERS:
        own = 'your own data: load_task("custom", items=..., requests=...)'
        raise RecR1Error(f"there is no task {task!r}; choose one of {', '.join(LOADERS)} ({own})")
    return pkgutil.resolve_name(f"recr1_lite.tasks.{LOADERS[task]}")


def read_options(task: str, given: Sequence[str]) -> dict:
    """Options of a task's loader from texts NAME=VALUE, each value as the argument's annotation wants it. Raises
    RecR1Error for another text, a name that comes twice, and a value that is none."""
    kinds, options = get_type_hints(loader(task)), {}
    for text in given:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise RecR1Error(f"the option {text!r} is no NAME=VALUE; write such as category=Video_Games")
        if name in options:
            raise RecR1Error(f"the option {name} is given twice; keep one")
        options[name] = value_of(name, value, kinds.get(name, str))
    return options


def value_of(name: str, text: str, kind) -> object:
    """The value of an option from its text, as the annotation `kind` wants it. Raises RecR1Error for what is none."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if type(None) in kinds and text.lower() in ("", "none"):
        return None
    if get_origin(kinds[0]) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kinds[0] not in (int, float):
        return text
    try:
        value = kinds[0](text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        wanted = "a whole number" if kinds[0] is int else "a number"
        raise RecR1Error(f"the option {name}={text[:80]} is no value for it; give {wanted}")
    return value


def load_task(task: str, /, **options) -> Task:
    """The task of that name, one of LOADERS, validated; `options` are the arguments of its loader. Raises RecR1Error:
    unknown task or option, or data that do not pass `base.validate`."""
    load = loader(task)
    known = inspect.signature(load).parameters
    needed = [option for option, parameter in known.items() if parameter.default is parameter.empty]
    problems = [f"has no option {option!r}" for option in options if option not in known]
    problems += [f"needs {option}=" for option in needed if option not in options]
    if problems:
        raise RecR1Error(f"task {task!r} {problems[0]}; its options are {', '.join(known)}")
    return load(**options)
