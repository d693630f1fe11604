"""Tables as HTML, LaTeX, Markdown and text: what a cell says is decided here and nowhere else.

A table is one frame, of ``reports.parts.tables.Number`` or of plain values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup, escape

from reports.parts.tables import (
    MARKS,
    MetricColumn,
    Number,
    PairGain,
    bracketed,
    count,
    decimal,
)

if TYPE_CHECKING:
    from reports.shared.standings import Place

Text = Callable[[Any], str]
SYMBOLS = str.maketrans(
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
WORDS = {
    "win": "better than",
    "loss": "worse than",
    "tie": "not detectably different from",
    "unknown": "no verdict against",
}
LONGEST = 90  # characters of a reason that are shown

# --- cells


def plain_cell(value: object) -> str:
    """A value that is no ``Number``."""
    if value is None or value != value:
        return "–"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


def terminal_cell(number: Number) -> str:
    """Value, interval or else standard error, and mark."""
    if number.missing:
        return number.missing.partition(":")[0]
    spread = number.interval or (f"± {number.error}" if number.error else "")
    return " ".join(filter(None, [number.text, spread, MARKS[number.verdict]]))


def markdown_cell(number: Number) -> str:
    """Value, interval and seeds; the difference to the baseline."""
    if number.missing:
        return plain_text(f"– ({number.missing})")
    value = f"**{number.text}**" if number.best else number.text
    parts = [value, number.interval, f"({number.seeds} seeds)"]
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


def html_cell(number: Number, baseline: str, link: str) -> str:
    """All of these, with a link to the runs."""
    if number.missing:
        text = number.missing
        short = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}…"
        return _data("", _span("missing", f"– {short}", title=text))
    about = f"{number.interval} {count(number.seeds, 'seed')}"
    if number.interval and not number.images:
        why = "no per-image scores: the interval does not include the noise of images"
        about += Markup(", {}").format(_span("", "no noise of images", title=why))
    if number.absent:
        about += f", without {', '.join(map(str, number.absent))}"
    parts = [_span("num best" if number.best else "num", linked(number.text, link))]
    if number.best:
        parts.append(_span("sr", " best by its interval"))
    if number.error:
        parts.append(_span("se", f" ± {number.error}"))
    parts.append(_span("ci", about))
    if number.verdict:
        words = _span("sr", f", {WORDS[number.verdict]} {baseline}")
        parts.append(_span(f"gap {number.verdict}", Markup("{}{}").format(number.change, words)))
    return _data(number.value, Markup("").join(parts), runs=" ".join(number.runs))


def pair_cell(pair: PairGain | None) -> str:
    """A mean gain, and the tasks won and lost."""
    if pair is None:
        return _data("", "–")
    gain = _span("num", f"{decimal(pair.gain, 1, True)} %")
    parts = [
        _span(f"gap {pair.verdict}", gain),
        _span("ci", bracketed(pair.low, pair.high, 1, True)),
        _span("ci", f"{pair.wins} won, {pair.losses} lost"),
    ]
    return _data(pair.gain if pair.gain == pair.gain else "", Markup("").join(parts))


def place_cell(place: Place) -> dict[str, Any]:
    """A score of a leaderboard with half of its interval, and its places."""
    score, half = float(f"{place.score:.5g}"), float(f"{place.half_width:.3g}")
    text = f"{score:.1f}" if abs(score) >= 10 else f"{score:#.3g}"
    ends = dict.fromkeys([place.first, place.last])
    return {
        "value": score,
        "text": text,
        "spread": f"± {half:#.2g}",
        "place": "–".join(map(str, ends)),
        "order": [place.first, place.last],
    }


def html_value(value: object) -> str:
    """``plain_cell``, sorted by the value."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return escape(value or "–")
    text = plain_cell(value)
    return _data("" if text == "–" else value, text)


def linked(text: str, link: str) -> Markup:
    """Text as a link to a page elsewhere; as it is without one."""
    anchor = Markup('<a href="{}" target="_blank" rel="noopener">{}</a>')
    return anchor.format(link, text) if link else escape(text)


def _span(css: str, text: str, **attributes: str) -> Markup:
    every = {**({"class": css} if css else {}), **attributes}
    return Markup("<span{}>{}</span>").format(_attributes(every), text)


def _data(value: object, text: str, **attributes: str) -> Markup:
    """A cell that the page sorts by ``value``."""
    data = {"value": value, **{f"data-{name}": text for name, text in attributes.items() if text}}
    return Markup("<data{}>{}</data>").format(_attributes(data), text)


def _attributes(attributes: Mapping[str, object]) -> Markup:
    pairs = [Markup(' {}="{}"').format(Markup(key), value) for key, value in attributes.items()]
    return Markup("").join(pairs)


# --- headings


def heading(column: MetricColumn) -> tuple[str, str]:
    """Task; metric, arrow and number of images."""
    images = f" (N = {column.images})" if column.images else ""
    return column.column.title, f"{column.label} {column.arrow}{images}"


def sorter(title: object, small: str = "", first: str = "descending") -> Markup:
    """A heading of HTML that sorts by its column, at first ``ascending`` or ``descending``."""
    button = Markup('<button type="button" data-first="{}">{}</button>').format(first, title)
    return button + (Markup("<small>{}</small>").format(small) if small else "")


def metric_sorter(column: MetricColumn) -> Markup:
    """The heading of a metric."""
    unit = f", {column.unit}" if column.unit else ""
    images = f", N = {column.images}" if column.images else ""
    first = "descending" if column.sign > 0 else "ascending"
    return sorter(column.column.title, f"{column.label}{unit} {column.arrow}{images}", first)


# --- tables


def html_table(
    frame: pd.DataFrame,
    name: str,
    caption: str,
    *,
    cell: Text = html_value,
    row: Text = escape,
    head: Text = sorter,
    css: str = "sortable",
) -> Markup:
    """A table of HTML; ``frame.columns.name`` is above its rows."""
    corner = head(frame.columns.name)
    styler = (
        frame.rename_axis(columns=None)
        .style.format(cell)
        .format_index(row, axis=0)
        .format_index(head, axis=1)
    )
    text = styler.set_caption(escape(caption)).to_html(exclude_styles=True)
    for part, replacement in (
        ("<table>", f'<table id="t-{escape(name)}" class="{css}">'),
        ("&nbsp;", corner),
    ):
        text = text.replace(part, replacement, 1)
    before, body, after = text.partition("<tbody>")
    text = before.replace("<th >", '<th scope="col">') + body
    text += after.replace("<th >", '<th scope="row">')
    text = re.sub(r">\s+<", "><", text).replace("<td >", "<td>")
    region = Markup('<div class="scroll" tabindex="0" role="region" aria-label="{}">').format(
        caption.partition(":")[0]
    )
    return region + Markup(text) + Markup("</div>")


def markdown_table(frame: pd.DataFrame, cell: Text, head: Text = str) -> list[str]:
    """The lines of a table of Markdown."""
    index, columns = [map(plain_text, frame.index), [plain_text(head(c)) for c in frame.columns]]
    rows = [["", *columns], ["---", *["---:"] * len(columns)]]
    cells = frame.map(cell).to_numpy().tolist()
    rows += [[label, *texts] for label, texts in zip(index, cells, strict=True)]
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
    return text.translate(SYMBOLS)


def named_rows(names: Sequence[str], marks: Mapping[str, str]) -> list[str]:
    """Backbones with their marks, for tables without small print."""
    return [f"{name} ({marks[name]})" if name in marks else name for name in names]
