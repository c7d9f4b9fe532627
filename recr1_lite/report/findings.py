"""What the rows of a run say, and what they do not, in sentences: titles of the comparison figures, and claims."""

from collections.abc import Mapping, Sequence

from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.report import rows as book
from recr1_lite.report.rows import Table, main_table, tables

UNIT = {"seconds": "s", "samples": "samples", "tokens": "tokens"}
MANY = 6  # so many differences that are not shown get a sentence each; more of them share one per baseline


def race_finding(rows: Sequence[Mapping], limit: float | None, by: str, label: str) -> str:
    if not rows:
        return f"No validation point with its {by} has been logged yet"
    best, *others = sorted(rows, key=lambda row: -row["mean"])
    if not others:
        return f"Within {limit:,.0f} {UNIT[by]}: {best['method']} reaches val {label} {best['mean']:.3f}"
    told = f"Within {limit:,.0f} {UNIT[by]}, {best['method']} is highest: val {label} {best['mean']:.3f}"
    apart = "the intervals lie apart"
    fact = "the intervals overlap: not shown to differ" if book.overlap(best, others[0]) else apart
    return f"{told} against {others[0]['method']}'s {others[0]['mean']:.3f}; {fact}"


def cost_finding(rows: Sequence[Mapping], label: str) -> str:
    if not rows:
        return "No trained method has both a score and a cost"

    def spent(row: Mapping) -> str:
        return f" in {row['seconds']:,.0f} s" if row.get("seconds") else ""

    best = max(rows, key=lambda row: row["mean"])
    told = f"{best['method']} is highest, {label} {best['mean']:.3f}" + spent(best)
    cheap = min((row for row in rows if row.get("seconds")), key=lambda row: row["seconds"], default=best)
    if cheap is best:
        return told + (", and the cheapest" if len(rows) > 1 else "")
    fact = "intervals overlap" if book.overlap(best, cheap) else "intervals apart"
    return f"{told}; the quickest, {cheap['method']}, {cheap['mean']:.3f}{spent(cheap)} ({fact})"


def bound_finding(rows: Sequence[Mapping], differences: Mapping[str, Mapping]) -> str:
    known = [row["method"] for row in rows if row["method"] in differences]
    if not known:
        return "No method was paired with its teacher; the dots alone show no difference"
    verdicts = {name: book.verdict(differences[name]) for name in known}
    gains = {name: f"({differences[name]['mean']:+.3f})" for name in known}
    sft = [name for name in known if book.is_sft(name)]
    above = ", ".join(f"{name} {gains[name]}" for name in sft if verdicts[name] == "above")
    count = sum(verdicts[name] == "above" for name in sft)
    told = (
        [f"{count} of {len(sft)} SFT variants shown above the teacher" + (f": {above}" if above else "")] if sft else []
    )
    free = ", ".join(f"{name} {verdicts[name]} {gains[name]}" for name in known if name not in sft)
    return "; ".join(told + ([free + ("" if told else " the teacher")] if free else []))


def continual_finding(rows: Sequence[Mapping]) -> str:
    """What the last stage did to the first task since the stage before, and to capability since the start.

    A paired difference to the untrained model is used where the row has one; else whether the two intervals overlap.
    """
    told, last = [], ""
    for trainer, line in book.stages(rows).items():
        if len(line) < 3:
            continue
        starts = [(name, -2) for name in book.measures(rows)[:1]] + [("capability", 0)]
        ends = [(name, line[start]["measures"].get(name), line[-1]["measures"].get(name)) for name, start in starts]
        moves, paired = [], (line[-1].get("differences") or {}).get("capability") or {}
        for name, before, after in ends:
            if book.whole(before) and book.whole(after):
                since_start = name == "capability" and book.whole(paired)
                same = book.verdict(paired).startswith("not") if since_start else book.overlap(before, after)
                moves.append(f"{name} {before['mean']:.3f} → {after['mean']:.3f}{'*' * same}")
        if moves:
            told.append(f"{trainer} {', '.join(moves)}")
            last = last or str(line[-1].get("name", "the last stage"))
    if not told:
        return "Fewer than three stages: nothing to tell of what an earlier one kept"
    star = " (*: not shown to differ)" if any("*" in text for text in told) else ""
    return f"{last[:1].upper()}{last[1:]}: {'; '.join(told)}{star}"


def forgetting_finding(changes: Sequence[Mapping], methods: Sequence[str]) -> str:
    if not changes:
        return "No method was compared with the untrained model on a capability task"
    told = []
    for name in methods:
        sides = [book.worse(row) for row in changes if row["method"] == name]
        gained = f" (gain on {sides.count('gained')})" if "gained" in sides else ""
        told.append(f"{name} {sides.count('lost')} of {len(sides)}{gained}")
    return f"Measures with a loss shown against the untrained model: {', '.join(told)}"


def retention_finding(kept: Sequence[Mapping]) -> str:
    if not kept:
        return "No method has both its KL and its capability measured"

    def told(row: Mapping) -> str:
        doubt = ", not shown to differ from 0" if book.verdict(row["change"]).startswith("not") else ""
        return f"{row['method']} moved {row['kl']['mean']:.2f} nats, accuracy {row['change']['mean']:+.3f}{doubt}"

    near, far = (pick(kept, key=lambda row: row["kl"]["mean"]) for pick in (min, max))
    return told(far) if far is near else f"{told(far)}; {told(near)}"


