"""Leaving with the model: export, its card, and serve; leaving the machine: a search server, files for verl."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"export", "scale", "serve"},
    submod_attrs={"scale": ["SearchService"], "serve": ["Service", "local_server", "serving"]},
)
