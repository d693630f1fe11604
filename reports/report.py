"""The comparison report: everything that its page and its tables say, put together."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.secrets import hide_secrets
from reports.analysis import Analysis, analyse
from reports.mlflow.query import Store, StoredRun
from reports.parts import figures as drawing
from reports.parts.average import average_lines
from reports.parts.caveats import caveats
from reports.parts.classes import ClassTable, class_tables
from reports.parts.figures import Figure, Look
from reports.parts.gallery import Gallery, galleries
from reports.parts.learning import learning_curves
from reports.parts.pairs import Pair, all_pairs
from reports.parts.provenance import Provenance, provenance
from reports.parts.published import Published, published
from reports.parts.study import STUDY_TAG, Study, build_study, find_study, parameter_label
from reports.parts.tables import Table, count, experts_table, overview, sections
from reports.parts.verdict import Verdict, power_lines, verdict
from reports.selection import TaskProtocol, default_experiments, select
from reports.stats.resampling import RESAMPLES


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
    classes: list[ClassTable] = field(default_factory=list)
    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    published: list[Published] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    forest: Figure | None = None
    bars: list[Figure] = field(default_factory=list)
    cost_figures: list[Figure] = field(default_factory=list)
    curves: list[Figure] = field(default_factory=list)
    learning: list[Figure] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    provenance: Provenance | None = None
    notes: list[str] = field(default_factory=list)
    power: list[str] = field(default_factory=list)
    averages: list[str] = field(default_factory=list)
    looks: dict[str, Look] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        return self.analysis.selection.baseline if self.analysis else ""

    @property
    def backbones(self) -> list[str]:
        return self.analysis.selection.backbones if self.analysis else []

    @property
    def columns(self) -> list[TaskProtocol]:
        return self.analysis.selection.columns if self.analysis else []

    def figures(self) -> list[Figure]:
        """Every figure of the page."""
        own = [self.forest] if self.forest else []
        return [
            *own,
            *self.bars,
            *self.learning,
            *self.cost_figures,
            *self.curves,
            *(f for study in self.studies for f in study.figures),
        ]

    def sections(self) -> list[tuple[str, str]]:
        """(anchor, title) of what there is."""
        found = [("verdict", "Verdict")]
        found += [("glance", "At a glance"), ("tables", "Tables")] if self.overview else []
        found += [("pairs", "All pairs")] if self.pairs else []
        found += [("published", "Published")] if self.published else []
        found += [(f"study-{place + 1}", "λ search") for place, _ in enumerate(self.studies)]
        found += [("figures", "Figures")] if self.bars or self.cost_figures or self.curves else []
        found += [("gallery", "Gallery")] if self.galleries else []
        return [*found, ("provenance", "Provenance")]

    def decided(self, column: TaskProtocol) -> bool:
        """Whether some backbone wins or loses there."""
        assert self.analysis is not None
        return any(self.analysis.verdict(b, column) in ("win", "loss") for b in self.backbones)


@dataclass(frozen=True)
class Request:
    """What a report shall be about; see ``python -m benchmark report --help``.

    Attributes:
        like: ids of parent runs: only numbers of the protocols that these ran under and, of their
            backbones and seeds, of their weights. Default: all.
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
    request: Request,
    start: Callable[[str, int], None] | None = None,
    advance: Callable[[], None] | None = None,
) -> Report:
    """Read the store and work everything out.

    Args:
        start, advance: a progress bar.

    Raises:
        TrackingError: nothing to report on, an unknown name, an unusable store, or a damaged
            artifact.
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
        in_study |= (
            more  # a trial's tasks are compared with other trials, not with finished backbones
        )
    counted, elsewhere = _as_in(request.like, [run for run in runs if run.id not in in_study])
    selection = select(counted, experiments, request.backbones, request.baseline, request.tasks)
    store.fetch((cell.run for cells in selection.cells.values() for cell in cells), "per_image.npz")
    start("per-image scores", len(selection.columns) * len(selection.backbones))
    analysis = analyse(store, selection, resamples=request.resamples, advance=advance)
    start("figures and pictures", len(selection.columns) + 3)
    curves = drawing.training_curves(store, analysis, advance)
    studies = [
        build_study(name, [run for run in runs if run.tags.get(STUDY_TAG) == name], store)
        for name in sorted({run.tags[STUDY_TAG] for run in runs if run.tags.get(STUDY_TAG)})
    ]
    seeds = sorted({seed for seeds in selection.seeds.values() for seed in seeds})
    facts = [
        ", ".join(selection.backbones),
        count(len({column.base for column in selection.columns}), "task"),
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        f"{sum(map(len, selection.cells.values()))} finished task runs",
        _now(),
    ]
    figures = drawing.gain_against_cost(analysis), drawing.cost_parts(analysis)
    return Report(
        f"Comparison of backbones: {', '.join(experiments)}",
        " · ".join(facts),
        verdict(analysis),
        store=hide_secrets(store.uri),
        date=_now(),
        made_by=_command(),
        ui_url=request.ui_url,
        resamples=request.resamples,
        analysis=analysis,
        power=power_lines(analysis),
        averages=average_lines(analysis),
        overview=overview(analysis),
        tables=[*sections(analysis), *filter(None, [experts_table(analysis)])],
        classes=class_tables(analysis),
        pairs=all_pairs(analysis),
        published=published(analysis),
        studies=[study for study in studies if study.complete],
        forest=drawing.forest(analysis),
        bars=drawing.task_bars(analysis),
        cost_figures=list(filter(None, figures)),
        learning=learning_curves(analysis),
        curves=curves,
        galleries=galleries(store, analysis),
        provenance=provenance(store, selection),
        notes=[*caveats(analysis), *elsewhere],
        looks=drawing.looks(analysis),
    )


def _as_in(like: Sequence[str], runs: list[StoredRun]) -> tuple[list[StoredRun], list[str]]:
    """The runs without those under another protocol than ``like`` had, or of other weights, and
    what to tell of these: a page attached to a run says what the run itself said."""
    wanted = {
        value
        for run in runs
        if run.id in like
        for tag, value in run.tags.items()
        if tag.startswith("protocol.")
    }
    weights = {_who(run): run.tags.get("weights.sha256") for run in runs if run.id in like}
    if not wanted:
        return runs, []
    same = [
        run
        for run in runs
        if (sha := run.tags.get("weights.sha256")) is None or weights.get(_who(run), sha) == sha
    ]
    kept = [run for run in same if run.tags.get("protocol", "") in {"", *wanted}]
    others = {run.tags["protocol"] for run in same if run.tags.get("protocol")} - wanted
    told = (
        [f"Runs under {count(len(others), 'other protocol')} are left out here"] if others else []
    )
    told += (
        ["Runs of other weights under the same names are left out here"]
        if len(same) < len(runs)
        else []
    )
    return kept, [f"{one}; python -m benchmark report shows them." for one in told]


def _who(run: StoredRun) -> tuple[str, str]:
    return run.tags.get("backbone", ""), run.tags.get("seed", "")


def _study_report(store: Store, request: Request) -> Report:
    assert request.study is not None
    study = find_study(store, request.study, request.experiments)
    best = study.best(next(iter(study.directions)))
    lines = [f"{len(study.complete)} of {len(study.trials)} trials are finished."]
    if len(study.varied) > 1:
        lines.append(f"Varied: {', '.join(parameter_label(name) for name in study.varied)}.")
    again = (
        "Trials have one seed each; winner and base setting were run again on fresh seeds where the"
        " sweep was told to."
    )
    return Report(
        f"λ search: {study.name}",
        f"{best.run.experiment if best else ''} · {len(study.trials)} trials · {_now()}",
        Verdict("open", study.headline, lines),
        store=hide_secrets(store.uri),
        date=_now(),
        made_by=_command(),
        ui_url=request.ui_url,
        study=True,
        studies=[study],
        notes=[*(f"{note}." for note in study.notes), again],
    )


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _command() -> str:
    words = sys.argv[1:]
    if "--tracking-uri" in words:  # it may hold a password
        place = words.index("--tracking-uri")
        words = words[:place] + words[place + 2 :]
    words = [word for word in words if not word.startswith("--tracking-uri")]
    return (
        "python -m benchmark " + " ".join(words)
        if words and words[0] in ("report", "run", "sweep")
        else ""
    )
