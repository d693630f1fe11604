"""A report as files: the page (HTML), its numbers as Markdown, CSV and LaTeX, and the formats of
the Hugging Face Hub. ``write`` writes them, ``attach_report`` stores the page in MLflow.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml

from cliptex_common.errors import user_error_message
from cliptex_common.files import write_text
from reports.figures import Figure
from reports.published.citations import references
from reports.records import REPORT, Cell, Record, TrackingError
from reports.render import render
from reports.report import Report, ReportRequest, build_report
from reports.statistics import LEVEL, RESAMPLES
from reports.store import connect, local_folder, tracking_uri
from reports.studies import study_frame
from reports.summary import describe_methods
from reports.tables import (
    ACROSS,
    MetricColumn,
    Number,
    ResultTable,
    bracketed,
    count,
    decimal,
    plain_cell,
)


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
        LEVEL=LEVEL,
        RESAMPLES=RESAMPLES,
        **figure_content(report.all_figures()),
    )


def figure_content(figures: Sequence[Figure]) -> dict[str, Any]:
    """What a page needs to draw figures: ``figures``, their Plotly JSON by id, and ``plotly``."""
    content = {f.id: {**f.spec, **({"choices": f.choices} if f.choices else {})} for f in figures}
    return {"figures": content, "plotly": _plotly() if content else ""}


def render_template(name: str, **content: Any) -> str:
    """A page of a report: ``reports.render.render`` with the filters of its tables."""
    filters: dict[str, Any] = {"decimal": decimal, "frame": study_frame, "plain": plain_cell}
    return render(name, filters, content)


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


OVERVIEW_LEGEND = (
    "Value, 95 % interval, seeds (N: images, or what of them is resampled); then the difference to"
    " {}, with its own: ▲ better, ▼ worse, = undecided (all of a report at 95 %), △ ▽ of these"
    " weights (one seed), ? no verdict (no scores of 20 images, no main metric). Bold:"
    " better than all others."
)
LATEX_SYMBOLS = str.maketrans(
    {
        "−": "$-$",
        "–": "--",
        "±": r"$\pm$",
        "×": r"$\times$",
        "°": r"$^\circ$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "<": "$<$",
        "δ": r"$\delta$",
        "λ": r"$\lambda$",
    }
)  # that pandas does not escape for LaTeX


def write(report: Report, out: Path, formats: Sequence[str] = ("html",)) -> list[Path]:
    """Write the report into the folder ``out``; returns the files, the page (``index.html``) first.

    Raises:
        TrackingError: ``index.html`` exists and is not a report.
        UserError: the folder cannot be written.
    """
    texts: dict[str, str] = {}
    for name in formats:
        texts |= FORMATS[name](report)
    page = out / "index.html"
    if "index.html" in texts and page.is_file():
        with page.open("rb") as file:
            if b"cliptex-benchmark" not in file.read(20_000):
                raise TrackingError(f"{page} exists and is not a report; give another --out")
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def numbers_frame(report: Report) -> pd.DataFrame:
    """The tidy frame: one row for each number of the detailed tables, columns as in ``Number``."""
    frame = pd.DataFrame([vars(number) for number in report.numbers().values()])
    return frame.assign(runs=frame["runs"].map(" ".join)).drop(columns=["absent", "digits"])


def csv_values(report: Report) -> dict[str, str]:
    """CSV files, name → text.

    ``results.csv``: a row for each number of the tables; ``runs.csv``: for each metric of each
    MLflow run; ``costs.csv``: for each backbone; ``classes.csv`` and ``pairs.csv`` if there are
    any; ``study-NAME.csv``: the trials of a sweep.
    """
    frames = {}
    if report.analysis is not None:
        selection = report.analysis.selection
        frames["results.csv"] = numbers_frame(report)
        all_cells = [cell for cells in selection.cells.values() for cell in cells]
        frames["runs.csv"] = metrics_frame(all_cells)
        frames["costs.csv"] = report.costs.reset_index()
        if report.classes:
            classes = [table.frame.assign(task=table.title) for table in report.classes]
            frames["classes.csv"] = pd.concat(classes)
        if report.pairs:
            frames["pairs.csv"] = pd.DataFrame([vars(pair) for pair in report.pairs.values()])
    for study in report.studies:
        frames[f"study-{re.sub('[^A-Za-z0-9_.-]', '-', study.name)}.csv"] = study_frame(study)
    return {name: csv_text(frame) for name, frame in frames.items()}


def metrics_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row for each metric of each finished cell.

    Columns: backbone, weights (sha256), task, kind, protocol, seed (int), metric, value (float;
    percentages 0–100), direction (+1 or -1), cost_seconds (of the cell), run_id, parent_id,
    experiment.
    """
    return pd.DataFrame(
        {
            "backbone": cell.backbone,
            "weights": cell.weights,
            "task": cell.task,
            "kind": cell.kind,
            "protocol": cell.protocol,
            "seed": cell.seed,
            "metric": name,
            "value": value,
            "direction": cell.declared[name].direction,
            "cost_seconds": cell.costs.get("seconds", float("nan")),
            "run_id": cell.run_id,
            "parent_id": cell.parent,
            "experiment": cell.experiment,
        }
        for cell in cells
        for name, value in cell.metrics.items()
    )


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV without its index. Spreadsheets run nothing in it as a formula: names and
    headings may come from others' files."""
    return frame.map(_inert).rename(columns=_inert).to_csv(index=False, lineterminator="\n")


