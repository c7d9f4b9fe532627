"""One request before any training of your own: what the engine finds for the message itself, for the untrained model's
rewrite, and for that of the adapter that comes with the kit."""

from pathlib import Path

import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.policy.models import load_policy
from recr1_lite.policy.rewriters import RawRewriter, as_rewriter
from recr1_lite.profiles import Profile
from recr1_lite.search.base import Retriever, search_all
from recr1_lite.tasks.base import Task, ids_of

ADAPTERS = Path(__file__).parents[2] / "data" / "adapters"


def shipped_adapter(task: str) -> Path:
    """The folder of the adapter that was trained for this task's default form. Raises RecR1Error where none is."""
    if not (folder := ADAPTERS / task).is_dir():
        known = ", ".join(sorted(path.name for path in ADAPTERS.glob("*/"))) or "none"
        raise RecR1Error(f"no adapter for the task {task!r} is in {ADAPTERS} (there: {known}); give one with --adapter")
    return folder


def side_by_side(
    request: str, task: Task, retriever: Retriever, profile: Profile, adapter: str | Path | None = None, k: int = 5
) -> pd.DataFrame:
    """The request through the raw, the untrained and the trained rewriter: one row each of `rewriter`, `query` (as it
    was sent) and `hits` (titles, best first). adapter: default the shipped one. Raises RecR1Error for a blank request.
    """
    if not request.strip():
        raise RecR1Error("the request is blank; write what you are looking for, such as 'a warm coat for the winter'")
    folder = Path(adapter) if adapter else shipped_adapter(task.name)
    untrained, trained = load_policy(profile, trainable=False), load_policy(profile, adapter=folder, trainable=False)
    rewriters = [RawRewriter(), as_rewriter(untrained, task.prompt, profile, "untrained model")]
    rewriters.append(as_rewriter(trained, task.prompt, profile, "trained with GRPO"))
    titles = dict(zip(task.items["item_id"], task.items["title"]))
    queries = [rewriter.rewrite([request])[0] for rewriter in rewriters]
    found = search_all(retriever, queries, k, ids_of(task.train))
    shown = [[titles[item] for item in hits.ids] for hits in found]
    return pd.DataFrame({"rewriter": [rewriter.name for rewriter in rewriters], "query": queries, "hits": shown})


def as_text(looks: pd.DataFrame) -> str:
    """The table for a terminal: what was sent, then the hits under each other."""
    lines = []
    for look in looks.itertuples():
        lines += ["", f"== {look.rewriter}: {look.query or '(nothing)'}"]
        lines += [f"  {rank}. {title}" for rank, title in enumerate(look.hits, start=1)] or ["  no hit"]
    return "\n".join(lines)
