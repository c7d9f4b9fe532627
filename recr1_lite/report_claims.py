"""What the rows of a run do not show: each sentence follows from them, and stands only where it applies."""

from __future__ import annotations

from recr1_lite import budget
from recr1_lite.evaluation import metric_label, show
from recr1_lite.report_rows import Table, headline, main_table, tables

MANY = 6  # so many differences that are not shown get a sentence each; more of them share one a baseline


def claims(ledger, rows: list[dict]) -> list[str]:
    """What these rows do not show, worked out from them."""
    found = []
    if not any(table.split == "test" for table in tables(rows)):
        found.append("Nothing here is a test result: the test split was not evaluated in this run.")
    found += [*_differences(main_table(rows)), *_seeds(rows)]
    if any(row["kind"] == "train" for row in rows):
        found.append("That a policy's validation figure is unbiased: validation picked its checkpoint.")
    opened = len(ledger.rows("unseal"))
    if opened > 1:
        found.append(f"That the test was seen once: this ledger's runs opened it {opened} times.")
    found += [*_budget(rows), *_teacher(rows), *_capability(rows), *_continual(rows)]
    return [*found, "That these are the paper's numbers: data, model and budget are this kit's, while the "
            "paper (arXiv 2503.24289) trains 3B models on two A100s."]


def _differences(table: Table | None) -> list[str]:
    if table is None:
        return []
    open_pairs = {pair: row for pair, row in table.differences.items() if row["low"] <= 0 <= row["high"]}
    found = [f"That {a} differs from {b} on {table.split}: the paired interval of the difference, "
             f"{show(row, sign=True)}, includes 0 (n = {row.get('n', '?')})."
             for (a, b), row in open_pairs.items()]
    if len(found) > MANY:
        found = []
        for base in table.baselines:
            names = [a for a, b in open_pairs if b == base]
            found += [f"That any of these differs from {base} on {table.split}: {', '.join(names)}. Each "
                      "paired interval of the difference includes 0."] if names else []
    count = len(table.differences)
    if count >= 10:
        found.append(f"That each shown difference is real: of {count} intervals at 95%, about {count / 20:.0f} "
                     "would leave 0 out by chance alone, and nothing was corrected for that.")
    return found


def _seeds(rows: list[dict]) -> list[str]:
    seeds = sorted({row["seed"] for row in rows if row.get("seed") is not None})
    if len(seeds) > 1:
        return []
    seed = seeds[0] if seeds else "not noted"
    return [f"That another seed gives the same: this run has one seed ({seed}), and the intervals "
            "cover the choice of requests, not of seeds."]


def _budget(rows: list[dict]) -> list[str]:
    """Only of a comparison: of rows that say what training cost."""
    if not budget.costs(rows):
        return []
    limits = [f"{limit:,.0f} {unit}" for by, unit in (("seconds", "seconds"), ("samples", "samples"))
              if (limit := budget.common(rows, by))]
    at = f" than {' or '.join(limits)}" if limits else ""
    found = [f"That the order of the methods holds at a larger budget{at}, or with other settings: each method "
             "was run with one setting, and not all were tuned with the same care.",
             "That seconds here are seconds elsewhere: they were measured on one machine, with this kit's "
             "trainers; tokens and samples carry over, seconds do not."]
    models = sorted({str(config["model"]) for row in rows if isinstance(config := row.get("config"), dict)
                     and config.get("model")})
    if models:
        small = ", a model of 135M parameters" if models == ["smollm2-135m-instruct"] else ""
        found.append(f"That a larger model would behave like this: every method here trains {', '.join(models)}"
                     f"{small}, through a LoRA adapter.")
    return found


def _teacher(rows: list[dict]) -> list[str]:
    teachers = {row["method"]: row for row in rows if row["kind"] == "eval" and row["split"] == "test"
                and row.get("method") in ("teacher", "LM teacher")}
    if not teachers:
        return []
    what = " and ".join(f"{name} ({'a local model' if row.get('tokens') else 'a rule without a model'})"
                        for name, row in teachers.items())
    return [f"That SFT would lose to GRPO, or beat it, with another teacher: its targets come from {what}, and "
            "not from GPT-4o as in the paper. A better teacher lifts what SFT can reach.",
            "That the bound on SFT is proved or refuted here: it speaks of expected reward in the limit; this "
            f"is {metric_label(headline(rows))} on one sample of requests."]


def _capability(rows: list[dict]) -> list[str]:
    changes = [row for row in budget.main_changes(rows) if not budget.is_loss(row["metric"])]
    if not changes:
        return []
    blind = max((row["difference"]["high"] - row["difference"]["low"]) / 2 for row in changes)
    counts = [row["n"] for row in changes if row.get("n")]
    items = f"{min(counts)} to {max(counts)} items a task" if counts and min(counts) < max(counts) else (
        f"{counts[0]} items a task" if counts else "few items a task")
    found = [f"That nothing was forgotten where no loss is shown: with {items} the widest interval reaches "
             f"{blind:.3f} to each side, so a loss smaller than that can hide.",
             "That these tasks are general capability: they are small sets, chosen so that this model scores "
             "between chance and the top, and the KL was taken on a few neutral prompts."]
    kept = [name for name in dict.fromkeys(row["method"] for row in changes)
            if not any(budget.worse(row) == "lost" for row in changes if row["method"] == name)]
    lost = [name for name in dict.fromkeys(row["method"] for row in changes) if name not in kept]
    if kept and lost:
        found.append(f"That {', '.join(kept)} forgets less than {', '.join(lost)} because of the method alone: "
                     "the learning rates and the distance moved differ too; see the KL.")
    return found


def _continual(rows: list[dict]) -> list[str]:
    lines = budget.stages(rows)
    if not lines:
        return []
    order = " then ".join(name for name in dict.fromkeys(
        str(row.get("name", "")).removeprefix("after ") for line in lines.values() for row in line) if name)
    return ["That adaptation goes on without forgetting, or that it does not: one order of stages was run "
            f"({order}), with one seed and one setting."]
