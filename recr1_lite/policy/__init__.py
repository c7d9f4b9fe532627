"""The model, its adapter, its rollouts, and the rewriters made of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "models": ["Policy", "load_policy", "save_adapter", "save_merged", "scale_adapter", "token_logps"],
        "rewriters": ["ModelRewriter", "RawRewriter", "RuleRewriter", "as_rewriter"]
        + ["EndpointRewriter", "from_environment"],
    },
)
