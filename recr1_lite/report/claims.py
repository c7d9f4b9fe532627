"""What the rows of a run do not show, in sentences worked out from them."""

from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.report import rows as book
from recr1_lite.report.rows import Table, main_table, of_kind, tables

MANY = 6  # so many differences that are not shown get a sentence each; more of them share one per baseline


def claims(ledger, rows: list[dict]) -> list[str]:
    """What these rows do not show, worked out from them."""
    said, table = [], main_table(rows)
    if table is None or table.split != "test":
        said.append("Nothing here is a test result: the test split was not evaluated in this run.")
    if table:
        said += [*_no_difference(table), *_without_model(table, {row["method"] for row in of_kind(rows, "train")})]
    seeds = {row["seed"] for row in rows if row.get("seed") is not None} or {"not noted"}
    if len(seeds) == 1:
        said.append(
            f"That another seed gives the same: this run has one seed ({seeds.pop()}), and the intervals cover the "
            "choice of requests, not of seeds."
        )
    if of_kind(rows, "train"):
        said.append("That a policy's validation figure is unbiased: validation picked its checkpoint.")
    opened = len(ledger.rows("unseal"))
    if opened > 1:
        said.append(f"That the test was seen once: this ledger's runs opened it {opened} times.")
    said += [*_budget(rows), *_teacher(rows), *_capability(rows)]
    names = [row["name"].removeprefix("after ") for line in book.stages(rows).values() for row in line]
    if names:
        said.append(
            "That adaptation goes on without forgetting, or that it does not: one order of stages was run "
            f"({' then '.join(dict.fromkeys(names))}), with one seed and one setting."
        )
    said.append(
        "That these are the paper's numbers: data, model and budget are this kit's, while the paper (arXiv 2503.24289) "
        "trains 3B models on two A100s."
    )
    return said


def _without_model(table: Table, trained: set[str]) -> list[str]:
    """What the trained methods are held against: the best that needs no language model, if not the raw request."""
    free = {row["method"] for row in table.evals if row.get("tokens") == 0} - {"raw request"}
    names = [row["method"] for row in table.evals if row["method"] in trained]
    best = max((s for s in table.spots() if s["method"] in free), key=lambda spot: spot["mean"], default=None)
    if not names:
        return []
    if best is None:
        return [f"That it took a language model: nothing without one was measured on {table.split}; see `ceiling`."]
    pairs = [(name, table.differences.get((name, best["method"]))) for name in names]
    gaps = [f"{name} minus it {show(gap, sign=True)}" for name, gap in pairs if gap] or ["not paired with the others"]
    reached = f"{best['method']} reaches {show(best)} {metric_label(table.metric)} on {table.split}"
    return [f"That a gain over the raw request took a language model by itself: {reached} ({'; '.join(gaps)})."]


def _no_difference(table: Table) -> list[str]:
    pairs = {pair: row for pair, row in table.differences.items() if book.verdict(row).startswith("not")}
    said = [
        f"That {a} differs from {b} on {table.split}: the paired interval of the difference, {show(row, sign=True)}, "
        f"includes 0 (n = {row['n']})."
        for (a, b), row in pairs.items()
    ]
    if len(pairs) > MANY:
        names = {base: ", ".join(a for a, b in pairs if b == base) for base in table.baselines}
        said = [
            f"That any of these differs from {base} on {table.split}: {those}. Each paired interval of the difference "
            "includes 0."
            for base, those in names.items()
            if those
        ]
    count = len(table.differences)
    if count >= 10:
        said.append(
            f"That each shown difference is real: of {count} intervals at 95%, about {count / 20:.0f} would leave 0 "
            "out by chance alone, and nothing was corrected for that."
        )
    return said


def _budget(rows: list[dict]) -> list[str]:
    """Only of a comparison: of rows that say what training cost."""
    if not book.costs(rows):
        return []
    limits = [f"{limit:,.0f} {by}" for by in ("seconds", "samples") if (limit := book.common(rows, by))]
    at = f" than {' or '.join(limits)}" if limits else ""
    models = sorted({row["config"]["model"] for row in of_kind(rows, "train")})
    small = ", a model of 135M parameters" if models == ["smollm2-135m-instruct"] else ""
    return [
        f"That the order of the methods holds at a larger budget{at}, or with other settings: each method was run with "
        "one setting, and not all were tuned with the same care.",
        "That seconds here are seconds elsewhere: they were measured on one machine, with this kit's trainers; tokens "
        "and samples carry over, seconds do not.",
        f"That a larger model would behave like this: every method here trains {', '.join(models)}{small}, through a "
        "LoRA adapter.",
    ]


def _teacher(rows: list[dict]) -> list[str]:
    tested = {row["method"]: row for row in of_kind(rows, "eval") if row["split"] == "test"}
    teachers = {name: row for name, row in tested.items() if name in ("teacher", "LM teacher")}
    kinds = [f"{n} ({'a local model' if r.get('tokens') else 'a rule without a model'})" for n, r in teachers.items()]
    if not kinds:
        return []
    return [
        f"That SFT would lose to GRPO, or beat it, with another teacher: its targets come from {' and '.join(kinds)}, "
        "and not from GPT-4o as in the paper. A better teacher lifts what SFT can reach.",
        "That the bound on SFT is proved or refuted here: it speaks of expected reward in the limit; this is "
        f"{metric_label(tables(rows)[0].metric)} on one sample of requests.",
    ]


def _capability(rows: list[dict]) -> list[str]:
    changes = [row for row in book.main_changes(rows) if not book.is_loss(row["metric"])]
    if not changes:
        return []
    blind = max((row["difference"]["high"] - row["difference"]["low"]) / 2 for row in changes)
    counts = sorted({row["n"] for row in changes})
    items = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
    lost = list(dict.fromkeys(row["method"] for row in changes if book.worse(row) == "lost"))
    kept = list(dict.fromkeys(row["method"] for row in changes if row["method"] not in lost))
    said = [
        f"That nothing was forgotten where no loss is shown: with {items} items per task the widest interval reaches "
        f"{blind:.3f} to each side, so a loss smaller than that can hide.",
        "That these tasks are general capability: they are small sets, chosen so that this model scores between chance "
        "and the top, and the KL was taken on a few neutral prompts.",
    ]
    if kept and lost:
        said.append(
            f"That {', '.join(kept)} forgets less than {', '.join(lost)} because of the method alone: the learning "
            "rates and the distance moved differ too; see the KL."
        )
    return said
