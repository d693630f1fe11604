"""Every format has the same numbers, and LaTeX compiles."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.parser import main
from reports.pages import csv_values, latex, write
from reports.published.citations import bibtex
from reports.records import TrackingError
from reports.tables import Number, ResultTable
from tests.reports.synthetic import write_runs

LATEX = shutil.which("pdflatex")
SPECIAL = "a_b & 50 % #1 {x} ~^ \\ $5 λ δ < 1.25° –"  # needs escaping, or is not ASCII


@pytest.fixture(scope="module")
def files(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    paths = write(report, folder, ("html", "md", "csv", "latex", "methods"))
    return {path.name: path.read_text() for path in paths}


def markdown_numbers(text: str, table: ResultTable) -> list[list[str]]:
    lines = text.partition(f"## {table.title}\n")[2].strip().splitlines()[2 : 2 + len(table.frame)]
    rows = [line.strip("| ").split(" | ")[1:] for line in lines]
    return [[cell.partition(" ")[0].strip("*–") for cell in row] for row in rows]


def latex_numbers(text: str, table: ResultTable) -> list[list[str]]:
    body = text.partition(f"\\label{{tab:{table.id}}}")[2].partition("\\midrule")[2]
    lines = body.partition("\\bottomrule")[0].strip().splitlines()
    rows = [line.removesuffix("\\\\").split(" & ")[1:] for line in lines]
    pattern = re.compile(r"\s*(?:\\textbf\{)?([\d.]*)")
    return [[pattern.match(cell)[1] for cell in row] for row in rows]


def test_every_format_has_the_same_numbers(report, files):
    names = {"index.html", "report.md", "tables.tex", "results.csv", "runs.csv", "classes.csv"}
    assert set(files) == names | {
        "pairs.csv",
        "costs.csv",
        "study-lambdas.csv",
        "methods.txt",
        "references.bib",
    }
    rows = {
        (row["backbone"], row["task"], row["metric"]): row
        for row in csv.DictReader(io.StringIO(files["results.csv"]))
    }
    for (backbone, column, metric), estimate in report.analysis.estimates.items():
        row = rows[backbone, column.title, metric]
        assert float(row["value"]) == estimate.value
        assert (int(row["seeds"]), int(row["images"])) == (estimate.seeds, estimate.images)
        assert float(row["low"] or "nan") == pytest.approx(estimate.low, nan_ok=True)
    assert "(1 seed)" in files["report.md"] and "(1 seeds)" not in files["report.md"]
    classes = files["index.html"].partition('id="t-class-1"')[2].partition("</table>")[0]
    cells = re.findall(r"<data[^>]*>([^<]*)<", classes)
    assert cells and all(re.fullmatch(r"\d+(\.\d)?", cell) for cell in cells)
    assert len(report.tables) == 5
    for table in report.tables:
        shown = table.frame.map(lambda cell: "" if cell.missing else cell.text).to_numpy().tolist()
        assert markdown_numbers(files["report.md"], table) == shown
        assert latex_numbers(files["tables.tex"], table) == shown
        for cell in table.numbers:
            row = rows[cell.backbone, cell.task, cell.metric]
            assert cell.missing == row["missing"]
            if not cell.missing:
                assert f"{float(row['value']):.{cell.digits}f}" == cell.text
                assert f'<data value="{cell.value}"' in files["index.html"]


def test_latex_is_ascii_with_two_rows_of_headings(files):
    text = files["tables.tex"]
    assert text.isascii()
    assert text.count("\\begin{tabular}") == text.count("\\bottomrule") == 6
    assert "\\multicolumn{2}{c}{voc/linear (A)}" in text and "N = 60" in text
    assert "Seeds: 1 to 3" in text and "\\textbf{" in text


@pytest.mark.integration
@pytest.mark.skipif(LATEX is None, reason="no LaTeX: apt-get install texlive-latex-base")
def test_latex_compiles(report, tmp_path):
    (study,) = report.studies
    trials = [replace(trial, params={SPECIAL: SPECIAL}) for trial in study.trials]
    study = replace(study, name=SPECIAL, trials=trials)
    tables = [
        replace(table, title=SPECIAL, marks=dict.fromkeys(table.frame.index, SPECIAL))
        for table in report.tables
    ]
    text = latex(replace(report, title=SPECIAL, studies=[study], tables=tables))
    document = (
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n%s\n\\end{document}"
    )
    (tmp_path / "paper.tex").write_text(document % text, encoding="utf-8")
    command = [LATEX, "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=600)
    assert result.returncode == 0, result.stdout[-2000:].decode()


INERT = {
    "=1+1": "'=1+1",
    "\t-a": "\t'-a",
    "a\t =1": "a\t '=1",
    "a;-1": "a;'-1",
    "a-1=b": "a-1=b",
}


def test_no_name_is_a_formula_in_a_spreadsheet(tracker, report_of):
    write_runs(tracker, dict.fromkeys(INERT, 0.6))
    files = csv_values(report_of(tracker))
    headings = next(csv.reader(io.StringIO(files["classes.csv"])))
    for inert in INERT.values():
        assert f"\n{inert},voc/linear," in files["results.csv"] and inert in headings
    words = f"results export --format csv --experiment {tracker.experiment} --out x.csv"
    assert main([*words.split(), "--tracking-uri", tracker.uri]) == 0
    assert Path("x.csv").read_text() == files["results.csv"]


def test_the_methods_of_a_report(report, files):
    text = files["methods.txt"]
    assert "seeds (1 to 3 for each backbone)" in text and "images (60 for each task)" in text
    assert f"{report.analysis.statements} verdicts hold together at 5 % (Holm 1979" in text
    assert "Numbers were computed with torch 2" in text
    assert "equivalent" not in text, "no margin was named"
    keys = re.findall(r"^@\w+\{(\w+),$", files["references.bib"], re.M)
    assert {"holm1979", "everingham2010", "radford2021", "salehi2024"} <= {*keys}
    assert len(keys) == len({*keys}) and "dinov3" not in files["references.bib"]


def test_sources_without_an_entry_are_named():
    text = bibtex({"backbone x": {"backbone:x"}, "dataset nyu-depth": {"dataset:nyu-depth"}})
    assert "@inproceedings{silberman2012," in text and text.endswith("of: backbone x.\n")


def test_the_text_of_a_difference():
    cell = Number("b", "t", "p", "mIoU", 1, verdict="tie")
    cell = replace(cell, difference=-1.0, difference_low=-2, difference_high=0.5)
    assert cell.change == "= −1.0 [−2.0, +0.5]"


def test_another_page_is_not_replaced(report, tmp_path):
    (tmp_path / "index.html").write_text("<p>mine")
    with pytest.raises(TrackingError, match="is not a report"):
        write(report, tmp_path)
    assert (tmp_path / "index.html").read_text() == "<p>mine"
