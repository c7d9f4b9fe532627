"""What is kept where equally much was learned: GRPO and SFT, gain on the task against what it cost elsewhere.

    python benchmarks/keep.py --train       # an adapter per recipe and seed under build/keep; goes on where it stopped
    python benchmarks/keep.py --measure     # each point: val, 320 questions, perplexity, forward KL
    python benchmarks/keep.py               # tables, the verdict at equal gain and the figure, from the ledgers
    python benchmarks/keep.py --train --only GRPO "SFT, rate 1e-4" --seeds 0

A point is an adapter at one step of its run, with what it adds to the weights scaled by 0.25 to 1 (`scale_adapter`).
A method's curve is made of its points in order of their gain; between two of them the loss is read off the straight
line. A verdict is the loss of a GRPO minus that of an SFT at the same gain; a * stands where Holm's correction for all
verdicts at that share of the gain shows one. Its interval resamples seeds, garments (of the task) and templates and
passages (of the questions), 1000 times.
"""

import argparse
import gc
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from bench import command
from seeds import setting, world

from recr1_lite.common import RecR1Error, atomic_write, run_script, slug
from recr1_lite.evaluate import capability
from recr1_lite.evaluate.capability import CapabilityResult, cluster_of
from recr1_lite.evaluate.evaluation import EvalResult, evaluate, show
from recr1_lite.ledger import Ledger, read_json
from recr1_lite.policy.models import Policy, load_policy, scale_adapter
from recr1_lite.policy.rewriters import RawRewriter, as_rewriter
from recr1_lite.policy.rollouts import MergedCopy
from recr1_lite.profiles import Profile, get_profile
from recr1_lite.recipes.comparison import REJECTION, VOTED, WARM, Arena, make_targets
from recr1_lite.report.comparisons import pareto
from recr1_lite.report.figures import as_bytes
from recr1_lite.report.page import markdown_table
from recr1_lite.search.metrics import Interval, holm
from recr1_lite.tasks import load_task
from recr1_lite.tasks.base import Task
from recr1_lite.train import grpo, sft
from recr1_lite.train.rewards import Scorer

GRPO, SFT, BASE = "GRPO", "SFT", "untrained"
RATES = ("4e-5", "1e-4", "4e-4", "1e-3")
# recipe -> (method, settings of the profile, fields of TRL's configuration). A KL weight of 0.1 is a hundred times the
# paper's: the advantages here have a standard deviation of 1. TRL's own use_bias_correction_kl stays on: with it the
# gradient is that of the reverse KL
RECIPES: dict[str, tuple[str, dict, dict]] = {
    "GRPO": (GRPO, {}, {}),
    "GRPO, KL 0.1": (GRPO, {"preset": "keep"}, {}),
    "GRPO, KL 0.5": (GRPO, {}, {"beta": 0.5}),
    "GRPO, rate 1e-4": (GRPO, {"learning_rate": 1e-4}, {}),
    "GRPO, rate 4e-4": (GRPO, {"learning_rate": 4e-4}, {}),
    "GRPO, modern": (GRPO, {"preset": "modern"}, {}),
    "GRPO, paper": (GRPO, {"preset": "paper"}, {}),
    **{f"SFT, rate {rate}": (SFT, {"sft_learning_rate": float(rate)}, {}) for rate in RATES},
    REJECTION: (REJECTION, {}, {}),
    VOTED: (VOTED, {}, {}),
    WARM: (WARM, {}, {}),
}
SCALES = (0.25, 0.5, 0.75, 1.0)
RESAMPLES = 1000
SHARES = (0.5, 0.9)  # of the gain that two methods both reach
QUESTIONS = ("all", "accuracy")
KLS = {"KL, everyday prompts": "neutral", "KL, the task's": "task"}


def folder(out: Path, recipe: str, seed: int) -> Path:
    return out / slug(recipe) / f"seed-{seed}"


def finished(place: Path) -> bool:
    return (read_json(place / "training.json") or {}).get("stopped") == "finished"