def claims(ledger, rows: list[dict]) -> list[str]:
    """What these rows do not show, worked out from them."""
    said = []
    if not any(table.split == "test" for table in tables(rows)):
        said.append("Nothing here is a test result: the test split was not evaluated in this run.")
    said += [*_no_difference(main_table(rows)), *_without_model(rows)]
    seeds = sorted({row["seed"] for row in rows if row.get("seed") is not None}) or ["not noted"]
    if len(seeds) == 1:
        said.append(
            f"That another seed gives the same: this run has one seed ({seeds[0]}), and the intervals cover the choice "
            "of requests, not of seeds."
        )
    if any(row["kind"] == "train" for row in rows):
        said.append("That a policy's validation figure is unbiased: validation picked its checkpoint.")
    opened = len(ledger.rows("unseal"))
    if opened > 1:
        said.append(f"That the test was seen once: this ledger's runs opened it {opened} times.")
    said += [*_budget(rows), *_teacher(rows), *_capability(rows), *_stages(rows)]
    said.append(
        "That these are the paper's numbers: data, model and budget are this kit's, while the paper (arXiv 2503.24289) "
        "trains 3B models on two A100s."
    )
    return said


def _without_model(rows: list[dict]) -> list[str]:
    """What the trained methods are held against: the best that needs no language model."""
    table, trained = main_table(rows), {row.get("method") for row in rows if row["kind"] == "train"}
    if table is None or not (names := [row["method"] for row in table.evals if row["method"] in trained]):
        return []
    if (best := book.without_model(table)) is None:
        return [f"That it took a language model: nothing without one was measured on {table.split}; see `ceiling`."]
    pairs = [(name, table.differences.get((name, best["method"]))) for name in names]
    gaps = [f"{name} minus it {show(gap, sign=True)}" for name, gap in pairs if gap] or ["not paired with the others"]
    reached = f"{best['method']} reaches {show(best)} {metric_label(table.metric)} on {table.split}"
    return [f"That a gain over the raw request took a language model by itself: {reached} ({'; '.join(gaps)})."]


def _no_difference(table: Table | None) -> list[str]:
    if table is None:
        return []
    pairs = {pair: row for pair, row in table.differences.items() if row["low"] <= 0 <= row["high"]}
    if len(pairs) <= MANY:
        said = [
            f"That {a} differs from {b} on {table.split}: the paired interval of the difference, "
            f"{show(row, sign=True)}, includes 0 (n = {row.get('n', '?')})."
            for (a, b), row in pairs.items()
        ]
    else:
        names = {base: [a for a, b in pairs if b == base] for base in table.baselines}
        said = [
            f"That any of these differs from {base} on {table.split}: {', '.join(those)}. Each paired interval of the "
            "difference includes 0."
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
    said = [
        f"That the order of the methods holds at a larger budget{at}, or with other settings: each method was run with "
        "one setting, and not all were tuned with the same care.",
        "That seconds here are seconds elsewhere: they were measured on one machine, with this kit's trainers; tokens "
        "and samples carry over, seconds do not.",
    ]
    configs = [row["config"] for row in rows if isinstance(row.get("config"), dict)]
    models = sorted({str(config["model"]) for config in configs if config.get("model")})
    if models:
        small = ", a model of 135M parameters" if models == ["smollm2-135m-instruct"] else ""
        said.append(
            f"That a larger model would behave like this: every method here trains {', '.join(models)}{small}, through "
            "a LoRA adapter."
        )
    return said


def _teacher(rows: list[dict]) -> list[str]:
    tested = {row["method"]: row for row in rows if row["kind"] == "eval" and row["split"] == "test"}
    teachers = {name: row for name, row in tested.items() if name in ("teacher", "LM teacher")}
    kinds = [f"{n} ({'a local model' if r.get('tokens') else 'a rule without a model'})" for n, r in teachers.items()]
    if not kinds:
        return []
    return [
        f"That SFT would lose to GRPO, or beat it, with another teacher: its targets come from {' and '.join(kinds)}, "
        "and not from GPT-4o as in the paper. A better teacher lifts what SFT can reach.",
        "That the bound on SFT is proved or refuted here: it speaks of expected reward in the limit; this is "
        f"{metric_label(book.headline(rows))} on one sample of requests.",
    ]


def _capability(rows: list[dict]) -> list[str]:
    changes = [row for row in book.main_changes(rows) if not book.is_loss(row["metric"])]
    if not changes:
        return []
    blind = max((row["difference"]["high"] - row["difference"]["low"]) / 2 for row in changes)
    counts = sorted({row["n"] for row in changes if row.get("n")})
    items = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))) if counts else "few"
    said = [
        f"That nothing was forgotten where no loss is shown: with {items} items per task the widest interval reaches "
        f"{blind:.3f} to each side, so a loss smaller than that can hide.",
        "That these tasks are general capability: they are small sets, chosen so that this model scores between chance "
        "and the top, and the KL was taken on a few neutral prompts.",
    ]
    lost = list(dict.fromkeys(row["method"] for row in changes if book.worse(row) == "lost"))
    kept = [name for name in dict.fromkeys(row["method"] for row in changes) if name not in lost]
    if kept and lost:
        said.append(
            f"That {', '.join(kept)} forgets less than {', '.join(lost)} because of the method alone: the learning "
            "rates and the distance moved differ too; see the KL."
        )
    return said


def _stages(rows: Sequence[dict]) -> list[str]:
    names = [str(row.get("name", "")).removeprefix("after ") for line in book.stages(rows).values() for row in line]
    if not names:
        return []
    order = " then ".join(filter(None, dict.fromkeys(names)))
    return [
        f"That adaptation goes on without forgetting, or that it does not: one order of stages was run ({order}), with "
        "one seed and one setting."
    ]
