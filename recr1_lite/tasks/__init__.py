"""Tasks: a catalogue, requests with their relevant items, and splits; one file per data set."""

import inspect
import pkgutil

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import Task, history_examples, sealed
from recr1_lite.tasks.prompts import PROMPTS, Prompt, compose, format_answer, parse

LOADERS = {
    "clothing": "clothing:load",
    "movielens": "movielens:load",
    "esci": "esci:load",
    "amazon_c4": "amazon:load_c4",
    "amazon_reviews": "amazon:load_reviews",
    "custom": "custom:load",
}
__all__ = ["LOADERS", "PROMPTS", "Prompt", "Task", "compose", "format_answer", "history_examples"]
__all__ += ["load_task", "parse", "sealed"]


def load_task(task: str, /, **options) -> Task:
    """The task of that name, one of LOADERS, validated; `options` are the arguments of its loader.

    Raises RecR1Error: unknown task or option, or data that do not pass `base.validate`.
    """
    if task not in LOADERS:
        own = 'your own data: load_task("custom", items=..., requests=...)'
        raise RecR1Error(f"there is no task {task!r}; choose one of {', '.join(LOADERS)} ({own})")
    load = pkgutil.resolve_name(f"recr1_lite.tasks.{LOADERS[task]}")
    known = inspect.signature(load).parameters
    needed = [option for option, parameter in known.items() if parameter.default is parameter.empty]
    problems = [f"has no option {option!r}" for option in options if option not in known]
    problems += [f"needs {option}=" for option in needed if option not in options]
    if problems:
        raise RecR1Error(f"task {task!r} {problems[0]}; its options are {', '.join(known)}")
    return load(**options)
