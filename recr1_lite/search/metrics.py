"""Ranking metrics of one ranking, and intervals of their means. Pure functions on lists and dicts.

A ranking is a list of item ids, best first. `relevant` maps item id to gain, a number above 0 for a relevant item; a
plain sequence of ids means gain 1 each. An item that a ranking names twice counts at its first rank only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, norm, t

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import most_relevant

RESAMPLES = 2000
Relevant = Mapping[str, float] | Sequence[str]
EXACT = "exact-"
_NAME = re.compile(rf"(?:{EXACT})?(?:(ndcg|recall)@([1-9]\d*)|(mrr)(?:@([1-9]\d*))?)")


def _gains(relevant: Relevant) -> dict[str, float]:
    if isinstance(relevant, str):
        raise RecR1Error(f"relevant must be a dict or a list of item ids, not the string {relevant!r}")
    gains = dict(relevant) if isinstance(relevant, Mapping) else dict.fromkeys(relevant, 1.0)
    for item, gain in gains.items():
        if not (isinstance(gain, (int, float, np.number)) and 0 <= gain < math.inf):
            raise RecR1Error(f"the gain of item {item!r} is {gain!r}; give a finite number of at least 0")
    return gains


def _wanted(relevant: Relevant) -> set[str]:
    return {item for item, gain in _gains(relevant).items() if gain > 0}


def checked_cutoff(k: int) -> int:
    """`k` as an int. Raises RecR1Error unless it is a whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise RecR1Error(f"the cut-off k must be a whole number of at least 1, for example 100, not {k!r}")
    return int(k)


def without(ranking: Sequence[str], exclude: Collection[str], k: int) -> list[str]:
    """The first `k` ids of a ranking without those of `exclude`; to fill k places it must be k + len(exclude) deep."""
    return [item for item in ranking if item not in exclude][:k]


def _worth(relevant: Relevant, gain: str) -> dict[str, float]:
    gains = _gains(relevant)
    if gain not in ("linear", "exponential"):
        raise RecR1Error(f"there is no gain {gain!r}; choose linear (as given) or exponential (2^gain - 1)")
    return {item: float(value) if gain == "linear" else 2.0**value - 1.0 for item, value in gains.items()}


def _discounted(values: Sequence[float]) -> float:
    return sum(value / math.log2(rank + 2) for rank, value in enumerate(values))


def dcg(ranking: Sequence[str], relevant: Relevant, k: int, gain: str = "linear") -> float:
    """Discounted cumulative gain: the sum over ranks r = 1..k of g(gain of the item at r) / log2(r + 1).

    g is the gain itself (`linear`) or 2^gain - 1 (`exponential`). A later duplicate takes up its rank and gains
    nothing. Source: Järvelin & Kekäläinen, TOIS 20(4), 2002; 2^gain - 1 and log2(r + 1) as in Burges et al., 2005."""
    left = _worth(relevant, gain)
    return _discounted([left.pop(item, 0.0) for item in ranking[: checked_cutoff(k)]])


def ndcg(ranking: Sequence[str], relevant: Relevant, k: int, gain: str = "linear", legacy: bool = False) -> float:
    """DCG at k over the DCG at k of the best possible ranking, in 0..1; 0 where nothing is relevant.

    `legacy=True` is the rule of Rec-R1's official code (linjc16/Rec-R1): gains are 1, and a target listed twice in
    `relevant` counts twice in the ideal DCG, though a ranking can hold it once. It needs the list as it was."""
    k = checked_cutoff(k)
    if legacy:
        if isinstance(relevant, (Mapping, str)):
            raise RecR1Error("legacy=True needs relevant as a list of ids with its duplicates, not a dict")
        ideal, wanted = [1.0] * len(relevant), set(relevant)
        found = _discounted([1.0 if item in wanted else 0.0 for item in ranking[:k]])
    else:
        ideal, found = sorted(_worth(relevant, gain).values(), reverse=True), dcg(ranking, relevant, k, gain)
    best = _discounted(ideal[:k])
    return found / best if best > 0 else 0.0


def recall(ranking: Sequence[str], relevant: Relevant, k: int) -> float:
    """Share of the relevant items (gain above 0) that are in the first k; 0 where nothing is relevant."""
    wanted = _wanted(relevant)
    return len(wanted.intersection(ranking[: checked_cutoff(k)])) / len(wanted) if wanted else 0.0


def reciprocal_rank(ranking: Sequence[str], relevant: Relevant, k: int | None = None) -> float:
    """1 / rank of the first relevant item within the first k (all ranks if k is None); 0 if there is none."""
    wanted = _wanted(relevant)
    for rank, item in enumerate(ranking if k is None else ranking[: checked_cutoff(k)], start=1):
        if item in wanted:
            return 1.0 / rank
    return 0.0


def compute(name: str, ranking: Sequence[str], relevant: Relevant) -> float:
    """A metric by its name: `ndcg@100` (of linear gains), `recall@10`, `mrr` or `mrr@10`. With `exact-` before it, of
    graded items those of the highest gain alone are relevant, with gain 1. Raises RecR1Error for another name."""
    kind, k = parse_name(name)
    if name.startswith(EXACT):
        relevant = dict.fromkeys(most_relevant(_gains(relevant)), 1.0)
    if k is None or kind == "mrr":
        return reciprocal_rank(ranking, relevant, k)
    return ndcg(ranking, relevant, k) if kind == "ndcg" else recall(ranking, relevant, k)


