"""A ceiling within reach: what can be had without a language model, learned from the training requests alone.

Best of n looks at the answers, so that part of it is luck of the draw; each method here could answer the next request
as it comes. GRPO has to beat the best of them to show that it took a language model: a tuned engine, a rule that
somebody wrote down, words that paid on training requests, and a linear classifier that names one word of the catalogue.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple, cast

import numpy as np
from scipy.sparse import csc_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from recr1_lite.common import bar, words
from recr1_lite.evaluate.evaluation import NO_MODEL, SEARCH_BATCH, EvalResult, evaluate, excluded
from recr1_lite.ledger import Ledger
from recr1_lite.policy.rewriters import RawRewriter, Rewriter, RuleRewriter
from recr1_lite.search.base import Hits, Retriever, bag_of_words, search_all
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.search.metrics import EXACT, compute, dcg, parse_name, without
from recr1_lite.tasks.base import Task, ids_of, most_relevant
from recr1_lite.tasks.prompts import Prompt, compose

REQUESTS, TRIED, FOLDS = 2000, 500, 5  # training requests that are learned from, and that the form is chosen on
TUNED, K1, B = 400, (0.9, 1.2, 2.0, 4.0, 8.0, 20.0, 50.0, 100.0, 200.0), (0.3, 0.5, 0.75, 0.9, 1.0)
FORMS = {"alone": ("rewrite", 1), "behind the request x4": ("expand", 4), "behind the request x20": ("expand", 20)}
FEWEST = 10  # training requests; fewer teach nothing
OFTEN, WORDS, PAIRS, DOUBT = 5, 1000, 10_000, 10  # requests of a word, words, pairs that are searched, shrinkage
ITEMS, CANDIDATES, LABELS = 20_000, 1000, 20  # items that are read; their words that are searched, that may be named

Learned = Callable[[str, str], list[str]]  # form of FORMS, request -> words to send, the best first


class Method(NamedTuple):
    """A rewriter, and the engine that it is scored on: the fixed one, or another BM25."""

    rewriter: Rewriter
    retriever: Retriever


class Lessons:
    """Training requests drawn by `seed`, and what queries score for them by the first nDCG of the task."""

    def __init__(self, task: Task, retriever: Retriever, seed: int = 0):
        examples = task.train.sample(min(REQUESTS, len(task.train)), random_state=seed)
        self.task, self.retriever, self.known = task, retriever, ids_of(task.train)
        self.metric = next((name for name in task.metrics if "ndcg" in name), f"ndcg@{task.k_eval}")
        self.k = parse_name(self.metric)[1] or task.k_eval
        self.requests, self.relevant = examples["request"].tolist(), examples["relevant"].tolist()
        self.gone = excluded(examples)
        self.depth = self.k + max(map(len, self.gone))
        self.place = {item: at for at, item in enumerate(task.items["item_id"])}
        kept = [dict.fromkeys(most_relevant(r), 1.0) if self.metric.startswith(EXACT) else r for r in self.relevant]
        ideal = [dcg(sorted(gains, key=lambda item: -gains[item]), gains, self.k) for gains in kept]
        shares = [{item: gain / best for item, gain in gains.items()} for gains, best in zip(kept, ideal)]
        self.shares = self._matrix(shares)
        self.hidden = self._matrix([dict.fromkeys(gone, 1) for gone in self.gone])
        self.folds: np.ndarray = np.arange(len(examples)) % FOLDS
        self.raw = self.score(self.requests, range(len(examples)))

    def _matrix(self, rows: Sequence[dict]) -> csc_matrix:
        """Requests by items of the catalogue."""
        cells = [(row, self.place[i], v) for row, one in enumerate(rows) for i, v in one.items() if i in self.place]
        at, items, values = zip(*cells) if cells else ((), (), ())
        return csc_matrix((values, (at, items)), (len(rows), len(self.place)))

    def prompt(self, form: str) -> Prompt:
        mode, weight = FORMS[form]
        return replace(self.task.prompt, mode=mode, weight=weight)

    def search(self, queries: Sequence[str], retriever: Retriever | None = None) -> Iterator[Hits]:
        for at in bar(range(0, len(queries), SEARCH_BATCH), desc="ceiling", unit="batch"):
            yield from search_all(retriever or self.retriever, queries[at : at + SEARCH_BATCH], self.depth, self.known)

    def score(self, queries: Sequence[str], rows: Collection[int], retriever: Retriever | None = None) -> np.ndarray:
        """The metric of each query for the training request of that row."""
        found = zip(rows, self.search(queries, retriever), strict=True)
        ranked = ((row, without(hits.ids, self.gone[row], self.k)) for row, hits in found)
        return np.array([compute(self.metric, ids, self.relevant[row]) for row, ids in ranked])

    def alone(self, candidates: Sequence[str]) -> np.ndarray:
        """The metric of each word sent alone, (requests, words): its ranking is the same for all, and searched once."""
        discount, values = np.zeros(self.depth + 1), np.zeros((len(self.requests), len(candidates)))
        discount[1 : self.k + 1] = 1 / np.log2(np.arange(self.k) + 2)
        for column, hits in enumerate(self.search(candidates)):
            if at := [self.place[item] for item in hits.ids]:
                ranks = (1 - self.hidden[:, at].toarray()).cumsum(axis=1).astype(int)  # what is excluded takes no place
                values[:, column] = (self.shares[:, at].toarray() * discount[ranks]).sum(axis=1)
        return values


def fit(task: Task, retriever: Retriever, seed: int = 0) -> list[Method]:
    """Every method, fitted on at most REQUESTS training requests; val and test stay unread. Takes a minute or so."""
    lessons = Lessons(task, retriever, seed)
    methods = _tuned(lessons) if isinstance(retriever, BM25Retriever) else []
    if task.rule:
        rules = [RuleRewriter(task.rule, lessons.prompt(form), f"{NO_MODEL}rule {form}") for form in FORMS]
        methods += [Method(rule, retriever) for rule in rules]
    if len(lessons.requests) >= FEWEST:
        methods += _words(lessons) + _classifier(lessons)
    return methods


def score(methods: Sequence[Method], task: Task, split="val", ledger: Ledger | None = None, seed=0) -> list[EvalResult]:
    """What each fitted method scores on a split: one EvalResult each, which go to the ledger."""
    return [evaluate(rewriter, task, engine, split, ledger, seed) for rewriter, engine in methods]


def ceiling(task: Task, retriever: Retriever, split="val", ledger: Ledger | None = None, seed=0) -> list[EvalResult]:
    """The raw request, and every method without a language model that `fit` finds, on a split."""
    return score([Method(RawRewriter(), retriever), *fit(task, retriever, seed)], task, split, ledger, seed)


def _learner(
    lessons: Lessons, kind: str, learn: Callable[[np.ndarray], Learned], counts: Sequence[int]
) -> list[Method]:
    """Cross-fitting: how many words in which form, chosen on folds that taught nothing; then learned from all."""

    def rewriter(ranked: Learned, form: str, count: int, name: str = kind) -> RuleRewriter:
        return RuleRewriter(lambda request: (" ".join(ranked(form, request)[:count]), ""), lessons.prompt(form), name)

    tried, found = np.arange(min(TRIED, len(lessons.requests))), {}
    parts = [learn(np.flatnonzero(lessons.folds != fold)) for fold in range(FOLDS)]
    for form, count in itertools.product(FORMS, counts):
        rewriters = [rewriter(part, form, count) for part in parts]
        queries = [rewriters[lessons.folds[row]].rewrite([lessons.requests[row]])[0] for row in tried]
        found[form, count] = lessons.score(queries, tried).mean()
    form, count = max(found, key=lambda one: found[one])
    told = f"{count} learned word{'s' * (count > 1)}" if kind == "words" else kind
    best = rewriter(learn(np.arange(len(lessons.requests))), form, count, f"{NO_MODEL}{told} {form}")
    return [Method(best, lessons.retriever)]


def _words(lessons: Lessons) -> list[Method]:
    """Of the words of a request those that paid most on training requests that hold them, sent alone or behind it."""
    bags = [set(bag) for bag in bag_of_words(lessons.requests, "en", None)]
    counts = Counter(itertools.chain.from_iterable(map(sorted, bags)))
    known = [word for word, count in counts.most_common(WORDS) if count >= OFTEN]
    if not known:
        return []
    held = np.array([[word in bag for word in known] for bag in bags])
    few = held & (held.cumsum(axis=0) <= max(OFTEN, PAIRS // len(known)))
    rows, columns = np.nonzero(few)
    queries = [compose(lessons.requests[row], known[column], "expand", 4) for row, column in zip(rows, columns)]
    behind = np.zeros(held.shape)
    behind[rows, columns] = lessons.score(queries, rows) - lessons.raw[rows]
    alone = np.where(held, lessons.alone(known) - lessons.raw[:, None], 0)

    def learn(taught: np.ndarray) -> Learned:
        values = {}
        for form in FORMS:
            gains, seen = (alone, held) if form == "alone" else (behind, few)
            means = gains[taught].sum(axis=0) / (seen[taught].sum(axis=0) + DOUBT)
            values[form] = {word: mean for word, mean in zip(known, means) if mean > 0}

        def ranked(form: str, request: str) -> list[str]:
            return sorted(values[form].keys() & set(words(request)), key=lambda word: (-values[form][word], word))

        return ranked

    return _learner(lessons, "words", learn, (1, 2, 3))


def _classifier(lessons: Lessons) -> list[Method]:
    """The word of the catalogue for which a linear model of the request's words expects the most, sent alone.

    One model per word, fitted to what the word scores rather than to which word is best: among words that are nearly
    as good, the label would be noise. The words: those that together would serve the training requests best."""
    wanted = {item for relevant in lessons.relevant for item in relevant}
    texts = lessons.task.items.loc[lessons.task.items["item_id"].isin(wanted), "text"][:ITEMS]
    counts = Counter(word for bag in bag_of_words(texts, "en", None) for word in sorted(set(bag)))
    common = [word for word, _ in counts.most_common(CANDIDATES)]
    values, chosen = lessons.alone(common), list[int]()
    best = np.zeros(len(lessons.requests))
    while len(chosen) < LABELS and (gains := np.maximum(values - best[:, None], 0).sum(axis=0)).max(initial=0) > 0:
        chosen.append(int(gains.argmax()))
        best = np.maximum(best, values[:, chosen[-1]])
    if not chosen or not any(map(words, lessons.requests)):
        return []

    def learn(taught: np.ndarray) -> Learned:
        bags = TfidfVectorizer(tokenizer=words, token_pattern=None, lowercase=False, sublinear_tf=True)
        model = make_pipeline(bags, Ridge(alpha=1.0))
        model.fit([lessons.requests[row] for row in taught], values[np.ix_(taught, chosen)])

        @cache  # each form asks it the same
        def best_word(request: str) -> list[str]:
            return [common[chosen[int(np.argmax(model.predict([request]).reshape(-1)))]]]

        return lambda form, request: best_word(request)

    return _learner(lessons, "classifier", learn, (1,))


def _tuned(lessons: Lessons) -> list[Method]:
    """The raw request, and the rule as the task's prompt would send it, on the best BM25 of the grid; nothing where
    that is the one at hand. k1 is chosen first, then b: on a large catalogue each engine takes seconds."""
    task, own, found = lessons.task, cast(BM25Retriever, lessons.retriever), dict[tuple[float, float], float]()
    asked = lessons.requests[:TUNED]
    best = first = own.index.k1, own.index.b

    def settings() -> Iterator[tuple[float, float]]:
        yield from ((k1, first[1]) for k1 in dict.fromkeys((first[0], *K1)))
        yield from ((best[0], b) for b in B if (best[0], b) not in found)

    engines = BM25Retriever.each(task.items, settings(), own.index.method, own.stopwords, own.stemmer)
    for engine in bar(engines, desc="tuned engine", unit="engine"):
        at = engine.index.k1, engine.index.b
        found[at] = lessons.score(asked, range(len(asked)), engine).mean()
        if at == first or found[at] > found[best]:
            best, tuned = at, engine
    name = "BM25 with k1 {:g} and b {:g}".format(*best)
    if best == first:
        print(f"{name} is the best of the grid for the plain requests of train: the engine is tuned already")
        return []
    plain = RawRewriter()
    plain.name = f"{NO_MODEL}{name}"
    rewriters: list[Rewriter] = [plain]
    if task.rule is not None:
        rewriters.append(RuleRewriter(task.rule, task.prompt, f"{NO_MODEL}rule, {name}"))
    return [Method(rewriter, tuned) for rewriter in rewriters]
