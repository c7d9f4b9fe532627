"""Product search on real data: a product review stands for a shopper's message, its garment is what to find.

Women's E-Commerce Clothing Reviews (CC0). Part of each garment's reviews are held out as messages; the item's text is
its class, its department and what OTHER shoppers wrote, so that no message is in the index itself. Relevance is graded
in the manner of ESCI (arXiv 2206.06588): the garment is the exact match, the garments of its class are substitutes.
"""

import html
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from recr1_lite.assets import ASSETS, fetch
from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import ITEM_COLUMNS, METRICS, Task, alike
from recr1_lite.tasks.prompts import Prompt, chosen

# Chosen on training requests: of thirteen wordings this one had the best greedy rewrites (benchmarks/README.md). As in
# the paper the rewrite alone is sent.
QUESTION = "{request}\n\nIn one word, what did the customer buy?"
PROMPT = Prompt("compact", QUESTION, prefix="The customer bought a", distinct=True)
# With one garment as the only relevant one the request is kept, and the query repeated four times after it: once, one
# right word moves the ranking too little for a hundred rollouts to notice.
EXACT: dict[str, Any] = dict(mode="expand", weight=4, distinct=False)
EXAMPLES = (
    ("So soft and cozy! I wear it over leggings.", "sweater, cardigan, knit, soft"),
    ("I wore it to a wedding, it hits above the knee.", "dress, dresses, lace, knee"),
    ("They fit well in the waist, too long for me.", "pants, trousers, waist, long"),
)
FEW_SHOT = replace(PROMPT, instruction="What did this customer buy? {request}", prefix="", examples=EXAMPLES)
EXACT_FEW_SHOT = replace(FEW_SHOT, **EXACT)
SUBSTITUTE = 0.1  # the gain of a garment of the same class, as in the KDD Cup 2022 on ESCI
# What somebody who knows the shop could write down: the words of a message that name a garment. A teacher for SFT.
GARMENTS = frozenset(
    "dress dresses blouse shirt top tee sweater cardigan pants jeans skirt shorts jacket coat vest leggings jumpsuit "
    "romper tunic tank swimsuit bra robe pajamas".split()
)
RELEVANCE = {
    "graded": f"the garment that the review is about 1, the other garments of its class {SUBSTITUTE}",
    "exact": "the garment that the review is about",
}
GRADED_METRICS = ("ndcg@100", "exact-ndcg@100", "exact-recall@10", "exact-mrr")
WHEEL = ASSETS["clothing-reviews"].wheel
MIN_REVIEWS = 8  # a garment with fewer says too little about itself
MIN_WORDS = 10  # a shorter review is no message
OPENING = 40  # two reviews with the same first words count as one
HELD_OUT, CAP = 0.25, 16  # share of a garment's reviews that become messages, and at most so many
N_TEST, N_VAL = 600, 400


def load(words: int = 40, seed: int = 0, relevance: str = "graded") -> Task:
    """The clothing task: messages are cut to their first `words` words, `seed` draws messages and splits.

    relevance: `graded` (the garment 1, the others of its class SUBSTITUTE; the rewrite alone is sent) or `exact` (the
    garment alone; the request is sent with the rewrite behind it). Raises RecR1Error: `words` below 10, another
    relevance, or the data cannot be fetched."""
    chosen(RELEVANCE, relevance=relevance)
    graded = relevance == "graded"
    if words < MIN_WORDS:
        raise RecR1Error(f"words={words} is too short for a message; use {MIN_WORDS} or more")
    reviews = read_reviews()
    reviews = reviews[reviews.groupby("garment")["row"].transform("size") >= MIN_REVIEWS]
    messages = _hold_out(reviews, seed)
    items = _items(reviews[~reviews["row"].isin(messages["row"])])
    examples = pd.DataFrame({"example_id": "review-" + messages["row"].astype(str)})
    examples["request"] = messages["text"].str.split().str[:words].str.join(" ")
    kinds = items.set_index("item_id")["title"].str.partition(" #")[0]
    others = kinds.groupby(kinds).groups if graded else {}
    classes = {garment: dict.fromkeys(others.get(kind, ()), SUBSTITUTE) for garment, kind in kinds.items()}
    examples["relevant"] = [classes[garment] | {garment: 1.0} for garment in messages["garment"]]
    examples["cluster"] = messages["garment"].to_numpy()
    examples = examples[~alike(examples["request"]).duplicated()]
    test, val, train = examples[:N_TEST], examples[N_TEST : N_TEST + N_VAL], examples[N_TEST + N_VAL :]
    about = {
        "source": f"Women's E-Commerce Clothing Reviews (Kaggle, nicapotato), in the PyPI wheel {WHEEL}",
        "licence": "CC0 1.0",
        "request": f"a held-out product review, cut to its first {words} words",
        "relevant": RELEVANCE[relevance],
        "item text": "class, department and the other shoppers' reviews of the garment",
        "seed": seed,
    }
    form: dict = {"prompt": PROMPT, "few_shot": FEW_SHOT, "metrics": GRADED_METRICS}
    if not graded:
        form = {"prompt": replace(PROMPT, **EXACT), "few_shot": EXACT_FEW_SHOT, "metrics": METRICS}
    return Task("clothing", items, train, val, test, **form, rule=name_garments, about=about)


def name_garments(message: str) -> tuple[str, str]:
    """The rule as a teacher: the garment words of a message, each once, and the thought behind them; "" for none."""
    words = dict.fromkeys(word.strip(".,!?") for word in message.lower().split())
    named = [word for word in words if word in GARMENTS]
    return " ".join(named), f"The message names: {', '.join(named)}." if named else ""


def read_reviews() -> pd.DataFrame:
    """The published reviews, no text twice: `row` (in the file), `garment`, `kind`, `department`, `text`."""
    raw = pd.read_parquet(fetch("clothing-reviews"))
    raw = raw.dropna(subset=["Review Text", "Class Name", "Department Name"]).rename_axis("row").reset_index()
    names = {"row": "row", "Clothing ID": "garment", "Class Name": "kind", "Department Name": "department"}
    reviews = raw[list(names)].rename(columns=names).astype({"garment": str, "kind": str, "department": str})
    reviews["text"] = [" ".join(html.unescape(text).split()) for text in raw["Review Text"]]
    opening = reviews["text"].str.lower().str.findall(r"\w+").str[:OPENING].str.join(" ")
    return reviews[(opening != "") & ~opening.duplicated()].reset_index(drop=True)


def _hold_out(reviews: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Messages in random order: of each garment a quarter of its long enough reviews, at most CAP."""
    random = np.random.RandomState(seed)  # its stream is frozen: the splits stay the same with any NumPy
    long = reviews[reviews["text"].str.split().str.len() >= MIN_WORDS]
    long = long.iloc[random.permutation(len(long))]
    garments = long.groupby("garment")["row"]
    quota = (HELD_OUT * garments.transform("size")).round().clip(upper=CAP)
    messages = long[garments.cumcount() < quota]
    # shuffled again: a garment with many reviews fills its quota early, and would fill the first split
    return messages.iloc[random.permutation(len(messages))]


def _items(reviews: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for garment, group in reviews.groupby("garment", sort=False):
        kind, department = group["kind"].mode()[0], group["department"].mode()[0]
        rows.append((garment, f"{kind} #{garment}", f"{kind}. {department}. {' '.join(group['text'])}"))
    return pd.DataFrame(rows, columns=ITEM_COLUMNS).sort_values("item_id", key=lambda ids: ids.astype(int))
