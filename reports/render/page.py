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

import pandas as pd
from markupsafe import Markup, escape

from reports.parts.study import study_frame
from reports.parts.summary import gain_words
from reports.parts.tables import ACROSS, MetricColumn, Number, ResultTable, bracketed, decimal
from reports.render.frames import (
    html_cell,
    html_table,
    linked,
    metric_sorter,
    pair_cell,
    sorter,
)
from reports.stats.resampling import RESAMPLES

if TYPE_CHECKING:
    from reports.cell import Record
    from reports.report import Report

PUBLISHED = [
    *("Backbone", "Task", "Metric", "Published", "Here"),
    *("Protocol of the source", "Differences", "Source"),
]


def render_page(report: Report) -> str:
    """The page as text.

    Plotly (4.8 MB) is embedded once, gzipped (1.4 MB), and unpacked by the browser; the tables are
    plain HTML and need no script.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "decimal": decimal,
        "gain": gain_words,
        "frame": study_frame,
    }
    figures = report.all_figures()
    return environment.get_template("page.html.j2").render(
        report=report,
        tables=PageTables(report),
        linked=linked,
        run_link=functools.partial(run_link, report.ui_url),
        bracketed=bracketed,
        ACROSS=ACROSS,
        RESAMPLES=RESAMPLES,
        figure_json=_script_safe({figure.id: figure.spec for figure in figures}),
        style=_source("style.css"),
        script=_source("script.js"),
        plotly=_plotly() if figures else "",
    )


class PageTables:
    """The tables of the page as HTML."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def results(self, table: ResultTable) -> Markup:
        """Backbones down, metrics across."""
        caption = (
            f"{table.title}: mean ± standard error over seeds, 95 % interval, difference to"
            f" {self.report.baseline}; N: images."
        )
        row = functools.partial(self._named, marks=table.marks)
        frame = table.frame.rename_axis(columns="Backbone")
        return html_table(
            frame, table.id, caption, cell=self._cell, row=row, head=self._metric_heading
        )

    def overview(self) -> Markup:
        """Tasks down, or, of many backbones, backbones."""
        report, table = self.report, self.report.overview
        assert table is not None and report.provenance is not None
        marks = {**table.marks, report.baseline: "baseline"}
        caption = f"{len(report.columns)} tasks × {len(report.backbones)} backbones"
        if any(column.letter for column in report.columns):
            caption += (
                ". A task that ran under several protocols has an entry for each (A, B …); numbers"
                " of different protocols are never compared"
            )
        caption = f"At a glance: {caption}."
        if len(report.backbones) > ACROSS:
            facts = report.provenance.backbones

            def backbone_row(name: str) -> Markup:
                texts = [text for text in facts[name].values() if text]
                numbers = [number for number in table.numbers if number.backbone == name]
                decided = any(number.verdict in ("win", "loss") for number in numbers)
                small = " · ".join(filter(None, [marks.get(name, ""), *texts]))
                return self._row(name, self._named(name), small, " ".join([name, *texts]), decided)

            frame = table.frame.rename_axis(columns="Backbone")
            return html_table(
                frame,
                "overview",
                caption,
                cell=self._cell,
                row=backbone_row,
                head=self._metric_heading,
            )

        def head(name: str) -> Markup:
            return sorter(name, marks.get(name, "metric, N images" if name == "Task" else ""))

        frame = table.frame.T.rename_axis(columns="Task")
        return html_table(
            frame, "overview", caption, cell=self._cell, row=self._task_row, head=head
        )

    def _task_row(self, of: MetricColumn) -> Markup:
        unit = f", {of.unit}" if of.unit else ""
        images = f", N = {of.images}" if of.images else ""
        way = "higher" if of.sign > 0 else "lower"
        arrow = Markup('<span role="img" aria-label="{} is better">{}</span>').format(way, of.arrow)
        title = Markup("/<wbr>").join(map(escape, of.column.title.split("/")))
        small = Markup("{}{} {}{}").format(of.label, unit, arrow, images)
        text = f"{of.column.title} {of.label} {of.metric} {of.column.kind}"
        decided = self.report.decided(of.column)
        return self._row(of.column.title, title, small, text, decided, of.column.kind)

    def _row(
        self, name: str, title: Markup, small: str, text: str, decided: bool, kind: str = ""
    ) -> Markup:
        """A heading with what the page sorts and filters by."""
        return Markup(
            '<data value="{}" data-text="{}" data-decided="{}" data-kind="{}">{}</data>'
            "<small>{}</small>"
        ).format(name, text.lower(), "yes" if decided else "no", kind, title, small)

    def _named(self, name: str, marks: dict[str, str] | None = None) -> Markup:
        colour = self.report.styles[name].colour
        dot = Markup('<span class="dot" style="background:{}" aria-hidden="true"></span> {}')
        mark = (marks or {}).get(name)
        return dot.format(colour, name) + (Markup("<small>{}</small>").format(mark) if mark else "")

    def _metric_heading(self, of: MetricColumn | str) -> Markup:
        return sorter(of, first="ascending") if isinstance(of, str) else metric_sorter(of)

    def _cell(self, number: Number) -> str:
        return html_cell(number, self.report.baseline, runs_link(self.report, number.runs))

    def pairs(self) -> Markup:
        """Each backbone over each other one."""
        names = self.report.backbones
        cells = [[self.report.pairs.get((name, base)) for base in names] for name in names]
        frame = pd.DataFrame(cells, names, names, dtype=object).rename_axis(columns="Backbone")
        caption = "All pairs: mean gain of the row over the column, in percent of the column."
        head = lambda name: sorter(name if name == "Backbone" else f"over {name}")
        return html_table(frame, "pairs", caption, cell=pair_cell, row=self._named, head=head)

    def published(self) -> Markup:
        """Published numbers and ours."""
        frame = pd.DataFrame(map(vars, self.report.published), dtype=object)
        link = Markup('<a href="{}" rel="noopener">{}</a>')
        links = [link.format(row.url, row.source) for row in self.report.published]
        frame["source"] = pd.Series(links, dtype=object)  # pandas' str would lose that it is HTML
        frame = frame.drop(columns="url").set_axis(PUBLISHED, axis=1)
        caption = "Published numbers and ours."
        return self.plain(frame, "published-numbers", caption, "facts-table wide")

    def backbones(self, backbones: dict[str, dict[str, str]]) -> Markup:
        """Properties of each backbone."""
        frame = pd.DataFrame(backbones, dtype=object).T.rename_axis(columns="Backbone")
        caption = "Backbones: properties of each; FLOPs of one image at its own resolution."
        head = functools.partial(sorter, first="ascending")
        return html_table(frame, "backbones", caption, head=head, css="facts-table sortable")

    def weights(self, rows: list[dict[str, Any]]) -> Markup:
        """Where the weights are from, and their runs."""
        frame = pd.DataFrame([self._weights_row(**row) for row in rows], dtype=object)
        caption = "Weights: one row for each backbone and seed, with the MLflow run of its numbers."
        return self.plain(frame, "weights", caption, "facts-table")

    def _weights_row(
        self,
        *,
        source: str,
        sha256: str,
        commit: str,
        run: Record,
        train: Record | None,
        **facts: Any,
    ) -> dict[str, Any]:
        runs = self._run(run)
        if train:
            runs += Markup(", trained by ") + self._run(train)
        dirty = "+dirty" if commit.endswith("+dirty") else ""
        return {
            "Backbone": facts["backbone"],
            "Seed": str(facts["seed"]),
            "Source": _mono(source),
            "sha256": _mono(sha256[:12], sha256),
            "Licence": facts["licence"],
            "Code": _mono(commit[:10] + dirty, commit),
            "Run": _mono(runs),
        }

    def _run(self, run: Record) -> Markup:
        return linked(run.run_id[:12], run_link(self.report.ui_url, run))

    def data(self, rows: list[dict[str, Any]]) -> Markup:
        """Datasets and their fingerprints."""
        frame = pd.DataFrame(rows, dtype=object)
        frame["partial"] = ["partial" if row["partial"] else "complete" for row in rows]
        fingerprints = [_mono(row["fingerprint"]) for row in rows]
        frame["fingerprint"] = pd.Series(fingerprints, dtype=object)
        frame = frame.set_axis(["Dataset", "Fingerprint", "Complete"], axis=1)
        caption = "Data: the fingerprint is a hash over names and content of all samples used."
        return self.plain(frame, "data", caption, "facts-table")

    def differences(self, task: str, differing: dict[str, dict[str, Any]]) -> Markup:
        """Settings that differ between the protocols of a task."""
        rows = {n: {k: _mono(str(v)) for k, v in each.items()} for n, each in differing.items()}
        frame = pd.DataFrame(rows, dtype=object).T
        name, caption = f"protocols-{task.replace('/', '-')}", f"Protocols of {task}: what differs."
        frame = frame.rename_axis(columns="Setting")
        return html_table(frame, name, caption, head=escape, css="facts-table")

    def plain(self, frame: pd.DataFrame, name: str, caption: str, css: str = "sortable") -> Markup:
        """A table of plain values, the first column as its rows."""
        first = frame.columns[0]
        frame = frame.set_index(first).rename_axis(index=None, columns=first)
        is_sortable = css == "sortable"
        head = functools.partial(sorter, first="ascending") if is_sortable else escape
        return html_table(frame, name, caption, head=head, css=css)


def _mono(text: str, title: str = "") -> Markup:
    return Markup('<span class="mono" title="{}">{}</span>').format(title, text)


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


def _script_safe(value: Any) -> str:
    """JSON that cannot end its script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.cache
def _plotly() -> str:
    spec = find_spec("plotly")  # not imported: that would take a second
    assert spec is not None and spec.origin is not None
    script = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return base64.b64encode(gzip.compress(script.read_bytes(), 6, mtime=0)).decode()


@functools.cache
def _source(name: str) -> str:
    return (files("reports.render") / name).read_text(encoding="utf-8")
