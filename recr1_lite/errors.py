"""One exception for everything a user can mend; the command line prints it as one sentence."""

from __future__ import annotations


class RecR1Error(ValueError):
    """What was wrong, where, and what to do next, in one sentence."""
