"""Small files in the true form of the data sets on the Hub, for the tests of their loaders."""

import csv
import json
from pathlib import Path

import pandas as pd

WORDS = "lamp chair rug mug kettle clock vase shelf stool tray".split()
EXAMPLE_COLUMNS = ["example_id", "query", "query_id", "product_id", "product_locale", "esci_label", "small_version"]
PARTS = [f"product_{part}" for part in ("title", "description", "bullet_point", "brand", "color")]
REVIEW_COLUMNS = ["user_id", "parent_asin", "rating", "timestamp", "history"]


def esci(folder: Path, n_train: int = 6) -> dict[str, Path]:
    """ESCI's examples and products, and a catalogue as BLaIR has it; query i wants product P<i> exactly."""
    rows = []
    for query, word in enumerate(WORDS):
        split = "train" if query < n_train else "test"
        for step, label in enumerate("ESCI"):  # E is its own product, then those after it
            rows.append((len(rows), f"a {word}", query, f"P{(query + step) % len(WORDS)}", "us", label, 1, 1, split))
        rows.append((len(rows), f"una {query}", 900 + query, "P0", "es", "E", 1, 1, split))
        rows.append((len(rows), f"large {query}", 800 + query, "P0", "us", "E", 0, 1, split))
    examples, products = folder / "examples.parquet", folder / "products.parquet"
    pd.DataFrame(rows, columns=[*EXAMPLE_COLUMNS, "large_version", "split"]).to_parquet(examples)
    items = [(f"P{n}", f"The {word}", f"<b>Good</b> {word} &amp; more", None, "Acme", "red", "us")
             for n, word in enumerate(WORDS)]  # fmt: skip
    items += [("P0", "La lampa", None, None, None, None, "es"), ("P99", "Never judged", *[None] * 4, "us")]
    pd.DataFrame(items, columns=["product_id", *PARTS, "product_locale"]).to_parquet(products)
    text = [{"item_id": f"P{n}", "category": ["Baby_Products", "Video_Games"][n % 2],
             "metadata": f"The {word}. Good {word} and more."} for n, word in enumerate(WORDS)]  # fmt: skip
    catalogue = write_jsonl(folder / "catalogue.jsonl", text)
    return {"examples": examples, "products": products, "catalogue": catalogue}


def c4(folder: Path, n: int = 20) -> dict[str, Path]:
    """Amazon-C4's requests and items: half the requests are about Games, the rest about Home, one Baby."""
    items = [{"item_id": f"B{number}", "category": ["Games", "Home"][number % 2],
              "metadata": f"Item {number}. It is {number}."} for number in range(n)]  # fmt: skip
    items[2]["category"] = "Baby"
    items += [{"item_id": f"X{number}", "category": "Home", "metadata": f"Other {number}."} for number in range(n)]
    rows = [(i, f'I need, "really", number {i}', f"B{i}", f"U{i}", 5, "Five\nstars") for i in range(n)]
    header = ["qid", "query", "item_id", "user_id", "ori_rating", "ori_review"]
    requests = write_csv(folder / "test.csv", header, rows)
    return {"items": write_jsonl(folder / "items.jsonl", items), "requests": requests}


def reviews(folder: Path, category: str = "All_Beauty") -> dict[str, Path]:
    """Amazon Reviews' three files and metadata: users a, b train; test has a (seen) and n (inductive)."""
    train = [("a", "I0", 5.0, 1, ""), ("a", "I1", 5.0, 2, "I0"), ("b", "I3", 4.0, 3, "I2 I9"), ("c", "I5", 1.0, 3, "")]
    valid = [("a", "I2", 5.0, 4, "I0 I1"), ("n", "I4", 5.0, 4, "I5")]
    test = [("a", "I3", 5.0, 5, "I0 I1 I2"), ("n", "I6", 5.0, 5, "I5 I4"), ("n", "I5", 5.0, 6, "I5 I4 I6")]
    for split, rows in {"train": train, "valid": valid, "test": [*test, ("m", "I1", 2.0, 7, "")]}.items():
        write_csv(folder / f"{category}.{split}.csv", REVIEW_COLUMNS, rows)
    told = {"features": ["soft", "blue"], "description": ["A <b>soap</b>."], "categories": [], "price": None}
    items = [{"parent_asin": f"I{number}", "title": f"Soap {number} &amp; oil", **told} for number in range(8)]
    # I9 has no metadata, I7 is in no example
    return {"folder": folder, "items": write_jsonl(folder / f"meta_{category}.jsonl", items)}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, header: list[str], rows: list[tuple]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path
