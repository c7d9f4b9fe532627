"""What a policy learned, read from its own words: which it came to write, and which habits it took on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import pandas as pd

from recr1_lite.cards import mark_words
from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import EvalResult, paired
from recr1_lite.metrics import Interval, mean_interval
from recr1_lite.prompts import Prompt
from recr1_lite.retrievers import bag_of_words


def words_of(text: str) -> list[str]:
    """Its words in order, in small letters, without punctuation."""
    return [piece.casefold() for piece, kind in mark_words("", text) if kind]


def rewrites(result: EvalResult, prompt: Prompt) -> dict[str, str]:
    """example_id -> what the model itself wrote, parsed ("" where that failed); not the query sent."""
    return {row.example_id: prompt.read(row.completion, row.outcome == "truncated").query
            for row in result.rows.itertuples()}


def word_shares(before: EvalResult, after: EvalResult, prompt: Prompt, n: int = 12,
                stopwords: str | Collection[str] | None = "en") -> pd.DataFrame:
    """The words whose use changed most: word, before, after (share of the rewrites that hold it, 0 to 1).

    `stopwords`, which the retriever does not see, are not counted.
    Up to n // 2 words that rose and as many that fell, from the largest rise to the largest fall; of equal
    changes in the order of the alphabet. attrs["n"]: how many rewrites. Raises RecR1Error where the results
    do not pair, or n < 2.
    """
    if n < 2:
        raise RecR1Error(f"word_shares shows n // 2 words of a kind, so n = {n!r} shows none; take 2 or more")
    paired(before, after, after.metric)
    shares = [Counter(word for words in bag_of_words(rewrites(result, prompt).values(), stopwords, None)
                      for word in set(words)) for result in (before, after)]
    count = len(after.rows)
    rows = [{"word": word, **{name: share[word] / count for name, share in zip(("before", "after"), shares)}}
            for word in sorted(shares[0].keys() | shares[1].keys())]
    rows.sort(key=lambda row: row["before"] - row["after"])
    rose = [row for row in rows if row["after"] > row["before"]][: n // 2]
    fell = [row for row in rows if row["after"] < row["before"]][-(n // 2) :]
    frame = pd.DataFrame([*rose, *fell], columns=["word", "before", "after"])
    frame.attrs["n"] = count
    return frame


def habits(result: EvalResult, prompt: Prompt,
           vocabulary: Collection[str] = ()) -> dict[str, Interval | float]:
    """How the model writes: means over the examples with their 95% intervals, and one share without.

    "words": words a rewrite; "copied" and "new": share of its words that its request holds, or does not, over
    the rewrites that hold a word; "named": share of the rewrites with a word of `vocabulary`, say the classes
    of the catalogue (any case; only where one is given); "distinct": different rewrites over all, a plain
    number, because an interval over examples cannot be had for it. Pair two results with `paired_interval`.
    """
    texts = rewrites(result, prompt)
    words = {example: words_of(text) for example, text in texts.items()}
    asked = {row.example_id: set(words_of(row.request)) for row in result.rows.itertuples()}
    copied = [sum(word in asked[example] for word in said) / len(said)
              for example, said in words.items() if said]
    found = {"words": mean_interval([len(said) for said in words.values()])}
    if copied:
        found |= {"copied": mean_interval(copied), "new": mean_interval([1 - share for share in copied])}
    if vocabulary:
        known = {word.casefold() for word in vocabulary}
        found["named"] = mean_interval([bool(known & set(said)) for said in words.values()])
    return found | {"distinct": round(len(set(map(tuple, words.values()))) / len(words), 3)}
