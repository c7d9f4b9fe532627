"""The sections of a comparison at one budget; each is there only where the rows have what it shows."""

# MERGED: """What the rows of a run do not show: each sentence follows from them, and stands only where it applies."""

from __future__ import annotations

from collections.abc import Callable

from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.report import comparisons as plots
from recr1_lite.report import rows as budget
from recr1_lite.report.comparisons import task_name
from recr1_lite.report.rows import (
    FIGURES,
    PAPER,
    SETTING,
    SOURCE,
    Fold,
    Grid,
    Section,
    Table,
    headline,
    main_table,
    shown,
    tables,
    untrained,
)


def contest(rows: list[dict]) -> list[Section]:
    """Cost, learning curves, cost against quality, bound, forgetting, continual adaptation, published figures."""
    parts: list[Callable] = [costs, race, cost_quality, bound, forgetting, continual, published]
    return [section for make in parts if (section := make(rows))]


def costs(rows: list[dict]) -> Section | None:
    """What each training took, beside what it reached."""
    found = budget.costs(rows)
    if not found:
        return None
    table = main_table(rows)
    scores = {spot["method"]: show(spot) for spot in table.spots()} if table else {}
    head = [
        "method",
        *([f"{table.split} {metric_label(table.metric)} [95%]"] if table else []),
        *budget.COSTS.values(),
        "stopped",
    ]
    stopped = {row.get("method"): row.get("stopped") or "" for row in rows if row["kind"] == "train"}
    body = [
        [
            row["method"],
            *([scores.get(row["method"], "not measured")] if table else []),
            *(_amount(key, row[key]) for key in budget.COSTS),
            str(stopped.get(row["method"], "")),
        ]
        for row in found
    ]
    note = "Of training alone: samples and tokens of a teacher count as the method's own, validation does not. " + (
        "Money: nothing was paid."
        if not any(row["money"] for row in found)
        else "Money: at the prices of the run's settings."
    )
    return Section("What training cost", [Grid(head, body), note])


def race(rows: list[dict]) -> Section | None:
    """Learning curves together, against seconds and against samples, with the scores at the common budget."""
    if len(budget.curves(rows)) < 2 and len(budget.curves(rows, "samples")) < 2:
        return None
    parts: list = [
        "Validation of every trained method within the same budget, in seconds and in samples; a method "
        "may use less, and one that only imitates a rule samples nothing. The tables give each method's "
        "best checkpoint within the budget, the one that is tested; unlike the test table, they pair "
        "nothing."
    ]
    for by in ("seconds", "samples"):
        curves, at = budget.curves(rows, by), budget.at_budget(rows, by)
        if len(curves) > 1:
            metric = _val_metric(rows)
            count = next(iter(curves.values()))[-1].get("n")
            parts += [
                plots.race(rows, by, budget.baselines(rows) | untrained(rows, count), metric),
                Grid(
                    ["method", by, f"val {metric_label(metric)} [95%]", "n"],
                    [[row["method"], f"{row[by]:,.0f}", show(row), str(row.get("n", ""))] for row in at],
                ),
            ]
            missing = [name for name in curves if name not in {row["method"] for row in at}]
            parts += [f"Without a checkpoint within these {by}: {', '.join(missing)}."] if missing else []
    return Section("The same budget", parts)


def cost_quality(rows: list[dict]) -> Section | None:
    """The headline metric with its interval over the seconds and the tokens of the training."""
    table, spent = main_table(rows), {row["method"]: row for row in budget.costs(rows)}
    found = table.spots() if table else []
    spots = [spot | _spent(spent[spot["method"]]) for spot in found if spot["method"] in spent]
    if not any(spot["seconds"] or spot["tokens"] for spot in spots):
        return None
    base = {spot["method"]: spot for spot in found if spot["method"] not in spent}
    base = {name: spot for name, spot in base.items() if spot.get("n") == spots[0].get("n")}
    return Section("Cost against quality", [plots.cost_quality(spots, base, table.metric, table.split)])


def bound(rows: list[dict]) -> Section | None:
    """Teachers, SFT variants, rejection SFT and GRPO on one plot, with the differences paired with the teacher."""
    table = main_table(rows)
    spots = {spot["method"]: spot for spot in table.spots()} if table else {}
    trained = [name for name in budget.ORDER if name in spots and name not in budget.UNTRAINED]
    teachers = [spots[name] for name in ("teacher", "LM teacher") if name in spots]
    if not teachers or not trained:
        return None
    own = {name: budget.TEACHERS.get(name, "teacher") for name in trained}
    versus = {name: table.differences[name, own[name]] for name in trained if (name, own[name]) in table.differences}
    body = [
        [
            name,
            own[name],
            shown(versus.get(name), True),
            budget.verdict(versus[name]) if name in versus else "not compared",
        ]
        for name in trained
    ]
    return Section(
        "Can SFT pass its teacher?",
        [
            f"The paper ({PAPER}) argues that SFT on a policy's outputs is bounded by that policy. Rejection SFT "
            "learns from the model's own outputs chosen by reward, and GRPO from the reward, so the bound does not hold "
            "for them.",
            plots.bound([spots[name] for name in trained], versus, teachers, table.metric),
            Grid(["method", "held against", f"{metric_label(table.metric)}, paired difference [95%]", "verdict"], body),
        ],
    )


