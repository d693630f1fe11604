"""The comparison report: everything that its page and its tables show."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import pandas as pd

from cliptex_common.errors import hide_secrets
from reports.by_image import DifferenceSection, check_pairs, where_they_differ
from reports.comparison import Analysis, analyse
from reports.figures import (
    Figure,
    Style,
    backbone_styles,
    forest,
    profile,
    reliability,
    task_bars,
    training_curves,
)
from reports.pictures import (
    GALLERY_BUDGET,
    FeaturePictures,
    Gallery,
    galleries,
    read_feature_pictures,
)
from reports.provenance import Provenance, collect_provenance
from reports.published.table import PublishedRow, compare_published
from reports.records import Cell, ParentRun, Record, TrackingError
from reports.relations import (
    Diagnostics,
    axis_figures,
    best_values,
    collect_diagnostics,
    cost_frame,
    costs_of_backbones,
    diagnostics_figures,
    mode_changes,
)
from reports.selection import (
    Selection,
    TaskColumn,
    default_experiments,
    select,
    shown_runs,
    without_studies,
)
from reports.sharing import load_files, read_shared
from reports.store import UNREADABLE, Store
from reports.studies import Study, find_studies, find_study
from reports.summary import (
    Summary,
    average_lines,
    caveats,
    level_lines,
    margin_lines,
    power_lines,
    summarise,
)
from reports.tables import (
    ClassTable,
    Number,
    PairGain,
    ResultTable,
    all_pairs,
    class_tables,
    count,
    experts_table,
    judge_pairs,
    overview,
    sections,
)
from reports.tiers import tier_figures, tier_lines
from reports.trainings import (
    head_curves,
    head_figures,
    settings_at_edge,
    short_trainings,
    step_figures,
    step_lines,
)


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _command() -> str:
    """The command of this process, without secrets."""
    words = sys.argv[1:]
    tracked = words and words[0] in ("report", "run", "show", "sweep")
    return hide_secrets(f"python -m benchmark {' '.join(words)}") if tracked else ""


@dataclass
class Report:
    """The content of the page. ``analysis`` is None in the report of a study alone.

    Attributes:
        axes: the best values of settings, a sentence each; steps: what scores of checkpoints do;
            tiers: whether the frozen order holds when the backbones are tuned; levels: mean gains
            over the tasks of each level.
        mode_changes: where features change mode between sizes; in ``notes``, too.
        costs: of backbones (``reports.relations.cost_frame``).
        figures: by part of the page.
    """

    title: str
    subtitle: str
    summary: Summary
    store: str
    ui_url: str = ""
    analysis: Analysis | None = None
    overview: ResultTable | None = None
    tables: list[ResultTable] = field(default_factory=list)
    classes: list[ClassTable] = field(default_factory=list)
    pairs: dict[tuple[str, str], PairGain] = field(default_factory=dict)
    costs: pd.DataFrame = field(default_factory=pd.DataFrame)
    published: list[PublishedRow] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    differences: list[DifferenceSection] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    features: FeaturePictures | None = None
    diagnostics: list[Diagnostics] = field(default_factory=list)
    provenance: Provenance | None = None
    notes: list[str] = field(default_factory=list)
    power: list[str] = field(default_factory=list)
    averages: list[str] = field(default_factory=list)
    axes: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    tiers: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    mode_changes: list[str] = field(default_factory=list)
    styles: dict[str, Style] = field(default_factory=dict)
    date: str = field(default_factory=_now)
    command: str = field(default_factory=_command)

    @property
    def baseline(self) -> str:
        return self.analysis.selection.baseline if self.analysis else ""

    @property
    def backbones(self) -> list[str]:
        return self.analysis.selection.backbones if self.analysis else []

    @property
    def columns(self) -> list[TaskColumn]:
        return self.analysis.selection.columns if self.analysis else []

    def numbers(self) -> dict[tuple[str, str, str], Number]:
        """(backbone, task, metric) → the number of the detailed tables."""
        return {
            (number.backbone, number.task, number.metric): number
            for table in self.tables
            for number in table.numbers
        }

    def all_figures(self) -> list[Figure]:
        """Every figure of the page."""
        groups = [*self.figures.values(), *(study.figures for study in self.studies)]
        return list(chain.from_iterable(groups))


@dataclass(frozen=True)
class ReportRequest:
    """The subject of a report; see ``python -m benchmark report --help``.

    Attributes:
        shared: files, folders or URLs of results that others shared.
        pairs: backbones that are compared image by image: the first with the second, and so on.
        margin: see ``reports.comparison.Analysis``.
        like_runs: ids of parent runs and of cells: only numbers under the protocols of these
            parents and, of their backbones, only these cells. Default: all.
    """

    experiments: Sequence[str] = ()
    baseline: str | None = None
    backbones: Sequence[str] = ()
    tasks: Sequence[str] = ()
    study: str | None = None
    tracking_uri: str | None = None
    ui_url: str = ""
    like_runs: Sequence[str] = ()
    shared: Sequence[str] = ()
    pairs: Sequence[str] = ()
    margin: str = ""


def build_report(
    request: ReportRequest,
    start: Callable[[str, int], None] = lambda step, total: None,
    advance: Callable[[], None] = lambda: None,
) -> Report:
    """Read the store and compute the report.

    Args:
        start, advance: a progress bar.

    Raises:
        TrackingError: nothing to report on, an unknown name, an unusable store, or a damaged
            artifact.
    """
    store = Store(request.tracking_uri)
    if request.study:
        return _study_report(store, request, request.study)
    runs, selection, notes = select_runs(store, request)
    if request.pairs:
        check_pairs(selection, request.pairs)
    start("per-image scores", len(selection.columns) * len(selection.backbones))
    analysis = analyse(store, selection, advance, request.margin)
    changes = mode_changes(store, analysis)
    judgements, provenance = judge_pairs(analysis), collect_provenance(store, selection)
    costs, diagnostics = cost_frame(analysis, provenance), collect_diagnostics(analysis)
    heads, styles = head_curves(store, analysis), backbone_styles(analysis)
    budget = GALLERY_BUDGET // (2 if request.pairs else 1)  # those of pairs take the other half
    pictures, without_pictures = galleries(store, analysis, budget)
    seeds = sorted(set().union(*selection.seeds.values()))
    subtitle = [
        ", ".join(selection.backbones),
        count(len({column.base for column in selection.columns}), "task"),
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        f"{sum(map(len, selection.cells.values()))} finished task runs",
    ]
    return Report(
        f"Comparison of backbones: {', '.join(selection.experiments)}",
        " · ".join(subtitle),
        summarise(analysis),
        store=hide_secrets(store.uri),
        ui_url=request.ui_url,
        analysis=analysis,
        power=power_lines(analysis),
        averages=[*margin_lines(analysis), *average_lines(analysis)],
        levels=level_lines(analysis),
        axes=list(best_values(analysis)),
        steps=step_lines(analysis),
        tiers=tier_lines(analysis, dict(provenance.protocols)),
        mode_changes=changes,
        overview=overview(analysis),
        tables=[*sections(analysis), *filter(None, [experts_table(analysis)])],
        classes=class_tables(analysis),
        pairs=all_pairs(judgements),
        costs=costs,
        published=compare_published(analysis),
        studies=find_studies(store, runs),
        figures={
            "forest": forest(analysis),
            "bars": task_bars(analysis),
            "reliability": reliability(store, analysis),
            "axes": axis_figures(analysis),
            "levels": profile(analysis),
            "tiers": tier_figures(analysis, dict(provenance.protocols)),
            "steps": step_figures(analysis),
            "costs": costs_of_backbones(analysis, judgements, costs),
            "diagnostics": diagnostics_figures(analysis, diagnostics),
            "curves": training_curves(store, analysis),
            "heads": head_figures(heads, styles),
        },
        differences=where_they_differ(store, selection, request.pairs, notes)
        if request.pairs
        else [],
        galleries=pictures,
        features=read_feature_pictures(store, analysis),
        diagnostics=diagnostics,
        provenance=provenance,
        notes=[
            *changes,
            *caveats(analysis),
            *short_trainings(heads),
            *settings_at_edge(analysis),
            *notes,
            *without_pictures,
        ],
        styles=styles,
    )


def select_runs(store: Store, request: ReportRequest) -> tuple[list[Record], Selection, list[str]]:
    """All runs of a request's experiments, what of them counts, and notes for its reader."""
    experiments = list(request.experiments) or default_experiments(store)
    runs = store.runs(experiments)
    requested = [*request.backbones, *filter(None, [request.baseline])]
    counted, notes = _like_runs(request.like_runs, shown_runs(without_studies(runs), requested))
    for run in runs:
        if run.status == UNREADABLE:
            notes.append(f"Run {run.run_id} ({run.name}) is left out: {run.reason}.")
    if request.shared:
        shared, about_shared = read_shared(load_files(request.shared), counted, store)
        counted, notes = [*counted, *shared], [*notes, *about_shared]
    studies = sorted({run.study for run in runs if run.study})
    if studies and not any(isinstance(run, Cell) for run in counted):
        raise TrackingError(
            f"experiment {', '.join(experiments)} has the trials of a sweep alone; `report --study"
            f" {studies[0]}` shows them"
        )
    selection = select(counted, experiments, request.backbones, request.baseline, request.tasks)
    return runs, selection, notes


