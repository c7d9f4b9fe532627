"""Benchmarks from local files in their original formats, as settings of lm-evaluation-harness's own tasks."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

from recr1_lite.errors import RecR1Error

# the original MMLU has no line of names and letters; the Hub's export has one, and places 0 to 3
LETTERS = {mark: place for marks in ("ABCD", "0123") for place, mark in enumerate(marks)}
PUT = "put the benchmark's original file there"


def settings(**splits: list[dict]) -> dict:
    """Settings that make a task of the harness read these rows. splits: name -> rows."""
    from datasets import Dataset

    data = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    return {"custom_dataset": lambda **_: data, "dataset_path": None, "dataset_name": None, "metadata": None}


def rows_of(path: Path) -> list:
    """Lines of a CSV as lists, of JSON lines as dicts, gzipped or not. Raises RecR1Error: missing, damaged, empty."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                rows = list(csv.reader(file))
            else:
                rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise RecR1Error(f"{path.name} cannot be read from the data folder ({error}); {PUT}") from error
    if not rows:
        raise RecR1Error(f"{path.name} in the data folder is empty; {PUT}")
    return rows


def gsm8k(folder: Path) -> dict:
    """The five worked examples come from gsm8k_train.jsonl; without it there are none, as no test item may help."""
    test, train = rows_of(folder / "gsm8k_test.jsonl"), folder / "gsm8k_train.jsonl"
    if train.is_file():
        return settings(test=test, train=rows_of(train))
    return settings(test=test) | {"num_fewshot": 0, "training_split": None, "fewshot_split": None}


def mmlu_subjects(folder: Path) -> list[str]:
    """Subjects with a file mmlu/SUBJECT_test.csv. Raises RecR1Error where there is none."""
    found = [path.name.removesuffix("_test.csv") for path in sorted((folder / "mmlu").glob("*_test.csv"))]
    if not found:
        raise RecR1Error(f"mmlu/ in the data folder has no SUBJECT_test.csv; {PUT}")
    return found


def mmlu(folder: Path, subject: str) -> dict:
    """One subject's test and dev questions."""
    def rows(split: str) -> list[dict]:
        name = f"{subject}_{split}.csv"
        lines = rows_of(folder / "mmlu" / name)
        start = int(lines[0][-1] == "answer")
        for number, row in enumerate(lines[start:], start=start + 1):
            if len(row) != 6 or row[5] not in LETTERS:
                raise RecR1Error(f"row {number} of mmlu/{name} is not question, four choices, letter; mend it")
        return [{"question": row[0], "choices": row[1:5], "answer": LETTERS[row[5]]} for row in lines[start:]]

    return settings(test=rows("test"), dev=rows("dev"))


LOCAL = {"gsm8k": gsm8k, "ifeval": lambda folder: settings(train=rows_of(folder / "ifeval.jsonl")),
         "humaneval": lambda folder: settings(test=rows_of(folder / "HumanEval.jsonl.gz"))}