def parse_name(name: str) -> tuple[str, int | None]:
    """`"ndcg@100"` as ("ndcg", 100), `"mrr"` as ("mrr", None). Raises RecR1Error for an unknown name."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise RecR1Error(f"there is no metric {name!r}; write for example ndcg@100, recall@10, mrr or mrr@10")
    kind, k = match[1] or match[3], match[2] or match[4]
    return kind, int(k) if k else None


class Interval(NamedTuple):
    """A mean over n examples with its confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(
    values: Sequence[float], level: float = 0.95, seed: int = 0, clusters: Sequence[str] | None = None
) -> Interval:
    """Mean of `values` (one an example) with a percentile bootstrap interval, 2000 resamples of the examples.

    clusters: one label per value where some are no independent draws, as requests about one garment; whole clusters are
    then resampled. Equal values, one value or one cluster alone give low = high = mean. Raises RecR1Error for no value,
    a value that is not finite, a bad level, another number of labels. Sources: Efron & Tibshirani, "An Introduction to
    the Bootstrap", 1993, chapter 13; Field & Welsh, "Bootstrapping clustered data", JRSS B 69(3), 2007."""
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or not len(sample):
        raise RecR1Error(f"an interval needs a list of one or more numbers, not an array of {sample.shape}")
    if not np.isfinite(sample).all():
        place = int(np.flatnonzero(~np.isfinite(sample))[0])
        raise RecR1Error(f"value {place} is {sample[place]}; mend or drop the example that it came from")
    if not 0 < level < 1:
        raise RecR1Error(f"the confidence level must lie between 0 and 1, not {level!r}; usual is 0.95")
    mean, data = float(sample.mean()), [sample]
    if clusters is not None:
        if len(clusters) != len(sample):
            raise RecR1Error(f"{len(clusters)} cluster labels for {len(sample)} values; give one label for each")
        codes = pd.factorize(np.asarray(clusters))[0]
        data = [np.bincount(codes, sample), np.bincount(codes)]
    if np.ptp(sample) == 0 or len(data[0]) == 1:
        return Interval(mean, mean, mean, len(sample))
    options: dict = dict(n_resamples=RESAMPLES, confidence_level=level, method="percentile", paired=len(data) > 1)
    options["batch"] = max(1, 10_000_000 // len(sample))  # keeps a resample of 100,000 examples within some 100 MB
    found = bootstrap(data, _mean, rng=np.random.default_rng(seed), **options).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(sample))


def _mean(sums: np.ndarray, counts: np.ndarray | None = None, axis: int = -1) -> np.ndarray:
    return sums.mean(axis) if counts is None else sums.sum(axis) / counts.sum(axis)


def paired_interval(
    a: Sequence[float], b: Sequence[float], level: float = 0.95, seed: int = 0, clusters: Sequence[str] | None = None
) -> Interval:
    """`mean_interval` of a - b, example by example: above 0 means that `a` is better. RecR1Error for other lengths."""
    if len(a) != len(b):
        raise RecR1Error(f"paired lists of {len(a)} and {len(b)} values; compare on the same examples")
    return mean_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), level, seed, clusters)


def next_run_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Where the score of one more run is expected, given those of runs that differ in their seed alone.

    A prediction interval for one draw of n runs, mean +- t * s * sqrt(1 + 1/n), for scores spread normally. Raises
    RecR1Error for fewer than two runs. Source: Hahn & Meeker, "Statistical Intervals", 1991, section 4.7."""
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or len(sample) < 2 or not np.isfinite(sample).all():
        raise RecR1Error(f"the spread of runs needs two or more finite scores, not {list(values)}; run more seeds")
    n, mean = len(sample), float(sample.mean())
    reach = float(t.ppf((1 + level) / 2, n - 1) * sample.std(ddof=1) * math.sqrt(1 + 1 / n))
    return Interval(mean, mean - reach, mean + reach, n)


def runs_interval(
    values: np.ndarray, clusters: Sequence[str], rival: np.ndarray | None = None, seed: int = 0
) -> Interval:
    """Mean of values (runs, examples) with its 95% interval: runs and clusters of examples are resampled, each whole,
    2000 times. rival: (runs, examples) of another method, whose mean is taken off; its runs are resampled by
    themselves where it has another number of them, and otherwise paired. Sources: those of `mean_interval`."""
    values = np.asarray(values, dtype=float)
    both = [values] if rival is None else [values - rival] if len(rival) == len(values) else [values, -rival]
    codes, random, means = np.unique(clusters, return_inverse=True)[1], np.random.default_rng(seed), []
    sums = [np.stack([np.bincount(codes, run) for run in one]) for one in both]
    counts = np.bincount(codes)
    for _ in range(RESAMPLES):
        runs = [random.integers(len(one), size=len(one)) for one in sums]
        drawn = random.integers(len(counts), size=len(counts))
        parts = [one[picked][:, drawn].sum() / len(one) for one, picked in zip(sums, runs, strict=True)]
        means.append(sum(parts) / counts[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sum(one.mean() for one in both)), float(low), float(high), values.shape[1])


def holm(differences: Sequence[Interval]) -> list[bool]:
    """Which of a family of differences, each with its 95% interval, are shown to differ from 0 all together.

    The p of a difference is that of a normal mean whose 95% interval is as wide as its own. Source: S. Holm, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979."""
    p = []
    for one in differences:
        error = (one.high - one.low) / (2 * norm.ppf(0.975))
        p.append(2 * norm.sf(abs(one.mean) / error) if error else float(not one.mean))
    shown, order = [False] * len(p), sorted(range(len(p)), key=p.__getitem__)
    for rank, place in enumerate(order):
        if p[place] > 0.05 / (len(p) - rank):
            break
        shown[place] = True
    return shown
