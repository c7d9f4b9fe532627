"""Files of the Hub: real exceptions of huggingface_hub, each one sentence, and a real cache read offline."""

import errno
import time
from pathlib import Path
from unittest.mock import Mock

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from recr1_lite.assets.fetch import AMAZON_C4, BLAIR, REVISIONS, hub_file
from recr1_lite.common import RecR1Error
from recr1_lite.tasks.readers import HubFiles

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("RECR1_OFFLINE", raising=False)
    return tmp_path / "cache" / "hub"


def http(kind: type, status: int):
    """The exception of an answer with this status."""
    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))
    return kind("a long\nexplanation", response=response)


FAILURES = [
    (http(errors.GatedRepoError, 403), "is gated; accept its terms"),
    (http(errors.RepositoryNotFoundError, 401), "no such public repo"),
    (http(errors.RevisionNotFoundError, 404), "no revision 'v9'; pass another one with revision="),
    (http(errors.RemoteEntryNotFoundError, 404), "was not found at revision 'v9'"),
    (errors.LocalEntryNotFoundError("no\nconnection"), "the Hub cannot be reached; check the network"),
    (http(errors.HfHubHTTPError, 429), "too many requests"),
    (http(errors.HfHubHTTPError, 503), "the Hub answered 503; try again later"),
    (httpx.ConnectError("[Errno 111] refused\nmore"), "ConnectError: .Errno 111. refused"),
    (RuntimeError("Data processing error: CAS"), "RuntimeError: Data processing error: CAS"),
    (OSError(errno.ENOSPC, "No space left on device"), "cannot be written .No space left.*free some space"),
    (PermissionError(errno.EACCES, "denied"), "cannot be written .denied.; .*mend its permissions"),
]


@pytest.mark.parametrize(("problem", "words"), FAILURES, ids=[type(problem).__name__ for problem, _ in FAILURES])
def test_every_failure_is_one_sentence(cache, monkeypatch, problem, words):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=problem))
    with pytest.raises(RecR1Error, match=words) as caught:
        hub_file(AMAZON_C4, "test.csv", "requests=", "v9")
    said = str(caught.value)
    assert said.startswith("test.csv of the Hub dataset McAuley-Lab/Amazon-C4 ")
    assert said.endswith(", or give a local file of the same format with requests=") and "\n" not in said
    assert caught.value.__cause__ is problem


def cached(cache: Path, commit: str = COMMIT, ref: str = "") -> Path:
    """A file in the cache as huggingface_hub lays it out."""
    repo = cache / "datasets--McAuley-Lab--Amazon-C4"
    path = repo / "snapshots" / commit / "raw" / "x.csv"
    path.parent.mkdir(parents=True)
    path.write_text("a,b\n")
    if ref:
        (repo / "refs").mkdir()
        (repo / "refs" / ref).write_text(commit)
    return path


@pytest.mark.parametrize("setting", ["RECR1_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_takes_what_the_cache_holds(cache, monkeypatch, network, setting):
    monkeypatch.setenv(setting, "1")
    path = cached(cache, ref="main")
    for revision in (COMMIT, "main"):
        assert hub_file(AMAZON_C4, "raw/x.csv", "x=", revision) == (path, f"{AMAZON_C4} @ {COMMIT}")
    with pytest.raises(RecR1Error, match=f"is missing in the cache .* {setting.split('_')[0]}.* unset it") as caught:
        hub_file(AMAZON_C4, "raw/y.csv", "x=")
    assert "\n" not in str(caught.value) and network == []


def test_a_pinned_file_in_the_cache_touches_no_network(cache, network):
    loose = {repo for repo, revision in REVISIONS.items() if revision == "main"}
    assert loose == {BLAIR}, "all others are commits"
    assert all(len(revision) == 40 and int(revision, 16) for repo, revision in REVISIONS.items() if repo not in loose)
    path = cached(cache, REVISIONS[AMAZON_C4])
    files = HubFiles()
    assert {files.instead_of(None, AMAZON_C4, "raw/x.csv", "x=") for _ in range(2)} == {path} and network == []
    assert str(files) == f"Hugging Face Hub, {AMAZON_C4} @ {REVISIONS[AMAZON_C4]}"


def test_no_network_and_a_cold_cache(cache, monkeypatch, network):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub tries six times, 23 s in all
    for proxy in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(RecR1Error, match="cannot be reached|could not be fetched") as caught:
        hub_file(AMAZON_C4, "test.csv", "requests=")
    assert "\n" not in str(caught.value) and network
    assert not list(cache.rglob("test.csv"))
