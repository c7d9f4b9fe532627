"""The authors' own figures, marked as published: they never came from a run of this kit."""

from __future__ import annotations

PAPER = "arXiv 2503.24289"
SOURCE = ("result files of the authors' repository linjc16/Rec-R1, commit 4f3ac37 (Apache-2.0), for the paper "
          "arXiv 2503.24289: mean of the stored nDCG@100 of each of 103 ESCI Video Games queries, times 100")
SETTING = "ESCI Video Games, nDCG@100 x 100, n = 103"

# what was asked, stored mean, its 95% interval (ours: metrics.mean_interval of their 103 stored values, seed 0),
# and the mean when a target that is listed twice counts once (ours: metrics.ndcg of their stored rankings)
FIGURES = [
    {"method": "raw query", "mean": 12.44, "low": 8.47, "high": 16.41, "once": 13.27, "n": 103,
     "ours": ["raw request"]},
    {"method": "GPT-4o, prompted", "mean": 26.06, "low": 21.29, "high": 30.88, "once": 27.38, "n": 103,
     "ours": ["zero-shot", "LM teacher"]},
    {"method": "Rec-R1 (GRPO)", "mean": 32.22, "low": 27.38, "high": 37.16, "once": 33.51, "n": 103,
     "ours": ["GRPO"]},
]
