"""Small files in the true form of the data sets on the Hub, for the tests of their loaders."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd

LABELS = "ESCI"
WORDS = "lamp chair rug mug kettle clock vase shelf stool tray".split()


def esci(folder: Path, n_train: int = 6, n_test: int = 4) -> dict[str, Path]:
    """ESCI's examples and products, and a catalogue as BLaIR has it; query i wants product P<i> exactly."""
    rows, example = [], 0
    for query in range(n_train + n_test):
        split = "train" if query < n_train else "test"
        for step, label in enumerate(LABELS):  # E is its own product, then those after it
            product = f"P{(query + step) % (n_train + n_test)}"
            rows.append((example, f"a {WORDS[query]}", query, product, "us", label, 1, 1, split))
            example += 1
        rows.append((example + 500, f"una {query}", 900 + query, "P0", "es", "E", 1, 1, split))
        rows.append((example + 600, f"large {query}", 800 + query, "P0", "us", "E", 0, 1, split))
    columns = [
        "example_id",
        "query",
        "query_id",
        "product_id",
        "product_locale",
        "esci_label",
        "small_version",
        "large_version",
        "split",
    ]
    paths = {name: folder / name for name in ("examples.parquet", "products.parquet", "catalogue.jsonl")}
    pd.DataFrame(rows, columns=columns).to_parquet(paths["examples.parquet"])
    ids = [f"P{number}" for number in range(n_train + n_test)]
    products = [
        (own, f"The {word}", f"<b>Good</b> {word} &amp; more", None, "Acme", "red", "us")
        for own, word in zip(ids, WORDS)
    ]
    products += [("P0", "La lampa", None, None, None, None, "es"), ("P99", "Never judged", *[None] * 4, "us")]
    pd.DataFrame(
        products,
        columns=[
            "product_id",
            "product_title",
            "product_description",
            "product_bullet_point",
            "product_brand",
            "product_color",
            "product_locale",
        ],
    ).to_parquet(paths["products.parquet"])
    write_jsonl(
        paths["catalogue.jsonl"],
        [
            {
                "item_id": own,
                "category": "Video_Games" if number % 2 else "Baby_Products",
                "metadata": f"The {word}. Good {word} and more.",
            }
            for number, (own, word) in enumerate(zip(ids, WORDS))
        ],
    )
    return {path.stem: path for path in paths.values()}


def c4(folder: Path, n: int = 20) -> dict[str, Path]:
    """Amazon-C4's requests and items: half the requests are about Games, the rest about Home, one Baby."""
    items = [
        {
            "item_id": f"B{number}",
            "category": ["Games", "Home"][number % 2],
            "metadata": f"Item {number}. It is {number}.",
        }
        for number in range(n)
    ]
    items[2]["category"] = "Baby"
    items += [{"item_id": f"X{number}", "category": "Home", "metadata": f"Other {number}."} for number in range(n)]
    requests = [
        (number, f'I need, "really", number {number}', f"B{number}", f"U{number}", 5, "Five\nstars")
        for number in range(n)
    ]
    write_jsonl(folder / "items.jsonl", items)
    write_csv(folder / "test.csv", ["qid", "query", "item_id", "user_id", "ori_rating", "ori_review"], requests)
    return {"items": folder / "items.jsonl", "requests": folder / "test.csv"}


REVIEW_COLUMNS = ["user_id", "parent_asin", "rating", "timestamp", "history"]


def reviews(folder: Path, category: str = "All_Beauty") -> dict[str, Path]:
    """Amazon Reviews' three files and metadata: users a, b train; test has a (seen) and n (inductive)."""
    rows = {
        "train": [
            ("a", "I0", 5.0, 1, ""),
            ("a", "I1", 5.0, 2, "I0"),
            ("b", "I3", 4.0, 3, "I2 I9"),
            ("c", "I5", 1.0, 3, ""),
        ],
        "valid": [("a", "I2", 5.0, 4, "I0 I1"), ("n", "I4", 5.0, 4, "I5")],
        "test": [
            ("a", "I3", 5.0, 5, "I0 I1 I2"),
            ("n", "I6", 5.0, 5, "I5 I4"),
            ("n", "I5", 5.0, 6, "I5 I4 I6"),
            ("m", "I1", 2.0, 7, ""),
        ],
    }
    for split, own in rows.items():
        write_csv(folder / f"{category}.{split}.csv", REVIEW_COLUMNS, own)
    write_jsonl(
        folder / f"meta_{category}.jsonl",
        [
            {
                "main_category": "All Beauty",
                "parent_asin": f"I{number}",
                "title": f"Soap {number} &amp; oil",
                "features": ["soft", "blue"],
                "description": ["A <b>soap</b>."],
                "categories": [],
                "price": None,
            }
            for number in range(8)  # I9 has no metadata, I7 is in no example
        ],
    )
    return {"folder": folder, "items": folder / f"meta_{category}.jsonl"}


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, header: list[str], rows: list[tuple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
