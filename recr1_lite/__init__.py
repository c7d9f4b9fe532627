"""recr1_lite: Rec-R1 (arXiv 2503.24289) on one consumer GPU, or on a plain CPU."""

__version__ = "0.1.0"
