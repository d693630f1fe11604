"""Rendering the page: template, style, script, figures and Plotly itself in one file."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from reports.parts.tables import MARKS, Head, TableCell, interval, number

if TYPE_CHECKING:
    from reports.report import Report

SPOKEN = {"win": "better than", "loss": "worse than", "tie": "cannot be told from"}


def render(report: Report) -> str:
    """The whole page as text.

    Plotly (4.8 MB) is embedded once, gzipped (1.4 MB), and unpacked by the browser; the tables are plain HTML and need no script.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"number": number}
    environment.globals |= {
        "cell": functools.partial(cell_view, report), "run_link": functools.partial(run_link, report.ui_url),
        "figure_json": _script_safe({figure.id: figure.spec for figure in report.figures()}),
    }  # fmt: skip
    template = environment.get_template("page.html.j2")
    plotly = _plotly() if report.figures() else ""
    return template.render(report=report, style=_source("style.css"), script=_source("script.js"), plotly=plotly)


def cell_view(report: Report, cell: TableCell, head: Head) -> dict[str, Any]:
    """What the template writes for a table's cell: texts, classes, link, and the exact value to sort by."""
    if cell.estimate is None:
        return {"hole": cell.hole}
    found, gap = cell.estimate, cell.difference
    view: dict[str, Any] = {
        "hole": "", "value": repr(float(found.value)), "text": number(found.value, head.digits), "best": cell.best,
        "interval": interval(found, head.digits), "link": runs_link(report.ui_url, cell.runs),
        "runs": " ".join(run for _, run in cell.runs), "missing": ", ".join(map(str, cell.missing)),
        "error": number(found.error, head.digits) if found.error == found.error else "",
        "seeds_only": found.known and not found.images,
        "gap": "", "mark": "", "verdict": cell.verdict, "spoken": "",
    }  # fmt: skip
    if gap is not None:
        words = SPOKEN.get(cell.verdict, "")
        view |= {
            "gap": number(gap.value, head.digits, True), "gap_interval": interval(gap, head.digits, True),
            "mark": MARKS[cell.verdict], "spoken": f"{words} {report.baseline}" if words else "no interval",
        }  # fmt: skip
    return view


def run_link(ui_url: str, experiment: str, run: str) -> str:
    """Address of a run in MLflow's UI, '' where no UI is given."""
    return f"{ui_url.rstrip('/')}/#/experiments/{quote(experiment)}/runs/{quote(run)}" if ui_url else ""


def runs_link(ui_url: str, runs: tuple[tuple[str, str], ...]) -> str:
    """Address of one run, or of MLflow's comparison of several."""
    if not ui_url or not runs:
        return ""
    if len(runs) == 1:
        return run_link(ui_url, *runs[0])
    ids, experiments = json.dumps([r for _, r in runs]), json.dumps(sorted({e for e, _ in runs}))
    return f"{ui_url.rstrip('/')}/#/compare-runs?runs={quote(ids)}&experiments={quote(experiments)}"


def _script_safe(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.cache
def _plotly() -> str:
    from importlib.util import find_spec

    spec = find_spec("plotly")  # found, not imported: that would take a second
    assert spec is not None and spec.origin is not None
    script = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return base64.b64encode(gzip.compress(script.read_bytes(), 6, mtime=0)).decode()


@functools.cache
def _source(name: str) -> str:
    return (files("reports.render") / name).read_text(encoding="utf-8")