def forgetting(rows: list[dict]) -> Section | None:
    """Capability against the untrained model, and forward KL against retention."""
    changes, means = budget.capability_changes(rows), budget.capability_means(rows)
    if not changes and not means:
        return None
    parts: list = [plots.forgetting(rows)] if changes else ["No method was compared with the untrained model."]
    if changes:
        parts.append(
            Grid(
                ["method", "task", "metric", "n", "minus untrained, paired [95%]", "verdict"],
                [
                    [
                        row["method"],
                        task_name(row["task"]),
                        row["metric"],
                        str(row["n"] or ""),
                        show(row["difference"], sign=True),
                        budget.worse(row) or "not shown",
                    ]
                    for row in changes
                ],
            )
        )
    if budget.retention(rows):
        parts.append(plots.kl_retention(rows))
    scores = [
        [
            str(row["method"]),
            task_name(str(row.get("task", ""))),
            str(row.get("metric", "")),
            str(row.get("n") or ""),
            show(row),
        ]
        for row in means
    ]
    if scores:
        parts.append(Fold("All capability scores", [Grid(["method", "task", "metric", "n", "mean [95%]"], scores)]))
    return Section("What was forgotten", parts)


def continual(rows: list[dict]) -> Section | None:
    """Stages x measures for each trainer."""
    stages, names = budget.stages(rows), budget.measures(rows)
    if not names:
        return None
    body = [
        [
            trainer,
            str(row.get("name", row.get("stage", ""))),
            *(shown(row["measures"].get(name)) for name in names),
            f"{row['seconds']:,.0f}" if budget.number(row.get("seconds")) is not None else "",
        ]
        for trainer, line in stages.items()
        for row in line
    ]
    return Section(
        "One task after another", [plots.continual(rows), Grid(["trainer", "stage", *names, "seconds"], body)]
    )


def published(rows: list[dict]) -> Section | None:
    """The authors' figures beside a comparison's own, marked as published."""
    table = main_table(rows)
    spots = {spot["method"]: spot for spot in table.spots()} if table else {}
    ours = [spots[name] for row in FIGURES for name in row["ours"] if name in spots]
    if not budget.costs(rows) or len(ours) < 2:
        return None
    body = [
        [
            row["method"],
            f"{row['mean'] / 100:.4f}",
            f"[{row['low'] / 100:.3f}, {row['high'] / 100:.3f}]",
            f"{row['once'] / 100:.4f}",
            "; ".join(f"{name} {show(spots[name])}" for name in row["ours"] if name in spots),
        ]
        for row in FIGURES
    ]
    head = [
        "published method",
        "PUBLISHED nDCG@100",
        "its 95%, worked out here",
        "each target once",
        f"here: {table.task}, {table.split}, n = {ours[0].get('n', '?')}",
    ]
    return Section(
        "Published figures beside ours",
        [
            f"Published figures are those of {SETTING.replace(' x 100', '')}; source: {SOURCE}, divided by 100 here. "
            "The authors' files list some targets twice, and their nDCG counts them twice; the fourth column counts each "
            "once. Neither data, model nor retriever is ours, so no row of this table is a comparison.",
            plots.published(ours, table.metric, f"this run, {table.task} {table.split}"),
            Grid(head, body),
        ],
    )


def _val_metric(rows: list[dict]) -> str:
    return next((row["metric"] for row in rows if row["kind"] == "train" and row.get("metric")), "ndcg@100")


def _spent(cost: dict) -> dict:
    tokens = [cost[key] for key in ("tokens_generated", "tokens_trained") if cost[key] is not None]
    return {"seconds": cost["seconds"], "tokens": sum(tokens) if tokens else None}


def _amount(key: str, value: float | None) -> str:
    if value is None:
        return "not noted"
    digits = 2 if key == "money" and value else 1 if key == "seconds" else 0
    return f"{value:,.{digits}f}"


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
    return [
        *found,
        "That these are the paper's numbers: data, model and budget are this kit's, while the "
        "paper (arXiv 2503.24289) trains 3B models on two A100s.",
    ]


