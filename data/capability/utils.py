"""What the task YAMLs beside this file call: their items, and the harness's own IFEval checkers."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset

FOLDER = Path(__file__).resolve().parent


def items(file: str, **_) -> dict[str, Dataset]:
    """The rows of one JSONL file here, as the split `test`."""
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def follows(doc: dict, results: list[str]) -> dict[str, float]:
    """1 if every instruction of the prompt was followed to the letter (IFEval's strict prompt level), else 0."""
    from lm_eval.tasks.ifeval.utils import process_results  # needs NLTK's punkt_tab, see harness.py

    return {"acc": float(process_results(doc, results)["prompt_level_strict_acc"])}


def paragraphs(file: str, **_) -> dict[str, Dataset]:
    """The paragraphs of a text file here, as the split `test`."""
    texts = (FOLDER / file).read_text(encoding="utf-8").strip().split("\n\n")
    return {"test": Dataset.from_list([{"id": f"text-{n:02}", "text": text} for n, text in enumerate(texts, 1)])}


def surprise(doc: dict, results: list[float]) -> dict[str, float]:
    """Nats a word: minus the log-probability of the paragraph, by its number of words."""
    return {"nats": -results[0] / len(doc["text"].split())}
