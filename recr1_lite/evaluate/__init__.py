"""Scores, baselines without a language model, and general capability."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "capability": ["capability_table", "check", "forward_kl"],
        "evaluation": ["EvalResult", "compare", "evaluate", "evaluate_recommender", "methods_table", "show"],
        "recommenders": ["ItemKNN", "MatrixFactorisation", "Popularity", "SASRec", "last_title"],
    },
)
