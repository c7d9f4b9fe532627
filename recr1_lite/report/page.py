"""The report of a run, made from the ledger alone: an HTML page that needs no network, or Markdown, of the same
sections, each there only where the rows of the run have what it shows.
Every figure in it stands beside its n, its interval, and the command, profile, device and seed that made it.
"""

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from matplotlib.figure import Figure
from pandas import DataFrame

from recr1_lite.common import RecR1Error, atomic_write, cell, template
from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.report import comparisons as plots
from recr1_lite.report import curves
from recr1_lite.report import rows as book
from recr1_lite.report.comparisons import task_name
from recr1_lite.report.figures import as_bytes
from recr1_lite.report.inspector import Inspection
from recr1_lite.report.rows import Table, facts, main_spots, main_table, of_kind, select, shown, tables, untrained


class Fold(NamedTuple):
    """A part that a reader opens when wanted."""

    summary: str
    inside: object


AMOUNTS = {"tokens": "{:,}", "seconds": "{:.1f}"}
# a list is shown as bullets, a frame as a table
Part: TypeAlias = str | list[str] | DataFrame | Fold | Figure | Inspection


class Section(NamedTuple):
    """A heading ("": none) with its parts in order."""

    title: str
    parts: list[Part]


def write_report(ledger, path: str | Path, run: str | None = None) -> Path:
    """Write the report of a run (default: the ledger's last), whole or not at all: HTML, or Markdown for .md, with its
    figures in a folder beside it, written before the page. Raises RecR1Error when the ledger holds no results, or none
    of that run, for another suffix, and when `path` cannot be written."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm", ".md"):
        raise RecR1Error(f"a report is HTML or Markdown; name it .html or .md, not {path.name!r}")
    name, rows = select(ledger, run)
    title, made = f"Rec-R1 lite: {name}" if name else "Rec-R1 lite", sections(ledger, rows)
    if path.suffix.lower() != ".md":
        told = {"title": title, "facts": facts(rows), "sections": made, "kind": kind, "svg": svg}
        return atomic_write(path, template("report", "page.html.j2").render(told))
    folder, figures = path.with_name(f"{path.stem}_figures"), list[Figure]()
    lines = [f"# {plain(title)}", "", *(f"- {key}: {plain(value)}" for key, value in facts(rows)), ""]
    for section in made:
        lines += [f"## {plain(section.title)}", ""] if section.title else []
        lines += [line for part in section.parts for line in markdown(part, folder.name, figures)]
    for place, figure in enumerate(figures, start=1):
        atomic_write(folder / f"{place:02}.png", as_bytes(figure, "png"))
    return atomic_write(path, "\n".join(lines))


def report_markdown(ledger, run: str | None = None) -> str:
    """The methods tables of a run as Markdown, with what made them and what they do not show: a report's core."""
    name, rows = select(ledger, run)
    lines = [f"**{name or 'results'}**: " + "; ".join(f"{key} {value}" for key, value in facts(rows)), ""]
    for table in tables(rows):
        frame = table.frame()
        lines += [f"{table.name}, task {table.task}:", "", *markdown_table([*frame], frame.to_numpy()), ""]
    not_shown = [f"- {claim}" for claim in claims(ledger, rows)]
    return "\n".join([*lines, "What may not be claimed:", "", *not_shown]) + "\n"


def kind(part) -> str:
    """What a part of a section is, for the template: str, list, dataframe, fold, figure or inspection."""
    return "figure" if isinstance(part, Figure) else type(part).__name__.lower()