def train(out: Path, profile: Profile, recipe: str, seed: int) -> None:
    """One adapter, with a checkpoint at every validation."""
    place = folder(out, recipe, seed)
    if finished(place):
        return
    method, settings, fields = RECIPES[recipe]
    profile, (task, engine) = replace(profile, **settings), world(profile)
    print(f"\n== {recipe}, seed {seed}", flush=True)
    book = Ledger(out / "keep-train.jsonl").bind(
        run="keep", recipe=recipe, profile=profile.name, seed=seed, command=command()
    )
    arena, adapter = Arena(task, engine, profile, task.rule, place.parent, seed, book), None
    if method == WARM:
        adapter = folder(out, "SFT, rate 1e-4", seed) / "best"
        profile = replace(profile, steps=profile.steps * 2 // 3)
    policy = load_policy(profile, seed, adapter=adapter)
    run = replace(arena.run(policy, GRPO), folder=place)
    kept = fields | {"save_total_limit": None}
    if method in (GRPO, WARM):
        scorer = Scorer(engine, task.train, task.prompt, task.k_train)
        done, spent = grpo.train(policy, task.train, scorer, profile, run, **kept), 0.0
    else:
        place.mkdir(parents=True, exist_ok=True)
        targets, cost = make_targets(replace(arena, out=place), method)
        done, spent = sft.train(policy, targets, task.prompt, profile, run, patience=None, **kept), cost.seconds
    raw = arena.on_val(RawRewriter())
    row = {"kind": "train", "method": method, "task": task.name, "config": vars(profile), "fields": fields}
    row |= {"curve": done.curve, "val": done.val, "best_step": done.best_step, "stopped": done.stopped}
    row |= {"seconds": round(sum(step["seconds"] for step in done.curve), 1), "sampling_seconds": round(spent, 1)}
    book.append(row | {"metric": task.metrics[0], "baselines": {RawRewriter.name: raw._asdict()}})


def points(out: Path, recipe: str, seed: int, scales) -> list[tuple[str, float, Path]]:
    """(step, scale, folder of the adapter) of a run: the best adapter at each scale, and where it was on the way."""
    place = folder(out, recipe, seed)
    best = read_json(place / "training.json")["best_step"]
    numbered = sorted(int(path.name[11:]) for path in place.glob("checkpoint-*"))
    way = [step for step in numbered[:1] if step != best]
    return [(str(step), 1.0, place / f"checkpoint-{step}") for step in way] + [
        (f"best, {best}", scale, place / "best") for scale in scales
    ]


def measure(out: Path, profile: Profile, recipe: str, seed: int, scales) -> None:
    """Every point of one run that the ledger lacks."""
    book = Ledger(out / "keep-points.jsonl")
    known = {(row["recipe"], row["training"], row["step"], row["scale"]) for row in book.rows("point")}
    todo = [("0", 1.0, None)] if recipe == BASE else points(out, recipe, seed, scales)
    task = load_task("clothing")  # all 400 validation requests; a smoke test takes few
    task = task.subsample(n_val=profile.n_val, seed=0) if profile.n_capability else task
    engine, drawn = world(profile)[1], None
    for step, scale, adapter in todo:
        if (recipe, seed, step, scale) in known:
            continue
        policy = load_policy(profile, seed, adapter=adapter)
        scale_adapter(policy, scale)
        if drawn is None:
            prompts = capability.neutral_prompts(policy.tokenizer)
            asked = [task.prompt.render(policy.tokenizer, request) for request in task.val["request"][:20]]
            drawn = {
                "neutral": capability.continuations(policy, prompts),
                "task": capability.continuations(policy, asked),
            }
        marks = dict(run="keep", recipe=recipe, training=seed, step=step, scale=scale, profile=profile.name)
        row = point(policy, task, engine, profile, drawn, book.bind(**marks, command=command()))
        print(f"{recipe}, seed {seed}, step {step}, scale {scale}: {row['told']}", flush=True)
        del policy
        gc.collect()


def point(policy: Policy, task: Task, engine, profile: Profile, drawn: dict, book: Ledger) -> dict:
    merged = MergedCopy.of(policy.model)
    bare = replace(policy, model=merged.refresh())
    result = evaluate(as_rewriter(bare, task.prompt, profile, "policy"), task, engine, "val", book, progress=False)
    checked = capability.check(bare, limit=profile.n_capability, name="policy", ledger=book)
    kl = {name: float(np.mean(capability.forward_kl(policy, [], drawn=one))) for name, one in drawn.items()}
    told = (
        f"{show(result.summary[result.metric])}, questions {show(checked.summary[QUESTIONS])}, KL {kl['neutral']:.3f}"
    )
    return book.append({"kind": "point", "kl": kl, "told": told})


class Points:
    """What the ledger knows: per point the values of each request and each question."""

    def __init__(self, ledger: Ledger):
        self.table = pd.DataFrame(
            [{key: row[key] for key in ("recipe", "training", "step", "scale", "kl")} for row in ledger.rows("point")]
        )
        if self.table.empty:
            raise RecR1Error(f"{ledger.path} holds no point; run --train, then --measure")
        keys = [tuple(key) for key in self.table[["recipe", "training", "step", "scale"]].itertuples(index=False)]
        marks = {key: place for place, key in enumerate(keys)}
        self.task, self.questions, self.nats = [None] * len(keys), [None] * len(keys), [None] * len(keys)
        of = lambda row: marks.get((row["recipe"], row["training"], row["step"], row["scale"]))  # noqa: E731
        for row in ledger.rows("eval"):
            if (place := of(row)) is not None:
                rows = EvalResult.from_row(row).rows.sort_values("example_id")
                self.garments, self.task[place] = list(rows["cluster"]), rows[next(iter(row["metrics"]))].to_numpy()
        parts: dict[int, dict] = {}
        for row in ledger.rows("capability"):
            if (place := of(row)) is not None:
                parts.setdefault(place, {})[row["task"], row["metric"]] = row
        for place, rows in parts.items():
            values = CapabilityResult.from_rows(rows.values()).values
            right = values[QUESTIONS].sort_index()
            self.items, self.questions[place] = list(right.index), right.to_numpy()
            self.nats[place] = float(values["recr1_perplexity", "nats"].mean())
        self.task, self.questions = np.array(self.task), np.array(self.questions)
        self.base = int(self.table.index[self.table["recipe"] == BASE][0])

    def of(self, recipe: str) -> dict[int, list[int]]:
        """seed -> its points."""
        mine = self.table[self.table["recipe"] == recipe]
        return {int(seed): list(group.index) for seed, group in mine.groupby("training")}


def weights(groups: list[np.ndarray], random) -> list[np.ndarray]:
    """How often each value counts in one resample of the groups, whole groups at a time."""
    sizes = [group.max() + 1 for group in groups]
    return [
        np.bincount(random.integers(size, size=size), minlength=size)[group]
        for group, size in zip(groups, sizes, strict=True)
    ]


def at_gain(gains: np.ndarray, losses: np.ndarray, wanted: float) -> float:
    """The loss at a gain that is reached, on the straight lines between the points in order of their gain, from (0, 0)
    on."""
    order = [place for place in np.argsort(gains) if gains[place] > 0]
    return float(np.interp(wanted, np.r_[0.0, gains[order]], np.r_[0.0, losses[order]]))


class Bootstrap:
    """Means of points over requests and questions, as they are and in RESAMPLES resamples of seeds, garments, and
    templates and passages."""

    def __init__(self, points: Points):
        self.points = points
        labels = points.garments, [*map(cluster_of, points.items)]
        self.groups = [pd.factorize(np.array(names))[0] for names in labels]
        self.gains, self.losses = (
            points.task - points.task[points.base],
            points.questions - points.questions[points.base],
        )

    def interval(self, statistic) -> Interval:
        """statistic: (gains, losses) of all points and a function that draws seeds -> a number."""
        random, found = np.random.default_rng(0), []
        for _ in range(RESAMPLES):
            requests, items = weights(self.groups, random)
            means = self.gains @ requests / requests.sum(), self.losses @ items / items.sum()
            found.append(statistic(*means, lambda seeds: random.choice(seeds, len(seeds))))
        low, high = np.quantile(found, [0.025, 0.975])
        mean = statistic(self.gains.mean(1), self.losses.mean(1), lambda seeds: seeds)
        return Interval(float(mean), float(low), float(high), len(self.points.items))

    def verdict(self, a: str, b: str, share: float) -> tuple[float, Interval]:
        """`share` of the gain that both reach in every seed, and the loss of a minus that of b there. Each resample
        draws seeds and finds that gain anew."""
        runs = {name: self.points.of(name) for name in (a, b)}

        def reached(gains, drawn) -> float:
            return share * min(gains[rows].max() for of_seeds in drawn.values() for rows in of_seeds)

        def apart(gains, losses, draw) -> float:
            drawn = {name: [by_seed[seed] for seed in draw(list(by_seed))] for name, by_seed in runs.items()}
            wanted = reached(gains, drawn)
            lost = {name: [at_gain(gains[rows], losses[rows], wanted) for rows in drawn[name]] for name in runs}
            return float(np.mean(lost[a]) - np.mean(lost[b]))

        everyone = {name: list(by_seed.values()) for name, by_seed in runs.items()}
        return reached(self.gains.mean(1), everyone), self.interval(apart)

    def table(self) -> list[dict]:
        """A row per recipe, step ("best" or on the way) and scale: gain and loss over its seeds with intervals."""
        frame = self.points.table.assign(kind=self.points.table["step"].str.partition(",")[0], nats=self.points.nats)
        rows = []
        frame["order"] = pd.factorize(frame["recipe"])[0]
        for (_, recipe, kind, scale), group in frame.groupby(["order", "recipe", "kind", "scale"]):
            places = list(group.index)
            if recipe != BASE:
                row = {"method": recipe, "point": kind, "scale": scale, "seeds": len(places)}
                row["gain"] = self.interval(lambda gains, _, draw, at=places: gains[draw(at)].mean())
                row["loss"] = self.interval(lambda _, losses, draw, at=places: losses[draw(at)].mean())
                row |= {"perplexity, nats": group["nats"].mean() - self.points.nats[self.points.base]}
                row |= {name: np.mean([kl[key] for kl in group["kl"]]) for name, key in KLS.items()}
                rows.append(row)
        return rows


def learned(ledger: Ledger) -> pd.DataFrame:
    """A row per recipe: its seeds' validation at each step, and the seconds of its steps alone."""
    lines = {}
    for row in ledger.rows("train"):
        line = lines.setdefault(row["recipe"], {"seeds": [], "val": {}, "seconds": []})
        line["seeds"].append(row["seed"])
        line["seconds"].append(row["seconds"] + row["sampling_seconds"])
        for point in row["val"]:
            line["val"].setdefault(point["step"], []).append(point["mean"])
    shown = []
    for recipe, line in lines.items():
        means = {step: np.mean(values) for step, values in line["val"].items() if len(values) == len(line["seeds"])}
        best = max(means, key=means.__getitem__)
        told = ", ".join(f"{step}: {mean:.3f}" for step, mean in means.items() if step in (0, 10, 20, 30, best))
        row = {"recipe": recipe, "seeds": len(line["seeds"]), "val nDCG@100 by step": told}
        shown.append(row | {"seconds, mean": round(np.mean(line["seconds"]))})
    return pd.DataFrame(shown)


def printed(frame: pd.DataFrame) -> str:
    return "\n".join(markdown_table(list(frame.columns), frame.astype(str).values.tolist()))


def show_all(train: Ledger, measured: Ledger, figure: Path | None) -> None:
    print(printed(learned(train)))
    if not measured.rows("point"):
        return
    boot = Bootstrap(Points(measured))
    rows = boot.table()
    print(
        "",
        printed(
            pd.DataFrame(rows)
            .assign(**{key: [show(row[key], sign=True) for row in rows] for key in ("gain", "loss")})
            .rename(columns={"gain": "gain, nDCG@100", "loss": "questions, change"})
            .round(3)
        ),
        sep="\n",
    )
    known = list(dict.fromkeys(row["method"] for row in rows))
    others = [name for name in known if not name.startswith(GRPO)]
    pairs = [(a, b) for a in known if a.startswith(GRPO) for b in others]
    for share in SHARES:
        found = [boot.verdict(a, b, share) for a, b in pairs]
        for (a, b), (wanted, apart), sure in zip(pairs, found, holm([apart for _, apart in found]), strict=True):
            told = f"questions kept by {a} minus {b}: {show(apart, sign=True)}{' *' * sure}"
            print(f"at a gain of {wanted:+.3f} ({share:.0%} of what both reach): {told}")
    if figure:
        most = {name: max(row["seeds"] for row in rows if row["method"] == name) for name in known}
        atomic_write(figure, as_bytes(pareto([row for row in rows if row["seeds"] == most[row["method"]]]), "png"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("build/keep"), help="folder of adapters and ledgers")
    options.add_argument("--profile", default="cpu")
    options.add_argument("--set", type=setting, nargs="*", default=[], help="other settings of the profile: NAME=VALUE")
    options.add_argument("--only", nargs="*", choices=[BASE, *RECIPES], default=[BASE, *RECIPES])
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--scales", type=float, nargs="*", default=SCALES)
    options.add_argument("--ledgers", type=Path, help="folder of the ledgers to read (default: --out)")
    options.add_argument("--figure", type=Path, help="a PNG file for the figure")
    options.add_argument("--train", action="store_true")
    options.add_argument("--measure", action="store_true")
    given = options.parse_args()
    profile = replace(get_profile(given.profile), **dict(given.set))
    for recipe in given.only:
        for seed in given.seeds:
            if given.train and recipe != BASE:
                train(given.out, profile, recipe, seed)
            if given.measure and (recipe != BASE or seed == given.seeds[0]):
                measure(given.out, profile, recipe, seed, given.scales)
    if not (given.train or given.measure):
        show_all(
            *(Ledger((given.ledgers or given.out) / name) for name in ("keep-train.jsonl", "keep-points.jsonl")),
            given.figure,
        )


if __name__ == "__main__":
    sys.exit(run_script(main))
