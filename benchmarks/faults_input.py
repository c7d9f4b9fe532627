"""Nonsense for benchmarks/faults.py: mutated completions for the parser, random queries for the search engine."""

import random
import re
from pathlib import Path

from bench import Child, Skipped, Tally

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import environment_check
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.tasks import load_task
from recr1_lite.tasks.prompts import PROMPTS, STYLES, Outcome, format_answer, parse

QUERIES = (
    "red dress",
    "warm winter coat, wool",
    '12" "vinyl" {record}',
    "çanta İstanbul",
    "赤い ドレス",
    "ΣΊΣΥΦΟΣ ß ﬁ",
)
# what models write around an answer, between bars; % is a new line
WRAPPED = (
    """{}|Keywords: {}|1. {}%2. blue|- **{}**%- coat|```json%{}%```|Sure! Here is the answer:%%{}|<think></think>{}
<think>maybe%{}|thought</think>{}|<answer>{}</answer><answer>x</answer>|<answer>{}|{"query": ["{}", "b"]}
{"query": {"query": "{}"}}|{"query": null, "q": "{}"}|\\u003cthink> {}""".replace("\n", "|")
    .replace("%", "\n")
    .split("|")
)
NOISE = "\x00\x1b\u00ad\u200b\u200d\u202e\u2028\ufeff\ufffd\ud800\udfff\U0001f600\u0301İıſ<>{}[]\"'\\`*_:\n\r\t "
TAGS = ("<think>", "</think>", "<answer>", "</answer>", '{"query": "', '"}', "```", "\\u003cthink>")


def seeds() -> list[str]:
    """Completions as models write them, in every style, whole and wrapped in what they add."""
    plain = [format_answer(query, style) for query in QUERIES for style in STYLES]
    return [wrap.replace("{}", text) for wrap in WRAPPED for text in plain]


def mutated(known: list[str], rng: random.Random) -> str:
    """A completion after one to four accidents: splice, cut, repeat, case, noise, a tag."""
    text = rng.choice(known)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        part, other = text[at:to], rng.choice(known)
        splice, repeat = other[rng.randint(0, len(other)) :], part * rng.randint(2, 5)
        noise = part + rng.choice(NOISE) * rng.randint(1, 3)
        middle = rng.choice((splice, "", repeat, part.swapcase(), noise, rng.choice(TAGS)))
        text = (text[:at] + middle + text[to:])[:4000]
    return text


def misread(text: str, style: str, truncated: bool) -> str:
    """What is wrong with how a completion was read, "" for nothing."""
    try:
        for parsed in (parse(text, style, truncated), PROMPTS[style].read(text, truncated)):
            query = parsed.query
            if not isinstance(query, str) or not isinstance(parsed.outcome, Outcome):
                return f"{parsed!r} is no outcome with a text"
            if bool(query) != (parsed.outcome == Outcome.ok):
                return f"outcome {parsed.outcome} with the query {query!r}"
            if re.search(r"</?think>", query, re.IGNORECASE):
                return f"a think tag in the query {query!r}"
            if query.split() != query.split(" ") and query:
                return f"white space in the query {query!r}"
            query.encode()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def parser(tally: Tally, count: int, seed: int, work: Path) -> None:
    """Each completion read in every style, half of them in each of two processes."""

    def half(number: int) -> Tally:
        found, rng, known = Tally(), random.Random(f"parser/{seed}/{number}"), seeds()
        for _ in range((count + number) // 2):
            text, truncated = mutated(known, rng), rng.random() < 0.3
            said = {style: misread(text, style, truncated) for style in STYLES}
            style = next((style for style in STYLES if said[style]), "")
            found.add(style, f"{said[style]} of {text!r}" if style else "")
        return found

    for child in [Child(half, number) for number in range(2)]:
        tally.merge(child.value(3600))


def environment(tally: Tally, count: int, seed: int, work: Path) -> None:
    """The kit's own check of a bag-of-words engine, with more queries than any run has time for."""
    try:
        items = load_task("clothing").items
    except RecR1Error as error:
        raise Skipped(f"the clothing data are not in the cache ({error})") from None
    for rule in environment_check(BM25Retriever.build(items), items, count, seed):
        tally.add(rule.name, rule.detail)
    tally.note = f"{count:,} queries each"