def svg(figure: Figure) -> str:
    return base64.b64encode(as_bytes(figure, "svg")).decode()


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag, no emphasis, no code, on one line."""
    return re.sub(r"([*`\\])", r"\\\1", " ".join(str(text).split())).replace("<", "&lt;")


def markdown_table(head: list[str], body: Iterable[list[str]]) -> list[str]:
    """A Markdown table, one line per row; text that would end a cell is escaped."""
    return [f"| {' | '.join(map(cell, row))} |" for row in (head, ["---"] * len(head), *body)]


def markdown(part, folder: str, figures: list[Figure]) -> list[str]:
    """The lines of one part; a figure is put into `figures` and named by its place there."""
    if isinstance(part, DataFrame):
        return [*markdown_table([*map(plain, part.columns)], [[*map(plain, row)] for row in part.to_numpy()]), ""]
    if isinstance(part, list):
        return [*(f"- {plain(item)}" for item in part), ""]
    if isinstance(part, Fold):
        inside = markdown(part.inside, folder, figures)
        return [f"<details><summary>{plain(part.summary)}</summary>", "", *inside, "</details>", ""]
    if isinstance(part, Figure):
        figures.append(part)
        alt = re.sub(r"([\[\]])", r"\\\1", plain(part.get_suptitle()))
        return [f"![{alt}]({folder}/{len(figures):02}.png)", ""]
    if isinstance(part, Inspection):  # the cards with the hits are in the HTML page alone
        head = ["request", *(f"rewrite, {name}" for name in part.head["names"]), f"change of {part.head['metric']}"]
        queries = [[example["request"], *(stage["query"] for stage in example["stages"])] for example in part.examples]
        body = [[*row, f"{e['change']:+.3f}"] for row, e in zip(queries, part.examples, strict=True)]
        count = "{gains} requests gained, {losses} lost, {ties} tied.".format(**part.head)
        table = markdown(DataFrame(body, columns=head), folder, figures)
        return [f"{count} {part.rule} Their hits are in the HTML report.", "", *table]
    return [plain(part), ""]


def claims(ledger, rows: list[dict]) -> list[str]:
    """What these rows do not show, in sentences worked out from them."""
    table, trained, label = main_table(rows), [row["method"] for row in of_kind(rows, "train")], ""
    about: dict = {"table": table, "trained": trained, "alike": {}, "tested": [], "show": show}
    if table:
        differences, spots, label = table.differences, main_spots(rows), metric_label(table.metric)
        about["alike"] = {pair: row for pair, row in differences.items() if book.verdict(row).startswith("not")}
        about["tested"] = [row["method"] for row in table.evals if row["method"] in trained]
        free = [row["method"] for row in table.evals if row.get("tokens") == 0 and row["method"] != "raw request"]
        best = max((spots[name] for name in free if name in spots), key=lambda spot: spot["mean"], default=None)
        pairs = [(name, differences.get((name, best["method"]))) for name in about["tested"] if best]
        about |= {"free": best, "gaps": [f"{name} minus it {show(gap, sign=True)}" for name, gap in pairs if gap]}
    about |= {"seeds": {row["seed"] for row in rows if row.get("seed") is not None}, "costs": book.costs(rows)}
    about["limits"] = [f"{most:,.0f} {by}" for by in ("seconds", "samples") if (most := book.common(rows, by))]
    about["models"] = sorted({str(row["config"].get("model")) for row in of_kind(rows, "train") if row.get("config")})
    taught = [row for row in of_kind(rows, "eval") if row["split"] == "test" and row["method"] in book.TEACHER_NAMES]
    kinds = ["a local model" if row.get("tokens") else "a rule without a model" for row in taught]
    about["teachers"] = [f"{row['method']} ({kind})" for row, kind in zip(taught, kinds, strict=True)]
    changes = [row for row in book.main_changes(rows) if not book.is_loss(row["metric"])]
    reaches = [(row["difference"]["high"] - row["difference"]["low"]) / 2 for row in changes]
    lost = dict.fromkeys(row["method"] for row in changes if book.worse(row) == "lost")
    about |= {"items": sorted({row["n"] for row in changes}), "blind": max(reaches, default=0), "lost": [*lost]}
    about["kept"] = list(dict.fromkeys(row["method"] for row in changes if row["method"] not in lost))
    stages = [row["name"].removeprefix("after ") for line in book.stages(rows).values() for row in line]
    about |= {"stages": list(dict.fromkeys(stages)), "opened": len(ledger.rows("unseal")), "label": label}
    return template("report", "claims.j2").render(about).strip().split("\n")


def sections(ledger, rows: list[dict]) -> list[Section]:
    """All sections of a report on the rows of one run, in order; those without rows are left out."""
    contest = (costs, race, cost_quality, bound, forgetting, continual)
    made = [findings(tables(rows)), *map(methods, tables(rows)), *(make(rows) for make in contest)]
    made += [headroom(row, rows) for row in of_kind(rows, "headroom")]
    made += [training(row, rows) for row in of_kind(rows, "train")]
    for row in of_kind(rows, "inspect")[-1:]:
        seen = Inspection.from_rows(row["rows"])
        made.append(Section(f"What changed: {seen.head['before']} → {seen.head['after']}", [seen]))
    made += [time_and_tokens(rows), seal(ledger, rows), Section("What may not be claimed", [claims(ledger, rows)])]
    return [section for section in made if section]


def findings(made: list[Table]) -> Section:
    """Each paired difference of the first table in words, the last method's first; of very many, GRPO's."""
    if not made:
        return Section("", ["No method has been evaluated in this run."])
    label, said = metric_label(made[0].metric), {}
    for (a, b), row in reversed(made[0].differences.items()):
        word = book.verdict(row) + (" from" if book.verdict(row).startswith("not") else "")
        said[a, b] = f"{a} is {word} {b}: {show(row, sign=True)} {label}, n = {row['n']}."
    every = list(said.values())
    if len(said) <= 12:
        return Section("", [every])
    first = [text for pair, text in said.items() if "GRPO" in pair]
    return Section("", [first, Fold(f"All {len(said)} paired differences in words", every)])


def methods(table: Table) -> Section:
    """Every method on one split of one task."""
    metrics = list(dict.fromkeys(name for row in table.evals for name in row["metrics"]))
    more = []
    for row in table.evals:
        means = {metric_label(name): shown(row["metrics"].get(name)) for name in metrics}
        counts = ", ".join(f"{kind} {count}" for kind, count in (row.get("outcomes") or {}).items())
        more.append({"method": row["method"], **means, "parse outcomes": counts})
    note = "“vs” columns: mean difference, paired on the same requests. Brackets: 95% bootstrap intervals."
    base, spots = table.baselines[0] if table.baselines else None, table.spots()
    picture = [plots.methods(spots, base, table.metric)] if spots else []
    fold = Fold("All metrics and parse outcomes", DataFrame(more))
    return Section(f"{table.name}: {table.task}", [table.frame(), note, *picture, fold])


def headroom(row: dict, rows: list[dict]) -> Section:
    """The best of several rollouts beside their mean."""
    metric = next((table.metric for table in tables(rows)), "ndcg@100")
    picture = curves.headroom(row, untrained(rows, row["n"]), metric)
    luck = "The best is chosen with the answers in view: part of it is luck of the draw, which no policy can learn."
    return Section("Headroom before training", [picture, luck])


def training(row: dict, rows: list[dict]) -> Section:
    """Learning curve, what each step logged, settings."""
    curve, val = row["curve"], row["val"]
    base = {**(row.get("baselines") or {}), **untrained(rows, val[-1]["n"] if val else None)}
    settings = DataFrame(list((row.get("config") or {}).items()), columns=["setting", "value"], dtype=object)
    drawn = any(panel[0] in step for step in curve for panel in curves.PANELS)
    losses = [loss for step in curve if (loss := book.number(step.get("loss"))) is not None]
    learned = f" Loss per token: {losses[0]:.3f} → {losses[-1]:.3f}." if losses and not drawn else ""
    points = [point for point in val if book.whole(point)]
    parts: list[Part] = [
        f"{len(curve)} steps in {row['seconds']:.0f} s ({row['stopped']}).{learned}",
        curves.learning_curve(curve, points, base, row["metric"]),
    ]
    parts += [Fold("What each step logged", curves.components(curve))] if drawn or not curve else []
    return Section(f"Training: {row['method']}", [*parts, Fold("Settings", settings)])


def time_and_tokens(rows: list[dict]) -> Section:
    """What each evaluation and each training took."""
    told = {"eval": "{method} on {split}", "train": "training {method}", "headroom": "headroom check"}
    lines, timed = [], [row for row in rows if row["kind"] in told]
    for row in timed:
        size = f"{len(row['curve'])} steps" if row.get("curve") else f"{row.get('n', '')} requests"
        amounts = [form.format(row[key]) if row.get(key) is not None else "" for key, form in AMOUNTS.items()]
        lines.append([told[row["kind"]].format(**row), size, *amounts])
    lines.append(["all together", "", "", f"{sum(row.get('seconds') or 0 for row in timed):.1f}"])
    return Section("Time and tokens", [DataFrame(lines, columns=["what", "size", "tokens generated", "seconds"])])


def seal(ledger, rows: list[dict]) -> Section:
    """How often the test split was opened, in how many runs, and how often in the run of `rows`."""
    opened, head = ledger.rows("unseal"), ["time", "task", "run", "reason"]
    runs, here = [book.run_of(row) for row in opened], {book.run_of(row) for row in rows}
    fold = Fold("When and why", DataFrame([[str(row.get(key, "")) for key in head] for row in opened], columns=head))
    counts = len(runs), sum(run in here for run in runs)
    every, own = (("never", "once")[count] if count < 2 else f"{count} times" for count in counts)
    of = f", in {len(set(runs))} run{'s' * (len(set(runs)) > 1)}; {own} in this one" if runs else ""
    return Section("The seal", [f"The test split was opened {every} in this ledger{of}.", *[fold] * bool(opened)])


def costs(rows: list[dict]) -> Section | None:
    """What each training took, beside what it reached."""
    spent = book.costs(rows)
    if not spent:
        return None
    table, scores = main_table(rows), {name: show(spot) for name, spot in main_spots(rows).items()}
    reached = f"{table.split} {metric_label(table.metric)} [95%]" if table else "score"
    stopped = {row["method"]: row["stopped"] for row in of_kind(rows, "train")}
    body = []
    for row in spent:
        amounts = {key.replace("_", " "): _amount(key, row[key]) for key in book.COSTS}
        line = {"method": row["method"], reached: scores.get(row["method"], "not measured")}
        body.append(line | amounts | {"stopped": stopped[row["method"]]})
    paid = "at the prices of the run's settings" if any(row["money"] for row in spent) else "nothing was paid"
    note = "Of training alone: samples and tokens of a teacher count as the method's own, validation does not."
    return Section("What training cost", [DataFrame(body), f"{note} Money: {paid}."])


def _amount(key: str, value: float | None) -> str:
    digits = 2 if key == "money" and value else 1 if key == "seconds" else 0
    return "not noted" if value is None else f"{value:,.{digits}f}"


def race(rows: list[dict]) -> Section | None:
    """Learning curves together, against seconds and against samples, with the scores at the common budget."""
    parts: list[Part] = [
        "Validation of every trained method within the same budget, in seconds and in samples; a method may use less, "
        "and one that only imitates a rule samples nothing. The tables give each method's best checkpoint within the "
        "budget, the one that is tested; unlike the test table, they pair nothing."
    ]
    metric = next((row["metric"] for row in of_kind(rows, "train")), "ndcg@100")
    for by in ("seconds", "samples"):
        lines, at = book.curves(rows, by), book.at_budget(rows, by)
        if len(lines) > 1:
            base = book.baselines(rows) | untrained(rows, next(iter(lines.values()))[-1]["n"])
            body = [[row["method"], f"{row[by]:,.0f}", show(row), str(row["n"])] for row in at]
            head = ["method", by, f"val {metric_label(metric)} [95%]", "n"]
            parts += [plots.race(rows, by, base, metric), DataFrame(body, columns=head)]
            missing = [name for name in lines if name not in {row["method"] for row in at}]
            parts += [f"Without a checkpoint within these {by}: {', '.join(missing)}."] if missing else []
    return Section("The same budget", parts) if len(parts) > 1 else None


def cost_quality(rows: list[dict]) -> Section | None:
    """The headline metric with its interval over the seconds and the tokens of the training."""
    table, every, spots = main_table(rows), main_spots(rows), []
    for row in book.costs(rows):
        tokens = [row[key] for key in ("tokens_generated", "tokens_trained") if row[key] is not None]
        if row["method"] in every:
            spots.append(every[row["method"]] | {"seconds": row["seconds"], "tokens": sum(tokens)})
    if table is None or not any(spot["seconds"] or spot["tokens"] for spot in spots):
        return None
    trained = [spot["method"] for spot in spots]
    base = {name: s for name, s in every.items() if name not in trained and s["n"] == spots[0]["n"]}
    return Section("Cost against quality", [plots.cost_quality(spots, base, table.metric, table.split)])


def bound(rows: list[dict]) -> Section | None:
    """Teachers, SFT variants, rejection SFT and GRPO on one plot, with the differences paired with the teacher."""
    table, spots = main_table(rows), main_spots(rows)
    trained = [name for name in book.ORDER if name in spots and name not in book.UNTRAINED]
    teachers = [spots[name] for name in book.TEACHER_NAMES if name in spots]
    if table is None or not teachers or not trained:
        return None
    versus, body = dict[str, dict](), []
    for name in trained:
        teacher = book.TEACHERS.get(name, "teacher")
        gap = table.differences.get((name, teacher))
        versus |= {name: gap} if gap else {}
        body.append([name, teacher, shown(gap, True), book.verdict(gap) if gap else "not compared"])
    text = "The paper (arXiv 2503.24289) argues that SFT on a policy's outputs is bounded by that policy. Rejection "
    text += "SFT learns from the model's own outputs chosen by reward, and GRPO from the reward, so the bound does not "
    text += "hold for them."
    picture = plots.bound([spots[name] for name in trained], versus, teachers, table.metric)
    head = ["method", "held against", f"{metric_label(table.metric)}, paired difference [95%]", "verdict"]
    return Section("Can SFT pass its teacher?", [text, picture, DataFrame(body, columns=head)])


def forgetting(rows: list[dict]) -> Section | None:
    """Capability against the untrained model, and forward KL against retention."""
    changes, means = book.capability_changes(rows), book.capability_means(rows)
    if not changes and not means:
        return None
    head, parts = ["method", "task", "metric", "n"], list[Part]()
    if changes:
        body = [[*_about(row), show(row["difference"], True), book.worse(row) or "not shown"] for row in changes]
        table = DataFrame(body, columns=[*head, "minus untrained, paired [95%]", "verdict"])
        parts += [plots.forgetting(rows), table]
    else:
        parts.append("No method was compared with the untrained model.")
    parts += [plots.kl_retention(rows)] if book.retention(rows) else []
    scores = DataFrame([[*_about(row), show(row)] for row in means], columns=[*head, "mean [95%]"])
    return Section("What was forgotten", [*parts, Fold("All capability scores", scores)])


def _about(row: dict) -> list[str]:
    return [row["method"], task_name(row["task"]), row["metric"], str(row["n"])]


def continual(rows: list[dict]) -> Section | None:
    """Stages x measures for each trainer."""
    names, body = book.measures(rows), []
    for trainer, line in book.stages(rows).items():
        for row in line:
            values = [shown(row["measures"].get(name)) for name in names]
            body.append([trainer, row["name"], *values, f"{row['seconds']:,.0f}"])
    grid = DataFrame(body, columns=["trainer", "stage", *names, "seconds"])
    return Section("One task after another", [plots.continual(rows), grid]) if names else None
