"""From the ledger to a page: rows, sections, figures, the inspector."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "comparisons": ["continual", "forgetting", "kl_retention"],
        "curves": ["LiveCurves"],
        "inspector": ["habits", "inspect_rewrites", "inspect_stages", "word_shares"],
        "page": ["claims", "report_markdown", "write_report"],
        "rows": ["FIGURES", "main_table", "retention", "select", "tasks_table"],
    },
)
