"""Nonsense for benchmarks/faults.py: mutated completions for the parser, random queries for the search engine."""

import random
import re
from pathlib import Path

from faults_child import Child, Skipped, Tally

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.prompts import PROMPTS, STYLES, Outcome, format_answer, parse

QUERIES = (
    "red dress",
    "warm winter coat, wool",
    '12" "vinyl" {record}',
    "çanta İstanbul",
    "赤い ドレス",
    "ΣΊΣΥΦΟΣ ß ﬁ",
)
WRAPPED = (
    """Keywords: {}|1. {}%2. blue|- **{}**%- coat|```json%{}%```|Sure! Here is the answer:%%{}|<think>maybe%{}
thought</think>{}|<think></think>{}|<answer>{}</answer><answer>x</answer>|<answer>{}|{"query": ["{}", "b"]}
{"query": {"query": "{}"}}|{"query": null, "q": "{}"}|\\u003cthink> {}""".replace("\n", "|")
    .replace("%", "\n")
    .split("|")
)
NOISE = "\x00\x1b\u00ad\u200b\u200d\u202e\u2028\ufeff\ufffd\ud800\udfff\U0001f600\u0301İıſ<>{}[]\"'\\`*_:\n\r\t "


def seeds() -> list[str]:
    """Completions as models write them, in every style, whole and wrapped in what they add."""
    plain = [format_answer(query, style) for query in QUERIES for style in STYLES]
    return plain + [
        wrap.replace("{}", text).replace("{{", "{").replace("}}", "}") for wrap in WRAPPED for text in plain
    ]


def mutated(known: list[str], rng: random.Random) -> str:
    """A completion after one to four accidents: splice, cut, repeat, case, noise."""
    text = rng.choice(known)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        other, kind = rng.choice(known), rng.randrange(6)
        middle = (
            other[rng.randint(0, len(other)) :],
            "",
            text[at:to] * rng.randint(2, 5),
            text[at:to].swapcase(),
            text[at:to] + rng.choice(NOISE) * rng.randint(1, 3),
            rng.choice(("<think>", "</think>", "<answer>", "</answer>", '{"query": "', '"}', "```", "\\u003cthink>")),
        )[kind]
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
    def half(number: int) -> Tally:
        found, rng, known = Tally(), random.Random(f"parser/{seed}/{number}"), seeds()
        for _ in range((count + number) // 2):
            text, truncated = mutated(known, rng), rng.random() < 0.3
            wrong = next(((style, said) for style in STYLES if (said := misread(text, style, truncated))), None)
            found.add(wrong[0] if wrong else "", wrong and f"{wrong[1]} of {text!r}"[:400] or "")
        return found

    for child in [Child(half, number) for number in range(2)]:
        tally.merge(child.value(3600))


def environment(tally: Tally, count: int, seed: int, work: Path) -> None:
    """The rules that hold for a bag-of-words engine, one random query at a time."""
    from recr1_lite.search.base import search_all
    from recr1_lite.search.bm25 import BM25Retriever
    from recr1_lite.tasks import load_task

    try:
        items = load_task("clothing").items
    except RecR1Error as error:
        raise Skipped(f"the clothing data are not in the cache ({error})") from None
    engine, rng, ids = BM25Retriever.build(items), random.Random(f"environment/{seed}"), set(items["item_id"])
    words = sorted({word for text in items["text"] for word in text.split()})

    def ask(query: str, k: int = 1000):
        return search_all(engine, [query], k)[0]

    for _ in range(count):
        chosen = rng.sample(words, rng.randint(1, 8))
        query, k = " ".join(chosen), rng.randint(1, 50)
        plain, twice = ask(query), ask(f"{query} {query}")
        blank = " ".join(rng.choices([" ", "\t", "?!", "\u200b", "\u00a0", "--", "\n"], k=rng.randint(0, 4)))
        rules = {
            "order": ask(" ".join(rng.sample(chosen, len(chosen)))) == plain,
            "case": ask(query.upper()) == ask(query.lower()) == plain,
            "again": ask(query) == plain,
            "repeats": set(twice.ids) == set(plain.ids)
            and all(abs(b - 2 * a) <= 1e-4 * b for a, b in zip(sorted(plain.scores), sorted(twice.scores))),
            "blank": not ask(blank).ids,
            "unknown": not ask("zqxjkvzzq").ids and ask(f"{query} zqxjkvzzq") == plain,
            "k": list(zip(*ask(query, k))) == list(zip(*plain))[:k],
            "ids": len(set(plain.ids)) == len(plain.ids) and set(plain.ids) <= ids,
            "scores": plain.scores == sorted(plain.scores, reverse=True) and all(score > 0 for score in plain.scores),
        }
        broken = next((name for name, holds in rules.items() if not holds), "")
        tally.add(broken, broken and f"broken by {query!r}" + (f" or {blank!r}" if broken == "blank" else ""))
