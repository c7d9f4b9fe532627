"""From a completion to a query: one parser for training and evaluation, which never raises on what a model wrote."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import NamedTuple

from recr1_lite.errors import RecR1Error

STYLES = ("compact", "json", "think", "paper")
BRACES = 32  # opening braces at which a JSON object is looked for: a completion made of braces stays quick
WRAPPINGS = 8  # labels, bullets and quotes around one another, for the same reason

_BULLET = re.compile(r"(?:[-+*•–—]+|\(?\d{1,2}[.)])(?:\s+|$)")
_LABEL = re.compile(
    r"(?:(?:here|are|is|the|my|some|\d+|three|five|ten|final|search|rewritten|relevant)\s+){0,6}"
    r"(?:keywords?|answer|query|rewrite|terms?)[*_\"]*(?:\s+(?:are|is))?\s*:[*_]*\s*",
    re.IGNORECASE,
)
_QUOTES = "\"'“”‘’«»`*_ \t"


class Outcome(StrEnum):
    """What a completion turned out to be. Only `ok` carries a query."""

    ok = "ok"
    no_answer = "no_answer"  # think, paper: no complete <answer>...</answer>; json: no opening brace
    bad_json = "bad_json"  # no JSON object where the answer is
    missing_query = "missing_query"  # a JSON object, its "query" absent or neither text nor list of texts
    empty = "empty"  # the query is there and holds nothing
    truncated = "truncated"  # no_answer or bad_json because the token limit cut the completion


class Parsed(NamedTuple):
    """Outcome of a completion, and its query on one line; "" unless ok."""

    outcome: Outcome
    query: str


def parse(completion: str, style: str, truncated: bool = False) -> Parsed:
    """Read a completion. Never raises, whatever the text is.

    `completion`: the whole answer; `Prompt.read` puts the prefix before what was generated where it belongs.
    `truncated`: the token limit was hit with no end token. The rules:
    - compact: the first line that is no heading, without label ("Keywords:"), bullet or quotes; a list, one
      keyword a line, counts as one line. A truncated line is still usable, so `truncated` changes nothing.
    - json: the first JSON object that has a "query"; code fences, text around it and raw newlines in it are
      fine.
    - think, paper: compact or json inside the last complete <answer>...</answer>. The thought is not checked.
    - "query" may be a list of texts, which are joined by spaces. White space becomes single spaces.
    Raises RecR1Error for an unknown style only.
    """
    if style not in STYLES:
        raise RecR1Error(f"there is no prompt style {style!r}; choose one of {', '.join(STYLES)}")
    text = completion if isinstance(completion, str) else ""
    if style == "compact":
        return _found(_keywords(text))
    if style in ("think", "paper"):
        text = _answer(text)
    if text is None:
        parsed = Parsed(Outcome.no_answer, "")
    else:
        parsed = _found(_keywords(text)) if style == "think" else _json_query(text, style)
    if truncated and parsed.outcome in (Outcome.no_answer, Outcome.bad_json):
        return Parsed(Outcome.truncated, "")
    return parsed


def _found(query: str) -> Parsed:
    # A lone surrogate (JSON can spell one) fits into no UTF-8 file.
    query = " ".join(query.encode("utf-8", "replace").decode("utf-8").split())
    return Parsed(Outcome.ok, query) if query else Parsed(Outcome.empty, "")


def _keywords(text: str) -> str:
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("```")]
    kept: list[str] = []
    listing = False
    for line in lines:
        bullet = bool(_BULLET.match(line))
        if kept and not (listing and bullet):
            break
        content = _bare(line)
        if content and not (content.endswith(":") and line is not lines[-1]):  # else a heading
            kept.append(content)
            listing = bullet
    return " ".join(kept)


def _bare(line: str) -> str:
    """A line without bullets, quotes and one label, in whatever order they are wrapped."""
    labelled = False
    for _ in range(WRAPPINGS):
        before = line
        match = _BULLET.match(line) or (None if labelled else _LABEL.match(line))
        if match:
            labelled = labelled or match.re is _LABEL
            line = line[match.end() :]
        line = line.strip(_QUOTES)
        if line == before:
            break
    return line


def _answer(text: str) -> str | None:
    """What is inside the last complete <answer>...</answer>; None without one."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end]


def _json_query(text: str, style: str) -> Parsed:
    if style == "json" and "{" not in text:
        return Parsed(Outcome.no_answer, "")
    objects = _objects(text)
    if not objects:
        return Parsed(Outcome.bad_json, "")
    queries = [found["query"] for found in objects if "query" in found]
    query = queries[0] if queries else None
    if isinstance(query, list) and all(isinstance(part, str) for part in query):
        query = " ".join(query)
    return _found(query) if isinstance(query, str) else Parsed(Outcome.missing_query, "")


def _objects(text: str) -> list[dict]:
    """The JSON objects that start at one of the first braces, those inside another object left out."""
    decoder, found, at = json.JSONDecoder(strict=False), [], -1
    for _ in range(BRACES):
        at = text.find("{", at + 1)
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        found.append(value)
        at = end - 1
    return found
