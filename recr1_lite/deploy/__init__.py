"""Leaving with the model: export, its card, and serve."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules={"export"}, submod_attrs={"serve": ["Service", "local_server", "serving"]}
)
