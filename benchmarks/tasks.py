"""The table task x method on real data: baselines, GRPO, sealed test, the loop of `recr1_lite.recipes.demo` for each.

    python benchmarks/tasks.py --data FOLDER                 all tasks
    python benchmarks/tasks.py --tasks movielens             one; a task that is in the ledger is not run again

clothing (its exact form) and movielens (the next film) are the kit's own. All_Beauty and MSRD come from FOLDER, which
is not part of the kit:
    all_beauty/items.jsonl (id, title), train.jsonl and test.jsonl (setting, history, target)
    msrd/items.jsonl.gz (id, title, overview), queries.jsonl.gz (qid, query, split, qrels {id: 0 or 1})
    amazon_office/items.jsonl.gz (id, title), train.jsonl.gz and test.jsonl.gz (history, target); for ceiling.py alone
Without FOLDER they are passed over. Rows go to the ledger, from which the table is printed.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from bench import command

from recr1_lite.common import RecR1Error, run_script
from recr1_lite.ledger import Ledger
from recr1_lite.profiles import get_profile
from recr1_lite.recipes import demo
from recr1_lite.report.page import markdown_table
from recr1_lite.report.rows import tasks_table
from recr1_lite.tasks import Task, load_task
from recr1_lite.tasks.prompts import Prompt

# of five and four wordings, the best zero-shot on 80 and 48 training requests
BEAUTY = "A customer bought: {request}\n\nWhat will they buy next?"
FILM = "Correct the spelling of this film search: {request}"
# titles of All_Beauty in a request: ten take 524 tokens, and a step three minutes and 16 GB; 87% have three at most
TITLES = 3
VAL = 100  # All_Beauty comes without a val split: so many training examples, drawn with seed 0


def lines(path: Path) -> pd.DataFrame:
    return pd.read_json(path, lines=True, dtype=False, convert_dates=False)


def all_beauty(folder: Path) -> Task:
    items = lines(folder / "items.jsonl").rename(columns={"id": "item_id"})
    items["text"] = items["title"]
    train, test = (lines(folder / f"{split}.jsonl") for split in ("train", "test"))
    held_out = train.sample(VAL, random_state=0).index
    train["split"] = ["val" if row in held_out else "train" for row in train.index]
    test["split"] = "test"
    both = pd.concat([train, test], ignore_index=True).rename(columns={"target": "relevant"})
    both["example_id"] = both["split"] + "-" + both["setting"] + "-" + both.index.astype(str)
    prompt = Prompt(style="compact", instruction=BEAUTY, prefix="They will buy", mode="expand")
    told = dict(source="Amazon Reviews 2023, All_Beauty, reduced to recovered titles", licence="research use")
    metrics = ("ndcg@100", "ndcg@10", "recall@10", "mrr")
    given = dict(items=items, requests=both, name="all_beauty", prompt=prompt, last=TITLES, metrics=metrics)
    return load_task("custom", **given, **told)


def msrd(folder: Path) -> Task:
    items = lines(folder / "items.jsonl.gz").rename(columns={"id": "item_id"})
    items["text"] = items["title"] + " " + items["overview"].fillna("")
    requests = lines(folder / "queries.jsonl.gz").rename(columns={"qid": "example_id", "query": "request"})
    requests["relevant"] = [[item for item, label in row.items() if label] for row in requests.pop("qrels")]
    requests = requests[requests["relevant"].map(len) > 0].drop_duplicates("request")
    prompt = Prompt(style="compact", instruction=FILM, prefix="Corrected:", mode="expand")
    told = dict(source="metarank MSRD", licence="CC BY-SA 4.0", metrics=("ndcg@10", "ndcg@100", "recall@10", "mrr"))
    given = dict(items=items, requests=requests, name="msrd", prompt=prompt, unreachable="count")
    return load_task("custom", **given, **told)


def office(folder: Path) -> Task:
    items = lines(folder / "items.jsonl.gz").rename(columns={"id": "item_id"})
    items["text"] = items["title"]
    parts = [lines(folder / f"{split}.jsonl.gz").assign(split=split) for split in ("train", "test")]
    both = pd.concat(parts, ignore_index=True).rename(columns={"target": "relevant"})
    held_out = both[both["split"] == "train"].sample(1000, random_state=0).index
    both.loc[held_out, "split"] = "val"
    both["example_id"] = both.index.astype(str)
    prompt = Prompt(style="compact", instruction=BEAUTY, prefix="They will buy", mode="expand")
    told = dict(source="Amazon 2018, Office Products, as MiniOneRec cut it", licence="research use")
    given = dict(items=items, requests=both[["example_id", "history", "relevant", "split"]], name="office")
    return load_task("custom", **given, prompt=prompt, metrics=("ndcg@100", "recall@10", "mrr"), **told)


TASKS = {
    "clothing": lambda data: load_task("clothing", relevance="exact"),
    "movielens": lambda data: load_task("movielens", ahead=1),
    "all_beauty": lambda data: all_beauty(data / "all_beauty"),
    "msrd": lambda data: msrd(data / "msrd"),
}
OUTSIDE = ("all_beauty", "msrd")
CEILING = {"msrd": TASKS["msrd"], "office": lambda data: office(data / "amazon_office")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of all_beauty/ and msrd/")
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of them, between commas (default: all)")
    parser.add_argument("--retriever", default="bm25", help="bm25, dense or hybrid")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"), help="folder of the runs and of ledger.jsonl")
    options = parser.parse_args()
    ledger, profile = Ledger(options.out / "ledger.jsonl"), get_profile(options.profile)
    names = options.tasks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        raise RecR1Error(f"there is no task {unknown[0]!r} here; choose from {', '.join(TASKS)}")
    for name in names:
        run = f"{name}-{options.retriever}-{profile.name}-seed{options.seed}"
        if any(row.get("run") == run and row["method"] == "GRPO" for row in ledger.rows("eval")):
            print(f"{run} is in {ledger.path}; passed over")
        elif name in OUTSIDE and not options.data:
            print(f"{name} needs --data; passed over")
        else:
            how = dict(ledger=ledger.bind(command=command()), retriever=options.retriever)
            demo.demo(profile, options.out / run, options.seed, resume=True, task=TASKS[name](options.data), **how)
    table = tasks_table(ledger)
    print("\n".join(markdown_table(list(table.columns), table.astype(str).values.tolist())))


if __name__ == "__main__":
    sys.exit(run_script(main))
