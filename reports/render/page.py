"""Rendering the page: template, style, script, figures and Plotly itself in one file."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from reports.parts.study import study_frame
from reports.parts.tables import ACROSS, bracketed, count, decimal, plain_cell
from reports.stats.resampling import RESAMPLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reports.cell import Record
    from reports.parts.figures import Figure
    from reports.report import Report


def render_page(report: Report) -> str:
    """The page as text.

    Plotly (4.8 MB) is embedded once, gzipped (1.4 MB), and unpacked by the browser; the tables are
    plain HTML and need no script.
    """
    return render_template(
        "page.html.j2",
        report=report,
        run_link=functools.partial(run_link, report.ui_url),
        runs_link=functools.partial(runs_link, report),
        bracketed=bracketed,
        count=count,
        ACROSS=ACROSS,
        RESAMPLES=RESAMPLES,
        **figure_content(report.all_figures()),
    )


def figure_content(figures: Sequence[Figure]) -> dict[str, Any]:
    """What a page needs to draw figures: ``figures``, their Plotly JSON by id, and ``plotly``."""
    content = {f.id: {**f.spec, **({"choices": f.choices} if f.choices else {})} for f in figures}
    return {"figures": content, "plotly": _plotly() if content else ""}


def render_template(name: str, **content: Any) -> str:
    """A page of the templates in this folder, which has the page's style and scripts."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "ensure_ascii": False}
    environment.filters |= {
        "decimal": decimal,
        "frame": study_frame,
        "plain": plain_cell,
    }
    environment.globals["source"] = _source
    return environment.get_template(name).render(content)


def run_link(ui_url: str, run: Record) -> str:
    """Address of a run in MLflow's UI; '' without a UI, and for a run that is not in the store."""
    path = f"/#/experiments/{quote(run.experiment_id)}/runs/{quote(run.run_id)}"
    return ui_url.rstrip("/") + path if ui_url and not run.source else ""


def runs_link(report: Report, ids: tuple[str, ...]) -> str:
    """Address of one run, or of MLflow's comparison of several."""
    if not report.ui_url or not ids or report.analysis is None:
        return ""
    runs = [report.analysis.selection.runs[run_id] for run_id in ids]
    if len(runs) == 1:
        return run_link(report.ui_url, runs[0])
    experiments = quote(json.dumps(sorted({run.experiment_id for run in runs})))
    query = f"runs={quote(json.dumps(list(ids)))}&experiments={experiments}"
    return f"{report.ui_url.rstrip('/')}/#/compare-runs?{query}"


@functools.cache
def _plotly() -> str:
    spec = find_spec("plotly")  # not imported: that would take a second
    assert spec is not None and spec.origin is not None
    script = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return base64.b64encode(gzip.compress(script.read_bytes(), 6, mtime=0)).decode()


@functools.cache
def _source(name: str) -> str:
    return (files("reports.render") / name).read_text(encoding="utf-8")
