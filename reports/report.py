"""The comparison report: everything that its page and its tables say, put together."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reports.analysis import Analysis, analyse
from reports.mlflow.client import hide_password
from reports.mlflow.query import Store, StoredRun
from reports.parts import figures as drawing
from reports.parts.caveats import caveats
from reports.parts.figures import Figure
from reports.parts.gallery import Gallery, galleries
from reports.parts.provenance import Provenance, provenance
from reports.parts.study import (
    STUDY_TAG,
    Study,
    build_study,
    find_study,
    objective_label,
    parameter_label,
    study_figures,
    study_headline,
    study_rows,
    value_text,
)
from reports.parts.tables import Table, experts_table, interval, number, overview, sections
from reports.parts.verdict import Verdict, gain_words, power_lines, verdict
from reports.selection import Column, default_experiments, select
from reports.stats.resampling import RESAMPLES


@dataclass
class StudyView:
    """A study with its figures and table."""

    study: Study
    headline: str
    figures: list[Figure]
    names: list[str]
    rows: list[dict[str, Any]]

    @property
    def params(self) -> list[str]:
        return self.study.varied or sorted({name for trial in self.study.trials for name in trial.params})

    @staticmethod
    def label(name: str) -> str:
        return parameter_label(name)

    @staticmethod
    def objective(name: str) -> str:
        return objective_label(name)

    def facts(self) -> list[tuple[str, str]]:
        """What is known of the sweep as a whole."""
        tags = self.study.parent.tags if self.study.parent else {}
        keys = {"suite": "suite", "storage": "storage", "git.commit": "code", "best.trial": "best trial"}
        return [(words, tags[key]) for key, words in keys.items() if tags.get(key)]

    @staticmethod
    def text(value: float | str) -> str:
        return value_text(value)


@dataclass
class Report:
    """All that is shown. ``analysis`` is None in the report of a study alone."""

    title: str
    subtitle: str
    verdict: Verdict
    store: str
    date: str
    made_by: str
    ui_url: str = ""
    resamples: int = RESAMPLES
    analysis: Analysis | None = None
    study: bool = False
    overview: Table | None = None
    tables: list[Table] = field(default_factory=list)
    studies: list[StudyView] = field(default_factory=list)
    forest: Figure | None = None
    bars: list[Figure] = field(default_factory=list)
    cost_figures: list[Figure] = field(default_factory=list)
    curves: list[Figure] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    provenance: Provenance | None = None
    notes: list[str] = field(default_factory=list)
    power: list[str] = field(default_factory=list)
    colours: dict[str, str] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        return self.analysis.selection.baseline if self.analysis else ""

    @property
    def several_seeds(self) -> bool:
        return self.analysis is not None and any(len(seeds) > 1 for seeds in self.analysis.selection.seeds.values())

    @property
    def lettered(self) -> bool:
        """Whether some task ran under several protocols."""
        return self.analysis is not None and any(column.letter for column in self.analysis.selection.columns)

    def figures(self) -> list[Figure]:
        """Every figure of the page."""
        own = [self.forest] if self.forest else []
        return [*own, *self.bars, *self.cost_figures, *self.curves, *(f for view in self.studies for f in view.figures)]

    def sections(self) -> list[tuple[str, str]]:
        """(anchor, title) of what there is."""
        found = [("verdict", "Verdict")]
        found += [("glance", "At a glance"), ("tables", "Tables")] if self.overview else []
        found += [(f"study-{place + 1}", "λ search") for place, _ in enumerate(self.studies)]
        found += [("figures", "Figures")] if self.bars or self.cost_figures or self.curves else []
        found += [("gallery", "Gallery")] if self.galleries else []
        return [*found, ("provenance", "Provenance")]

    def kinds(self) -> list[str]:
        """Kinds of tasks, in order."""
        return list(dict.fromkeys(column.kind for column in self.analysis.selection.columns)) if self.analysis else []

    def decided(self, column: Column) -> bool:
        """Whether some backbone wins or loses there."""
        assert self.analysis is not None
        return any(self.analysis.verdict(b, column) in ("win", "loss") for b in self.analysis.selection.backbones)

    def facts(self) -> list[dict[str, Any]]:
        """One small card for each backbone: gain, wins and losses, mean rank."""
        assert self.analysis is not None
        analysis, found = self.analysis, []
        for name in analysis.selection.backbones:
            rank = analysis.ranks.get(name)
            told = list(analysis.tasks(name).values())
            words = {"win": "won", "loss": "lost", "tie": "undecided", "unknown": "without a verdict"}
            counts = [
                f"{told.count(key)} {word}" for key, word in words.items() if told.count(key) or key in ("win", "loss")
            ]
            gain = analysis.gains.get(name)
            found.append(
                {
                    "name": name,
                    "baseline": name == self.baseline,
                    "gain": f"{number(gain.typical.value, 1, True)} %" if gain else "no common task",
                    "interval": interval(gain.typical, 1, True) if gain else "",
                    "beside": gain_words(gain).partition(", ")[2] if gain else "",
                    "count": ", ".join(counts),
                    "rank": f"mean rank {number(rank, 2)}" if rank else "",
                }
            )
        return found


@dataclass(frozen=True)
class Request:
    """What a report shall be about; see ``python -m benchmark report --help``.

    Attributes:
        like: ids of parent runs: only numbers of the protocols that these ran under. Default: all protocols.
    """

    experiments: Sequence[str] = ()
    baseline: str | None = None
    backbones: Sequence[str] = ()
    tasks: Sequence[str] = ()
    study: str | None = None
    tracking_uri: str | None = None
    ui_url: str = ""
    resamples: int = RESAMPLES
    like: Sequence[str] = ()


def build(
    request: Request, start: Callable[[str, int], None] | None = None, advance: Callable[[], None] | None = None
) -> Report:
    """Read the store and work everything out.

    Args:
        start, advance: a progress bar.

    Raises:
        TrackingError: nothing to report on, an unknown name, an unusable store, or a damaged artifact.
    """
    start, advance = start or (lambda what, total: None), advance or (lambda: None)
    store = Store(request.tracking_uri)
    if request.study:
        return _study_report(store, request)
    experiments = list(request.experiments) or default_experiments(store)
    named = [*request.backbones, *filter(None, [request.baseline])] if request.backbones else []
    runs = store.runs_about(experiments, named, request.tasks)
    in_study = {run.id for run in runs if run.tags.get(STUDY_TAG)}
    while more := {run.id for run in runs if run.parent in in_study and run.id not in in_study}:
        in_study |= more  # a trial's tasks are compared with other trials, not with finished backbones
    counted, elsewhere = _under_protocols_of(request.like, [run for run in runs if run.id not in in_study])
    selection = select(
        counted,
        experiments, request.backbones, request.baseline, request.tasks,
    )  # fmt: skip
    store.fetch((cell.run for cells in selection.cells.values() for cell in cells), "per_image.npz")
    steps = len(selection.columns) * len(selection.backbones)
    start("per-image scores", steps)
    analysis = analyse(store, selection, resamples=request.resamples, advance=advance)
    start("figures and pictures", len(selection.columns) + 3)
    curves = drawing.training_curves(store, analysis, advance)
    tables = sections(analysis)
    if (experts := experts_table(analysis)) is not None:
        tables.append(experts)
    found = drawing.gain_against_cost(analysis), drawing.cost_parts(analysis)
    studies = []
    for name in sorted({run.tags[STUDY_TAG] for run in runs if run.tags.get(STUDY_TAG)}):
        study = build_study(name, [run for run in runs if run.tags.get(STUDY_TAG) == name], store)
        if study.complete:
            studies.append(_view(study))
    count = sum(len(cells) for cells in selection.cells.values())
    seeds = sorted({seed for seeds in selection.seeds.values() for seed in seeds})
    names = ", ".join(selection.backbones)
    tasks = {column.task for column in selection.columns}
    return Report(
        title=f"Comparison of backbones: {', '.join(experiments)}",
        subtitle=f"{names} · {len(tasks)} task{'s' if len(tasks) != 1 else ''} · seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))} · {count} finished task runs · {_now()}",
        verdict=verdict(analysis), store=hide_password(store.uri), date=_now(), made_by=_command(), ui_url=request.ui_url,
        resamples=request.resamples, analysis=analysis, power=power_lines(analysis), overview=overview(analysis), tables=tables,
        studies=studies,
        forest=drawing.forest(analysis), bars=drawing.task_bars(analysis),
        cost_figures=[figure for figure in found if figure is not None], curves=curves,
        galleries=galleries(store, analysis), provenance=provenance(store, selection), notes=[*caveats(analysis), *elsewhere],
        colours=drawing.colours(analysis),
    )  # fmt: skip


def _under_protocols_of(like: Sequence[str], runs: list[StoredRun]) -> tuple[list[StoredRun], list[str]]:
    """The runs without those under another protocol than ``like`` had, and what to tell of these."""
    wanted = {value for run in runs if run.id in like for tag, value in run.tags.items() if tag.startswith("protocol.")}
    if not wanted:
        return runs, []
    kept = [run for run in runs if run.tags.get("protocol", "") in {"", *wanted}]
    others = {run.tags["protocol"] for run in runs if run.tags.get("protocol")} - wanted
    told = f"Runs under {len(others)} other protocols are left out here; python -m benchmark report shows them."
    return kept, [told] if others else []


def _study_report(store: Store, request: Request) -> Report:
    assert request.study is not None
    study = find_study(store, request.study, request.experiments)
    view = _view(study)
    best = study.best(next(iter(study.directions)))
    lines = [f"{len(study.complete)} of {len(study.trials)} trials are finished."]
    if len(study.varied) > 1:
        lines.append(f"Varied: {', '.join(parameter_label(name) for name in study.varied)}.")
    notes = [note + "." for note in study.notes]
    notes.append(
        "Trials have one seed each; the winner and the base setting were run again on fresh seeds where the sweep was told to."
    )
    return Report(
        title=f"λ search: {study.name}",
        subtitle=f"{best.run.experiment if best else ''} · {len(study.trials)} trials · {_now()}",
        verdict=Verdict("open", view.headline, lines), store=hide_password(store.uri), date=_now(), made_by=_command(),
        ui_url=request.ui_url, study=True, studies=[view], notes=notes,
    )  # fmt: skip


def _view(study: Study) -> StudyView:
    names, rows = study_rows(study)
    return StudyView(study, study_headline(study), study_figures(study), names, rows)


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _command() -> str:
    words = sys.argv[1:]
    if "--tracking-uri" in words:  # it may hold a password
        place = words.index("--tracking-uri")
        words = words[:place] + words[place + 2 :]
    words = [word for word in words if not word.startswith("--tracking-uri")]
    return "python -m benchmark " + " ".join(words) if words and words[0] in ("report", "run", "sweep") else ""