def _differences(table: Table | None) -> list[str]:
    if table is None:
        return []
    open_pairs = {pair: row for pair, row in table.differences.items() if row["low"] <= 0 <= row["high"]}
    found = [
        f"That {a} differs from {b} on {table.split}: the paired interval of the difference, "
        f"{show(row, sign=True)}, includes 0 (n = {row.get('n', '?')})."
        for (a, b), row in open_pairs.items()
    ]
    if len(found) > MANY:
        found = []
        for base in table.baselines:
            names = [a for a, b in open_pairs if b == base]
            found += (
                [
                    f"That any of these differs from {base} on {table.split}: {', '.join(names)}. Each "
                    "paired interval of the difference includes 0."
                ]
                if names
                else []
            )
    count = len(table.differences)
    if count >= 10:
        found.append(
            f"That each shown difference is real: of {count} intervals at 95%, about {count / 20:.0f} "
            "would leave 0 out by chance alone, and nothing was corrected for that."
        )
    return found


def _seeds(rows: list[dict]) -> list[str]:
    seeds = sorted({row["seed"] for row in rows if row.get("seed") is not None})
    if len(seeds) > 1:
        return []
    seed = seeds[0] if seeds else "not noted"
    return [
        f"That another seed gives the same: this run has one seed ({seed}), and the intervals "
        "cover the choice of requests, not of seeds."
    ]


def _budget(rows: list[dict]) -> list[str]:
    """Only of a comparison: of rows that say what training cost."""
    if not budget.costs(rows):
        return []
    limits = [
        f"{limit:,.0f} {unit}"
        for by, unit in (("seconds", "seconds"), ("samples", "samples"))
        if (limit := budget.common(rows, by))
    ]
    at = f" than {' or '.join(limits)}" if limits else ""
    found = [
        f"That the order of the methods holds at a larger budget{at}, or with other settings: each method "
        "was run with one setting, and not all were tuned with the same care.",
        "That seconds here are seconds elsewhere: they were measured on one machine, with this kit's "
        "trainers; tokens and samples carry over, seconds do not.",
    ]
    models = sorted(
        {str(config["model"]) for row in rows if isinstance(config := row.get("config"), dict) and config.get("model")}
    )
    if models:
        small = ", a model of 135M parameters" if models == ["smollm2-135m-instruct"] else ""
        found.append(
            f"That a larger model would behave like this: every method here trains {', '.join(models)}"
            f"{small}, through a LoRA adapter."
        )
    return found


def _teacher(rows: list[dict]) -> list[str]:
    teachers = {
        row["method"]: row
        for row in rows
        if row["kind"] == "eval" and row["split"] == "test" and row.get("method") in ("teacher", "LM teacher")
    }
    if not teachers:
        return []
    what = " and ".join(
        f"{name} ({'a local model' if row.get('tokens') else 'a rule without a model'})"
        for name, row in teachers.items()
    )
    return [
        f"That SFT would lose to GRPO, or beat it, with another teacher: its targets come from {what}, and "
        "not from GPT-4o as in the paper. A better teacher lifts what SFT can reach.",
        "That the bound on SFT is proved or refuted here: it speaks of expected reward in the limit; this "
        f"is {metric_label(headline(rows))} on one sample of requests.",
    ]


def _capability(rows: list[dict]) -> list[str]:
    changes = [row for row in budget.main_changes(rows) if not budget.is_loss(row["metric"])]
    if not changes:
        return []
    blind = max((row["difference"]["high"] - row["difference"]["low"]) / 2 for row in changes)
    counts = [row["n"] for row in changes if row.get("n")]
    items = (
        f"{min(counts)} to {max(counts)} items a task"
        if counts and min(counts) < max(counts)
        else (f"{counts[0]} items a task" if counts else "few items a task")
    )
    found = [
        f"That nothing was forgotten where no loss is shown: with {items} the widest interval reaches "
        f"{blind:.3f} to each side, so a loss smaller than that can hide.",
        "That these tasks are general capability: they are small sets, chosen so that this model scores "
        "between chance and the top, and the KL was taken on a few neutral prompts.",
    ]
    kept = [
        name
        for name in dict.fromkeys(row["method"] for row in changes)
        if not any(budget.worse(row) == "lost" for row in changes if row["method"] == name)
    ]
    lost = [name for name in dict.fromkeys(row["method"] for row in changes) if name not in kept]
    if kept and lost:
        found.append(
            f"That {', '.join(kept)} forgets less than {', '.join(lost)} because of the method alone: "
            "the learning rates and the distance moved differ too; see the KL."
        )
    return found


def _continual(rows: list[dict]) -> list[str]:
    lines = budget.stages(rows)
    if not lines:
        return []
    order = " then ".join(
        name
        for name in dict.fromkeys(
            str(row.get("name", "")).removeprefix("after ") for line in lines.values() for row in line
        )
        if name
    )
    return [
        "That adaptation goes on without forgetting, or that it does not: one order of stages was run "
        f"({order}), with one seed and one setting."
    ]
