"""The loops from beginning to end."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"comparison", "demo"},
    submod_attrs={
        "comparison": ["compare_methods"],
        "demo": ["headroom", "side_by_side"],
        "rerank": ["PROMPT", "RerankScorer", "Reranker", "named", "oracle", "order", "rerank_task", "retriever_order"],
    },
)
