"""Writes the two mechanical sets, arithmetic.jsonl and instructions.jsonl: python data/capability/make.py

The other files here were written by hand. A test makes both again and compares.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

SEED = 4
TOPICS = (
    "a rainy day",
    "your favourite meal",
    "a walk in the woods",
    "the sea",
    "an old friend",
    "a busy market",
    "learning to cook",
    "a small dog",
    "the night sky",
    "a long train ride",
)
MARKER, END = "P.S.", "That is all I have to say."


def instructions() -> list[dict]:
    """Sixteen verifiable instructions, five topics each, as the harness's IFEval checkers take them."""
    rows, rng = [], random.Random(SEED)
    for number, (name, kwargs, text) in enumerate(TEMPLATES):
        for take, topic in enumerate(rng.sample(TOPICS, 5)):
            rows.append(
                {
                    "id": f"instruction-{number + 1:02}-{take + 1}",
                    "key": 5 * number + take,
                    "prompt": text.format(topic=topic),
                    "instruction_id_list": [name],
                    "kwargs": [kwargs],
                }
            )
    return rows


TEMPLATES = (
    (
        "change_case:english_lowercase",
        {},
        "Write one short sentence about {topic}. Use lowercase letters only, no capital letters.",
    ),
    ("change_case:english_capital", {}, "Write one short sentence about {topic}. Use CAPITAL LETTERS ONLY."),
    ("punctuation:no_comma", {}, "Write two sentences about {topic}. Do not use any commas."),
    ("startend:quotation", {}, "Write one sentence about {topic}. Put your whole answer in double quotation marks."),
    (
        "keywords:existence",
        {"keywords": ["river", "morning"]},
        "Write one sentence about {topic}. Use the words river and morning in it.",
    ),
    (
        "keywords:existence",
        {"keywords": ["grandmother"]},
        "Write one sentence about {topic}. Use the word grandmother in it.",
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["the"]},
        "Write one short sentence about {topic}. Do not use the word the.",
    ),
    (
        "keywords:frequency",
        {"keyword": "happy", "frequency": 2, "relation": "at least"},
        "Write two sentences about {topic}. Use the word happy at least 2 times.",
    ),
    (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 15},
        "Describe {topic} in less than 15 words.",
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 30},
        "Describe {topic} in at least 30 words.",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
        "Tell me about {topic} in less than 2 sentences.",
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
        "List exactly 3 words that go with {topic}, as markdown bullet points such as: * word",
    ),
    (
        "detectable_format:title",
        {},
        "Write one sentence about {topic}. Put a title above it in double angular brackets, such as <<title>>.",
    ),
    (
        "startend:end_checker",
        {"end_phrase": END},
        "Write one sentence about {topic}. Then finish with this exact phrase, and nothing after it: " + END,
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": MARKER},
        "Write one sentence about {topic}. At the end add a postscript that starts with " + MARKER,
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 1},
        "Write a one-line invitation about {topic}. Use at least 1 placeholder in square brackets, such as [name].",
    ),
)


KINDS = (  # sign, the first number, the second, worked examples that no item repeats
    ("+", range(1, 10), range(1, 10), ((2, 3), (7, 1), (5, 4), (12, 6))),
    ("+", range(11, 81), range(1, 10), ((2, 3), (7, 1), (5, 4), (12, 6))),
    ("-", range(4, 10), range(1, 9), ((5, 2), (9, 1), (7, 4), (8, 3))),
    ("*", range(2, 6), range(2, 10), ((2, 3), (5, 1), (4, 4), (3, 6))),
)


def arithmetic() -> list[dict]:
    """Eighty sums, differences and products of small numbers, each after four worked ones of its kind."""
    rng, rows = random.Random(SEED), []
    for sign, first, second, worked in KINDS:
        pairs = [(a, b) for a in first for b in second if (a, b) not in worked and (sign != "-" or a > b)]
        for a, b in rng.sample(pairs, 20):
            rows.append(
                {
                    "id": f"arithmetic-{len(rows) + 1:03}",
                    "a": a,
                    "b": b,
                    "sign": sign,
                    "worked": "\n".join(f"{x} {sign} {y} = {value(x, y, sign)}" for x, y in worked),
                    "question": f"{a} {sign} {b} =",
                    "answer": str(value(a, b, sign)),
                }
            )
    return rows


def value(a: int, b: int, sign: str) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def text(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    for name, rows in (("instructions", instructions()), ("arithmetic", arithmetic())):
        (Path(__file__).parent / f"{name}.jsonl").write_text(text(rows))
        print(f"{name}.jsonl: {len(rows)} items")