def _inert(value: object) -> object:
    if not isinstance(value, str):
        return value
    # spreadsheets split at tabs and semicolons, too
    return re.sub(r"((?:^|[\t\r\n;])\s*)([=+@-])", r"\1'\2", value)


def _with_marks(table: ResultTable) -> pd.DataFrame:
    """The table with the marks of backbones in their names."""
    names = [
        f"{name} ({table.marks[name]})" if name in table.marks else name
        for name in table.frame.index
    ]
    return table.frame.set_axis(names)


def markdown(report: Report) -> str:
    """Verdict, caveats and tables."""
    lines = [
        f"# {plain_text(report.title)}",
        "",
        plain_text(f"{report.subtitle} · {report.date}"),
        "",
        f"**{plain_text(report.summary.headline)}**",
        "",
        *_list(report.summary.lines),
    ]
    if report.notes:
        lines += ["## Caveats", "", *_list(report.notes)]
    if report.overview:
        lines += ["## At a glance", "", *overview_lines(report)]
        lines += [
            "## Detectable differences",
            "",
            *_list([*report.averages, *report.levels, *report.power]),
        ]
    if report.tiers:
        lines += ["## Frozen and tuned", "", *_list(report.tiers)]
    for table in report.tables:
        lines += [f"## {plain_text(table.title)}", ""]
        lines += markdown_table(_with_marks(table).map(markdown_cell).rename(columns=_title))
    for study in report.studies:
        lines += [f"## λ search: {plain_text(study.name)}", "", plain_text(study.headline), ""]
        frame = study_frame(study).set_index("trial")
        lines += markdown_table(frame.map(plain_cell).map(plain_text))
    return "\n".join(lines)


def overview_lines(report: Report) -> list[str]:
    """The table at a glance in Markdown, with its legend."""
    assert report.overview is not None
    frame = _with_marks(report.overview).map(markdown_cell).rename(columns=_title)
    table = markdown_table(frame if len(frame) > ACROSS else frame.T)
    return [*table, plain_text(OVERVIEW_LEGEND.format(report.baseline)), ""]


def _title(column: MetricColumn) -> str:
    return " ".join(heading(column))


def _list(sentences: Sequence[str]) -> list[str]:
    return [*(f"* {plain_text(sentence)}" for sentence in sentences), ""]