def _like_runs(ids: Sequence[str], runs: list[Record]) -> tuple[list[Record], list[str]]:
    """The runs with the protocols of the parent runs among ``ids`` and, of their backbones, the
    cells among them with their networks; notes about the others.

    So a page that is attached to a run agrees with that run.
    """
    protocols: set[str] = set()
    networks: set[tuple[str, int, str, str]] = set()
    for run in runs:
        if isinstance(run, ParentRun) and run.run_id in ids:
            protocols.update(run.protocols.values())
            networks.add((run.backbone, run.seed, run.weights, run.network))
    if not protocols:
        return runs, []
    backbones = {name for name, *_ in networks}
    same: list[Record] = []
    other_protocols: set[str] = set()
    subjects = []
    for run in runs:
        has_protocol = not isinstance(run, Cell) or run.protocol in protocols
        is_same = True
        if isinstance(run, Cell | ParentRun) and run.backbone in backbones:
            is_same = (run.backbone, run.seed, run.weights, run.network) in networks
            if isinstance(run, Cell) and run.is_finished and has_protocol:
                is_same = run.run_id in ids
            if isinstance(run, Cell) and is_same and not has_protocol:
                other_protocols.add(run.protocol)
        if not is_same:
            subjects = ["Runs of other weights or seeds under the same names"]
        elif has_protocol:
            same.append(run)
    if other_protocols:
        subjects.insert(0, f"Runs under {count(len(other_protocols), 'other protocol')}")
    ending = "are left out here; python -m benchmark report shows them."
    return same, [f"{subject} {ending}" for subject in subjects]


def _study_report(store: Store, request: ReportRequest, name: str) -> Report:
    study = find_study(store, name, request.experiments)
    lines = [f"{len(study.complete)} of {len(study.trials)} trials are finished."]
    return Report(
        f"λ search: {study.name}",
        f"{study.parent.experiment} · {len(study.trials)} trials",
        Summary("open", study.headline, lines),
        store=hide_secrets(store.uri),
        ui_url=request.ui_url,
        studies=[study],
        notes=[
            *(f"{note}." for note in study.notes),
            "Each trial has one seed. The best trial and the base, the recipe's own setting, run"
            " again on as many fresh seeds as --confirm says.",
        ],
    )
