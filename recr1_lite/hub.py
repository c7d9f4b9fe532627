"""One file of a dataset repo on the Hugging Face Hub, at a pinned commit, kept in the kit's cache.

Only plain files are fetched: no script of a repo is run (`datasets` 4 and later refuses them too). A file in
the cache touches no network when its revision is a commit. A download that breaks off leaves nothing under
the file's name; huggingface_hub goes on from where it stopped at the next call.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from recr1_lite.cache import cache_folder, offline
from recr1_lite.errors import RecR1Error

AMAZON_REVIEWS = "McAuley-Lab/Amazon-Reviews-2023"
AMAZON_C4 = "McAuley-Lab/Amazon-C4"
ESCI = "tasksource/esci"  # amazon-science/esci-data, its two tables joined
BLAIR = "McAuley-Lab/blair-bench"  # the catalogue that Rec-R1 searches for ESCI
# The commits as public pages and code of others show them; the Hub itself was never reached from where this
# was written. For BLAIR none was found: it follows its branch, and `about` of a task says what that was.
REVISIONS = {
    AMAZON_REVIEWS: "2b6d039ed471f2ba5fd2acb718bf33b0a7e5598e",
    AMAZON_C4: "39322697749a88d179f88d322a2fe4765b655c98",
    ESCI: "45c948250c2116f1e535bac67b92501c695307a4",  # of its branch refs/convert/parquet
    BLAIR: "main",
}


class HubFile(NamedTuple):
    """A file in the cache, and the commit of the repo that it is of."""

    path: Path
    repo: str
    commit: str


def fetch(repo: str, file: str, local: str, revision: str | None = None) -> HubFile:
    """The file of a dataset repo, from the cache or the Hub.

    revision: a commit, tag or branch; default the one in REVISIONS, else main. local: what the caller takes
    instead of a file of the Hub ("items="), for the messages. Raises RecR1Error that names repo, file and
    `local`: no network, offline with a cold cache, no such repo, revision or file, gated, too many
    requests, a full disk, a cache that cannot be written.
    """
    from huggingface_hub import hf_hub_download

    revision = revision or REVISIONS.get(repo, "main")
    folder = cache_folder() / "hub"
    try:
        path = hf_hub_download(
            repo_id=repo,
            filename=file,
            repo_type="dataset",
            revision=revision,
            cache_dir=folder,
            local_files_only=offline(),
        )
    except Exception as problem:  # of huggingface_hub, httpx, hf_xet and the system: no class in common
        what, do = _explained(problem, revision, folder)
        raise RecR1Error(
            f"{file} of the Hub dataset {repo} {what}; {do}, or give a local file of the same format "
            f"with {local}"
        ) from problem
    return HubFile(Path(path), repo, _commit(Path(path), file) or revision)


def named(files: Iterable[HubFile]) -> str:
    """Where these files are from, for `about` of a task: each repo with its commit, once."""
    places = dict.fromkeys(f"{file.repo} @ {file.commit}" for file in files)
    return f"Hugging Face Hub, {', '.join(places)}"


def _commit(path: Path, file: str) -> str:
    """The commit in .../snapshots/<commit>/<file>, or ""."""
    above = path.parents[len(Path(file).parts) - 1]
    return above.name if above.parent.name == "snapshots" else ""


def _explained(problem: Exception, revision: str, folder: Path) -> tuple[str, str]:
    """What happened to the file, and what to do."""
    from huggingface_hub import errors

    if isinstance(problem, errors.GatedRepoError):
        return "is gated", "accept its terms on its page and log in with `hf auth login`"
    if isinstance(problem, errors.RepositoryNotFoundError):
        return "was not found: there is no such public repo", "check its name, or log in where it is private"
    if isinstance(problem, errors.RevisionNotFoundError):
        return f"was not found: the repo has no revision {revision!r}", "pass another one with revision="
    if offline() and isinstance(problem, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return (
            f"is missing in the cache {folder} and RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network",
            "unset it and load the task once with a network, or set RECR1_CACHE to a folder that has "
            "the file",
        )
    if isinstance(problem, errors.LocalEntryNotFoundError):
        return "is not in the cache and the Hub cannot be reached", "check the network or the proxy"
    if isinstance(problem, errors.EntryNotFoundError):
        return f"was not found at revision {revision!r}", "check the category or the revision"
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if status == 429:
        return "was refused: too many requests (429)", "wait some minutes or log in with `hf auth login`"
    if status is not None:
        return f"could not be fetched: the Hub answered {status}", "try again later"
    code = getattr(problem, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"does not fit: the disk of {folder} is full",
            "free some space or set RECR1_CACHE to a larger disk",
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"cannot be kept: {folder} cannot be written", "mend its permissions or set RECR1_CACHE"
    reason = (str(problem).strip().splitlines() or [""])[0][:160].rstrip(".")
    return f"could not be fetched ({type(problem).__name__}: {reason})", "check the network and try again"
