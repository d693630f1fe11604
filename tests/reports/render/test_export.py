"""Every format has the same numbers, and LaTeX compiles."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from reports.errors import TrackingError
from reports.parts.study import parameter_label
from reports.parts.tables import Number, Table
from reports.render.export import latex, write

LATEX = shutil.which("pdflatex")
# all of these need escaping, or are letters that LaTeX does not know
NASTY = r"a_b & 50 % #1 {x} ~^ \\ $5 λ δ < 1.25° → –"


@pytest.fixture(scope="module")
def files(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    return {
        path.name: path.read_text()
        for path in write(report, folder, ("html", "md", "csv", "latex"))
    }


def markdown_numbers(text: str, table: Table) -> list[list[str]]:
    lines = text.partition(f"## {table.title}\n")[2].strip().splitlines()[2 : 2 + len(table.rows)]
    cells = [line.strip("| ").split(" | ")[1:] for line in lines]
    return [
        ["" if cell.startswith("–") else cell.partition(" ")[0].strip("*") for cell in row]
        for row in cells
    ]


def latex_numbers(text: str, table: Table) -> list[list[str]]:
    body = (
        text.partition(f"\\label{{tab:{table.id}}}")[2]
        .partition("\\midrule")[2]
        .partition("\\bottomrule")[0]
    )
    cells = [line.removesuffix("\\\\").split(" & ")[1:] for line in body.strip().splitlines()]
    return [
        [
            re.match(r"(?:\\textbf\{)?([\d.$-]*)", cell.strip())[1].replace("$-$", "−").strip("-")
            for cell in row
        ]
        for row in cells
    ]


def test_every_format_has_the_same_numbers(report, files):
    names = {
        "index.html",
        "report.md",
        "results.csv",
        "runs.csv",
        "classes.csv",
        "pairs.csv",
        "study-lambdas.csv",
        "tables.tex",
    }
    assert set(files) == names
    table = {
        (r["backbone"], r["task"], r["metric"]): r
        for r in csv.DictReader(io.StringIO(files["results.csv"]))
    }
    for (backbone, column, metric), found in report.analysis.estimates.items():
        row = table[backbone, column.title, metric]
        assert (
            float(row["value"]) == found.value
            and int(row["seeds"]) == found.seeds
            and int(row["images"]) == found.images
        )
        assert float(row["low"] or "nan") == pytest.approx(found.low, nan_ok=True)
    assert len(report.tables) == 5
    for one in report.tables:
        shown = [["" if n.missing else n.text for n in cells] for _, cells in one.rows]
        assert sum(text != "" for row in shown for text in row) >= 5
        assert markdown_numbers(files["report.md"], one) == shown
        assert latex_numbers(files["tables.tex"], one) == shown
        for _, cells in one.rows:
            for n in cells:
                exact = table[n.backbone, n.task, n.metric]
                assert n.missing == exact["missing"]
                assert (
                    n.missing or f"{float(exact['value']):.{n.digits}f}".replace("-", "−") == n.text
                )
                assert n.missing or f'data-value="{n.value}"' in files["index.html"]


def test_latex_has_two_rows_of_headings_and_no_letter_it_does_not_know(files):
    text = files["tables.tex"]
    assert text.count("\\begin{tabular}") == text.count("\\bottomrule") == 6
    assert (
        "\\multicolumn{2}{c}{voc/linear (A)}" in text
        and "N = 60" in text
        and "Seeds: 1 to 3" in text
    )
    for line in text.splitlines():
        plain = line.replace("\\_", "").replace("\\%", "")
        assert line.startswith("%") or not re.search(
            r"[^\x00-\x7f]|%|_", re.sub(r"tab:[\w-]+", "", plain)
        ), line


@pytest.mark.skipif(
    LATEX is None, reason="no LaTeX: apt-get install -y --no-install-recommends texlive-latex-base"
)
def test_latex_compiles(report, tmp_path):
    (study,) = report.studies
    renamed = {"lambda_seg": NASTY, "lambda_depth": "lr_scale"}
    trials = [
        replace(t, params={renamed.get(k, k): v for k, v in t.params.items()}) for t in study.trials
    ]
    odd = replace(study, name=NASTY, trials=trials, varied=[NASTY, "lr_scale"])
    tables = [
        replace(one, title=NASTY, marks={name: NASTY for name, _ in one.rows})
        for one in report.tables
    ]
    text = latex(replace(report, title=NASTY, studies=[odd], tables=tables))
    assert parameter_label("lr_scale").replace("_", "\\_") in text
    document = [
        "\\documentclass{article}",
        "\\usepackage{booktabs}",
        "\\begin{document}",
        text,
        "\\end{document}",
    ]
    (tmp_path / "paper.tex").write_text("\n".join(document), encoding="utf-8")
    assert LATEX is not None
    told = subprocess.run(
        [LATEX, "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stdout[-2000:].decode()


def test_a_number_says_what_is_known_of_it():
    known = Number(
        "b",
        "t",
        "p",
        "mIoU",
        1,
        40.25,
        39.0,
        41.5,
        difference=-1.0,
        difference_low=-2,
        difference_high=0.5,
        verdict="tie",
    )
    assert (known.text, known.interval, known.change, known.error) == (
        "40.2",
        "[39.0, 41.5]",
        "= −1.0 [−2.0, +0.5]",
        "",
    )
    assert (replace(known, verdict="").change, replace(known, low=float("nan")).interval) == (
        "",
        "",
    )


def test_an_unknown_format_is_said(report, tmp_path):
    with pytest.raises(TrackingError, match="no format 'pdf'"):
        write(report, tmp_path, ("pdf",))