def latex(report: Report) -> str:
    """Tables for a paper: value, standard error over seeds, difference to the baseline."""
    parts = [r"% needs \usepackage{booktabs}", ""]
    for table in report.tables:
        counts = sorted({number.seeds for number in table.numbers if not number.missing})
        ends = dict.fromkeys([*counts[:1], *counts[-1:]])
        seeds = f" Seeds: {' to '.join(map(str, ends))}." if counts else ""
        caption = (
            f"{table.title}. Value ± standard error over seeds (difference to {report.baseline}, *"
            " if decided; all hold together at 95 %). Bold: better than every other backbone."
            f" N: images, or what of them is resampled.{seeds}"
        )
        columns = pd.MultiIndex.from_tuples(map(heading, table.columns))
        frame = _with_marks(table).set_axis(columns, axis=1)
        bold = frame.map(lambda number: number.best)
        parts.append(latex_table(frame.map(latex_cell), caption, f"tab:{table.id}", bold))
    for study in report.studies:
        frame = study_frame(study).drop(columns=["state", "run"]).map(plain_cell).set_index("trial")
        caption = f"λ search: {study.name}."
        parts.append(latex_table(frame.rename_axis(index=None), caption, f"tab:study-{len(parts)}"))
    return "\n".join(parts)


def markdown_cell(number: Number) -> str:
    """Value, interval and seeds; the difference to the baseline."""
    if number.missing:
        return plain_text(f"– ({number.missing})")
    value = f"**{number.text}**" if number.best else number.text
    parts = [value, number.interval, f"({count(number.seeds, 'seed')})"]
    return " ".join(filter(None, parts)) + (f"; {number.change}" if number.change else "")


def latex_cell(number: Number) -> str:
    """Value ± standard error (difference to the baseline, starred if decided)."""
    if number.missing:
        return "–"
    text = f"{number.text} ± {number.error}" if number.error else number.text
    if not number.verdict:
        return text
    star = "*" if number.verdict in ("win", "loss") else ""
    return f"{text} ({decimal(number.difference, number.digits, True)}{star})"


