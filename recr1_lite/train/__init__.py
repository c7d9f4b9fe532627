"""What a rewrite is paid, and the trainers: GRPO and SFT."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={"loop", "memory"},
    submod_attrs={
        "grpo": ["PRESETS", "train_task"],
        "loop": ["Run", "draw_order"],
        "rewards": ["Scorer", "reward", "reward_functions"],
        "targets": ["Budget", "Cost", "TargetFile", "best_of_n", "from_endpoint", "read_pairs"],
    },
)
