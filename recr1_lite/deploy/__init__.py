"""Leaving with the model: export and serve."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"export": ["export"], "serve": ["Service", "local_server"]}
)