def heading(column: MetricColumn) -> tuple[str, str]:
    """Task; metric, arrow and number of images."""
    images = f" (N = {column.images})" if column.images else ""
    return column.column.title, f"{column.label} {column.arrow}{images}"


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """The lines of a table of Markdown from a frame of text."""
    rows = [["", *map(plain_text, frame.columns)], ["---", *["---:"] * len(frame.columns)]]
    rows += [[plain_text(name), *cells] for name, *cells in frame.itertuples(name=None)]
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def plain_text(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def latex_table(
    frame: pd.DataFrame, caption: str, label: str, bold: pd.DataFrame | None = None
) -> str:
    """A table of LaTeX's booktabs from a frame of text.

    Args:
        bold: which cells are.
    """
    styler = frame.style.format(escape="latex")
    for axis in (0, 1):
        styler = styler.format_index(escape="latex", axis=axis)
    if bold is not None:
        style = bold.map(lambda is_bold: "textbf:--rwrap;" if is_bold else "")
        styler = styler.apply(lambda _: style, axis=None)
    text = styler.to_latex(
        column_format="l" + "r" * frame.shape[1],
        position="t",
        position_float="centering",
        hrules=True,
        caption=re.sub(r"([%_&#])", r"\\\1", caption),
        label=label,
        multicol_align="c",
        environment="table*" if frame.shape[1] > 4 else "table",
    )
    return text.translate(LATEX_SYMBOLS)


FORMATS: dict[str, Callable[[Report], dict[str, str]]] = {
    "html": lambda report: {"index.html": render_page(report)},
    "md": lambda report: {"report.md": markdown(report)},
    "csv": csv_values,
    "latex": lambda report: {"tables.tex": latex(report)},
    "methods": lambda report: (
        {
            "methods.txt": describe_methods(
                report.analysis, report.provenance.libraries if report.provenance else {}
            ),
            "references.bib": references(report.analysis),
        }
        if report.analysis
        else {}
    ),
}  # format → text of each of its files


def attach_report(
    request: ReportRequest,
    run_ids: Sequence[str],
    show: Callable[[Report | None], None] = lambda report: None,
    page: bool = True,
) -> tuple[str, Report | None]:
    """Build a report, ``show`` it, or None if it cannot be built, and store its page as
    ``report/index.html`` in each of the runs, unless no ``page`` is wanted.

    Returns:
        a line for the terminal with the page's path (in ``report/`` where the store's artifacts are
        on another machine), or with the reason why there is none that the user can mend, because
        the numbers are already stored; the report, if any.
    """
    report = None
    try:
        try:
            report = build_report(request)
        finally:
            show(report)
        if not page:
            return "", report
        client = connect(tracking_uri(request.tracking_uri))
        with tempfile.TemporaryDirectory() as folder:
            (path,) = write(report, Path(folder))
            for run_id in run_ids:
                client.log_files(run_id, {REPORT: path})
        local = local_folder(client.get_run(run_ids[0]).info.artifact_uri) if run_ids else None
        if local is not None and (local / REPORT).is_file():
            return f"report: {local / REPORT}", report
        return f"report: {write(report, Path('report'))[0]}", report
    except Exception as error:
        reason = user_error_message(error)
        if reason is None:
            raise
        study = f" --study {request.study}" if request.study else ""
        message = f"no report was made: {reason}; try python -m benchmark report{study}"
        return message, report


# The Hub reads the numbers of a report as community evaluations, or as metadata of a model card;
# nothing is uploaded. Kind of dataset → what the Hub calls its task; others are features' own.
TASK_TYPES = {
    "classification": "image-classification",
    "depth": "depth-estimation",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}


def community_evaluations(report: Report, datasets: Mapping[str, str]) -> dict[str, str]:
    """File → text: ``BACKBONE/.eval_results/DATASET-PROBE.yaml`` with the main metric of a task.

    Args:
        datasets: name of a dataset → id of its repository on the Hub, ``ORG/NAME``; tasks of other
            datasets are left out, because an entry names a repository.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files: dict[str, str] = {}
    for number, cell in _numbers(report):
        if number.metric != cell.main or cell.dataset not in datasets:
            continue
        entry = EvalResultEntry(
            dataset_id=datasets[cell.dataset],
            task_id=_file_name(number.task).replace("-", "_").lower(),
            value=number.value,
            date=_date(cell),
            notes=_notes(number, cell),
        )
        path = f"{_file_name(cell.backbone)}/.eval_results/{_file_name(number.task)}.yaml"
        files[path] = _as_yaml(eval_result_entries_to_yaml([entry]))
    return files


def model_cards(report: Report, datasets: Mapping[str, str]) -> dict[str, str]:
    """File → text: ``BACKBONE/model-index.yaml``, for the head of a model card's README.

    Args:
        datasets: as of ``community_evaluations``; other datasets keep the suite's name.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results: dict[str, list[EvalResult]] = {}
    for number, cell in _numbers(report):
        result = EvalResult(
            task_type=TASK_TYPES.get(cell.kind, "image-feature-extraction"),
            task_name=number.task,
            dataset_type=datasets.get(cell.dataset, cell.dataset),
            dataset_name=cell.dataset,
            metric_type=number.metric,
            metric_name=_notes(number, cell),
            metric_value=number.value,
        )
        results.setdefault(cell.backbone, []).append(result)
    return {
        f"{_file_name(name)}/model-index.yaml": _as_yaml(
            {"model-index": eval_results_to_model_index(name, each)}
        )
        for name, each in results.items()
    }


def _numbers(report: Report) -> Iterator[tuple[Number, Cell]]:
    """Each number of the report and the first cell that it is computed from."""
    assert report.analysis is not None
    cells = {
        (backbone, column.title): seeds[0]
        for (backbone, column), seeds in report.analysis.selection.cells.items()
    }
    for number in report.numbers().values():
        cell = cells.get((number.backbone, number.task))
        if cell is not None and not number.missing:
            yield number, cell


def _notes(number: Number, cell: Cell) -> str:
    """How the number was made, in a line."""
    parts = [f"{number.metric} of probe {cell.probe} on a frozen backbone"]
    if cell.preset:
        parts.append(f"protocol {cell.preset}" + (f" ({cell.differs})" if cell.differs else ""))
    if number.task != cell.task:  # with a letter
        parts.append(f"conditions {cell.protocol}")
    parts.append(count(number.seeds, "seed"))
    if number.interval:
        parts.append(f"95 % interval {number.interval}")
    if cell.shortened:
        parts.insert(0, f"not a number of the complete benchmark: {cell.shortened}")
    return ", ".join(parts)


def _date(cell: Cell) -> str | None:
    return f"{datetime.fromtimestamp(cell.started / 1000, UTC):%Y-%m-%d}" if cell.started else None


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).rstrip("-")


def _as_yaml(content: object) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
