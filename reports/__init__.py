"""From records of runs to tables, figures, verdicts and pages."""

from cliptex_common.registry import keep_importable

keep_importable({"reports.metrics": "reports.records"})
