"""Commands that look: ``list`` names, ``show`` features of backbones, ``report`` a comparison of
results, ``results`` to share or check, ``ui`` of MLflow on the right store; and what several
commands print."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import Field, PositiveInt
from rich.text import Text

import benchmark.catalog  # noqa: F401 – registers datasets, probes, protocols and suites
from benchmark import unit
from benchmark.executor import EXECUTORS
from benchmark.options import (
    BackboneNames,
    FolderOptions,
    PluginOptions,
    TaskNames,
    TrackingOptions,
)
from benchmark.parser import (
    MAY_BE_EMPTY,
    ConfigOptions,
    JsonOptions,
    Positional,
    Positionals,
)
from benchmark.progress import console
from benchmark.suites import SUITES, choose_suite
from cliptex_common.errors import UserError, suggest
from cliptex_common.files import atomic_write
from cliptex_common.settings import (
    Folder,
    Label,
    Names,
    as_text,
    describe_type,
    matching,
    meanings,
    options_dataclass,
)
from probes.registry import DATASETS, PROBES, PROTOCOLS
from probes.registry import tasks as registered_tasks

if TYPE_CHECKING:
    from reports.records import Cell, ParentRun
    from reports.store import Store


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns that are as wide as their widest cell; the last one as it is."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        console.print("  ".join([*cells, row[-1]]))


def print_state(state: str, style: str, text: str, note: str = "") -> None:
    """Print a coloured state and text, and below the text a note."""
    console.print(Text(state, style=style).append(f" {text}", "default"))
    if note:
        console.print(" " * len(state), note)


Rows = list[tuple[str, str]]


@options_dataclass
class ListNames(JsonOptions, FolderOptions):
    """List backbones, tasks, suites, datasets, probes, protocols, recipes, experts or executors;
    with --data-root also the webdatasets there.

    examples:
      python -m benchmark list backbones dino
      python -m benchmark list tasks --limit 10 --json tasks.json
      python -m benchmark list settings voc/linear
      python -m benchmark list settings clip-ft
    """

    what: Positional[str]
    """backbones, tasks, settings (of a task, recipe or trained expert), suites, datasets, probes,
    protocols, recipes, experts, executors"""
    words: Positionals[Sequence[str]] = ()
    """only lines with these words; of `settings` the task, recipe or expert comes first"""
    limit: PositiveInt | None = None
    """only the first so many"""

    def main(self) -> int:
        """Print names and descriptions."""
        if self.what not in LISTS:
            raise UserError(f"cannot list {self.what!r}; {suggest(self.what, LISTS)}")
        self.check_root()
        words = [word.lower() for word in self.words]
        subject = self.words[: self.what == "settings"]
        rows = [
            row
            for row in LISTS[self.what](*subject)
            if all(word in " ".join(row).lower() for word in words[len(subject) :])
        ][: self.limit]
        if not self.output_json([{"name": name, "about": about} for name, about in rows]):
            print_table(rows or [(NOTHING,)])
        return 0


LIST_COMMAND = ListNames
NOTHING = "nothing; --plugin FILE.py adds what a plugin registers, --data-root DIR its wds_ folders"


def _backbones() -> Rows:
    """Named backbones, then families of names."""
    import backbones.registry  # noqa: F401 – registers them
    from backbones.registry import FAMILIES, find, names

    entries = map(find, names())
    rows = [(entry.name, f"{entry.about} [{entry.licence}]") for entry in entries]
    rows += [(family.pattern, family.about) for family in FAMILIES.load_entry_points().values()]
    return [*rows, ("random/NAME", "any of these, randomly initialised from the seed")]


def _tasks() -> Rows:
    """Kind, main metric and suites of each task: those that list it, or else accept it, as
    ``benchmark.suites.settings_in`` does."""
    suites = SUITES.load_entry_points().values()
    accepting: dict[str, list[str]] = {}  # dataset → suites that list tasks on it
    for suite in suites:
        for dataset in suite.datasets:
            accepting.setdefault(dataset, []).append(suite.name)
    own = [suite.name for suite in suites if suite.any_dataset]
    rows = []
    for task, (spec, probe) in registered_tasks().items():
        members = [suite.name for suite in suites if task in suite.tasks]
        names = ", ".join(members or accepting.get(spec.name, own))
        rows.append((task, f"{spec.kind}, {next(iter(probe.metrics))} [{names}]"))
    return rows


def _settings(task: str = "") -> Rows:
    """Default in the task's own suite, or in the recipe or the expert, type with range, and meaning
    of each setting."""
    from backbones.cliptex.experts.base import EXPERTS
    from backbones.cliptex.recipes import find_recipe, recipe_names
    from benchmark.tasks import plan_task

    if task in recipe_names():
        settings: Any = find_recipe(task)
    elif task in EXPERTS.descriptions():
        settings = _expert_settings(task)
    else:
        settings = plan_task(choose_suite([task]), task, {}).settings
    kind: Any = type(settings)
    hints, texts = get_type_hints(kind, include_extras=True), meanings(kind)
    rows = []
    for name, value in asdict(settings).items():
        default = "none" if value is None else as_text(name, value) or "none"
        rows.append((name, f"{default} ({describe_type(hints[name])}) {texts.get(name, '')}"))
    return rows


def _expert_settings(name: str) -> Any:
    """The default settings of an expert. Raises ``UserError`` if it is not trained here."""
    from backbones.cliptex.experts.base import EXPERTS

    settings_type = getattr(EXPERTS.find(name), "settings_type", None)
    if settings_type is None:
        raise UserError(f"expert {name} is not trained here and has no settings")
    return settings_type()


def _suites() -> Rows:
    """Named lists of tasks."""
    suites = SUITES.load_entry_points().values()
    return [(suite.name, f"{suite.about} [{len(suite.tasks)} tasks]") for suite in suites]


def _datasets() -> Rows:
    """Datasets that can be read; ``data check`` shows which are present."""
    specs = DATASETS.load_entry_points().values()
    return [(spec.name, f"{spec.kind}: {spec.about}") for spec in specs]


def _probes() -> Rows:
    """What is trained on, or computed from, a frozen backbone."""
    probes = PROBES.load_entry_points().values()
    return [(probe.name, f"for {probe.kind}: {', '.join(probe.metrics)}") for probe in probes]


def _protocols() -> Rows:
    """The source of each protocol, the settings it fixes, and its differences from the source."""
    rows = []
    for protocol in PROTOCOLS.load_entry_points().values():
        commit = f", at {protocol.commit}" if protocol.commit else ""
        rows.append((protocol.name, f"{protocol.source}{commit} (version {protocol.version})"))
        for preset in protocol.presets:
            settings = {**preset.settings, **preset.data, **preset.required}
            text = " ".join(f"{key}={_plain(value)}" for key, value in settings.items())
            datasets = f" ({', '.join(preset.datasets)})" if preset.datasets else ""
            rows.append((f"{protocol.name} {preset.probe}{datasets}", text))
        for probe, differences in protocol.differs.items():
            subject = f"{protocol.name} {probe}".strip()
            rows += [(f"{subject}, not here", text) for text in differences.values()]
    return rows


def _recipes() -> Rows:
    """How weights are trained, and the λ of each loss."""
    from backbones.cliptex.recipes import find_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe = find_recipe(name)
        weights = [f"λ {loss} {value:g}" for loss, value in recipe.loss_weights.items()]
        rows.append((name, f"{recipe.epochs:g} epochs, lr {recipe.lr:g}; {', '.join(weights)}"))
    return rows


def _experts() -> Rows:
    """Models that write pseudo-labels."""
    import probes.experts  # noqa: F401 – registers the expert that needs MMDetection
    from backbones.cliptex.experts.base import EXPERTS

    return sorted(EXPERTS.descriptions().items())


def _executors() -> Rows:
    """Where units of work can run."""
    return list(EXECUTORS.descriptions().items())


LISTS: dict[str, Callable[..., Rows]] = {
    "backbones": _backbones,
    "tasks": _tasks,
    "settings": _settings,
    "suites": _suites,
    "datasets": _datasets,
    "probes": _probes,
    "protocols": _protocols,
    "recipes": _recipes,
    "experts": _experts,
    "executors": _executors,
}


def _plain(value: Any) -> str:
    """A setting as ``--set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


@options_dataclass
class WriteReport(ConfigOptions, TrackingOptions, PluginOptions):
    """Compare the results in MLflow: a page, and tables for a paper.

    examples:
      python -m benchmark report --experiment paper --baseline clip-ft --out report/
      python -m benchmark report --backbone clip,clip-ft,cliptex --format html,latex
        --ui-url http://127.0.0.1:5000
      python -m benchmark report --pairs cliptex,clip-ft
    """

    experiment: Names = ()
    """MLflow experiments (default: the latest with results)"""
    backbones: BackboneNames = ()
    """only these, in this order (default: all); NAME@SHA selects weights by their sha256"""
    baseline: str | None = None
    """what the others are compared with (default: clip-ft, clip, random, or the first)"""
    tasks: TaskNames = ()
    """only these tasks; see `list tasks`"""
    shared: Annotated[Names, Field(alias="with")] = ()
    """results of others: files or folders of `results export`, URLs"""
    pairs: Names = ()
    """two backbones, as A,B: adds where they differ, image by image (repeatable)"""
    margin: Annotated[str, matching(r"(\d+(\.\d*)?%?)?", "give a number, as 0.5 or 2%")] = ""
    """also say where a backbone is no worse than the baseline by more than this: in the unit of
    each main metric, or with % of the baseline's number"""
    study: str | None = None
    """report on this λ sweep instead"""
    format: Names = ("html",)
    """html, md, csv, latex, methods (default: html)"""
    out: Folder = Path("report")
    """output folder"""
    ui_url: Annotated[
        str, matching("(https?://.+)?", "give an address that begins with http:// or https://")
    ] = ""
    """address of an MLflow UI: numbers then link to their runs"""

    def main(self) -> int:
        """Build and write the report; print its headline."""
        from benchmark.progress import Bar, console
        from reports.pages import FORMATS, write
        from reports.records import TrackingError
        from reports.report import ReportRequest, build_report

        if unknown := set(self.format) - set(FORMATS):
            raise TrackingError(f"--format {min(unknown)}: choose from {', '.join(FORMATS)}")
        if self.study and (self.backbones or self.tasks or self.baseline or self.pairs):
            raise TrackingError("--study excludes --backbone, --task, --baseline and --pairs")
        request = ReportRequest(
            experiments=self.experiment,
            baseline=self.baseline,
            backbones=self.backbones,
            tasks=self.tasks,
            study=self.study,
            shared=self.shared,
            pairs=self.pairs,
            margin=self.margin,
            tracking_uri=self.tracking_uri,
            ui_url=self.ui_url,
        )
        with Bar() as bar:
            report = build_report(request, bar.start, bar.advance)
            files = write(report, self.out, self.format)
        if not request.experiments and report.analysis is not None:
            experiments = ", ".join(report.analysis.selection.experiments)
            console.print(f"experiment {experiments}", style="dim")
        console.print(report.summary.headline, style="bold")
        for line in [*report.levels, *report.axes, *report.steps]:
            console.print(line)
        for note in report.notes:
            console.print(f"  note · {note}", style="dim")
        console.print(f"report: {', '.join(map(str, files))}")
        return 0


REPORT_COMMAND = WriteReport


Files = Annotated[Names, {"nargs": "+"}]


@options_dataclass
class ExportResults(TrackingOptions, PluginOptions):
    """Write the results of an experiment as one file for others, or its numbers for other tools.

    examples:
      python -m benchmark results export --experiment paper --out my-net.zip
      python -m benchmark report --experiment paper --with others/
      python -m benchmark results export --experiment paper --format hf-eval
        --hub voc=ORG/NAME --out hub/
    """

    experiment: Names = ()
    """MLflow experiments (default: the latest with results)"""
    backbones: BackboneNames = ()
    """only these (default: all)"""
    tasks: TaskNames = ()
    """only these tasks"""
    source: str = ""
    """who shares them, in a few words; reports show it"""
    format: Literal["zip", "csv", "parquet", "hf-eval", "model-index"] = "zip"
    """zip: with what intervals need; csv, parquet: a row for each number; hf-eval, model-index:
    files for the Hugging Face Hub, a folder for each backbone; nothing is uploaded"""
    hub: Mapping[str, str] = field(default_factory=dict)
    """for the Hub: the repository of a dataset, as voc=ORG/NAME (repeatable)"""
    out: Path | None = None
    """the file or folder to write (default: results.zip, .csv … or the folder results)"""

    def main(self) -> int:
        """Print what was written and what was left out."""
        one_file = self.format in ("zip", "csv", "parquet")
        if one_file and self.out and self.out.is_file() and self.out.suffix != f".{self.format}":
            raise UserError(f"--out {self.out} exists and is no .{self.format}; name another file")
        return self._write_shared() if self.format == "zip" else self._write_numbers()

    def _write_numbers(self) -> int:
        from benchmark.progress import Bar, console
        from cliptex_common.files import write_text
        from reports.pages import community_evaluations, csv_text, model_cards, numbers_frame
        from reports.report import ReportRequest, build_report

        request = ReportRequest(
            self.experiment,
            backbones=self.backbones,
            tasks=self.tasks,
            tracking_uri=self.tracking_uri,
        )
        with Bar() as bar:
            report = build_report(request, bar.start, bar.advance)
        if self.format in ("csv", "parquet"):
            frame = numbers_frame(report)
            path = self.out or Path(f"results.{self.format}")
            if self.format == "csv":
                write_text(path, csv_text(frame))
            else:
                with atomic_write(path) as part:
                    frame.to_parquet(part)
            console.print(f"{len(frame)} numbers: {path}")
            return 0
        datasets = {column.task.rpartition("/")[0] for column in report.columns}
        if absent := self.hub.keys() - datasets:
            raise UserError(
                f"--hub {', '.join(absent)}: no number is of it; datasets with numbers:"
                f" {', '.join(sorted(datasets))}"
            )
        write = community_evaluations if self.format == "hf-eval" else model_cards
        folder, files = self.out or Path("results"), write(report, self.hub)
        if not files:
            raise UserError(
                "an entry of hf-eval names the dataset's repository: give --hub DATASET=ORG/NAME"
            )
        for name, text in files.items():
            write_text(folder / name, text)
        console.print(f"{len(files)} files: {folder}")
        return 0

    def _write_shared(self) -> int:
        from benchmark.progress import console
        from reports.selection import default_experiments
        from reports.sharing import export_results
        from reports.store import Store
        from reports.tables import count

        store = Store(self.tracking_uri)
        experiments = self.experiment or default_experiments(store)
        path = self.out or Path("results.zip")
        written = export_results(store, experiments, path, self.backbones, self.tasks, self.source)
        for note in written.notes:
            console.print(f"  note · {note}", style="dim")
        names = ", ".join(written.backbones)
        size = path.stat().st_size / 1e6
        console.print(f"{count(written.cells, 'result')} of {names}: {path} ({size:.1f} MB)")
        return 0


@options_dataclass
class CheckResults(PluginOptions):
    """Verify files of shared results: checksums, identities, and every metric, computed again.

    examples:
      python -m benchmark results check my-net.zip others/
    """

    files: Files
    """files or folders of `results export`, URLs"""

    def main(self) -> int:
        """Exit code 2 with the reason if a file is refused."""
        from benchmark.progress import console
        from benchmark.unit import threads
        from reports.records import shortened_notes
        from reports.selection import column_runs
        from reports.sharing import check_results, load_files, read_files
        from reports.tables import count

        for results in read_files(load_files(self.files)):
            with threads(1):  # several spend twice the time on products as small as these
                scores = check_results(results)
            cells, *_ = column_runs([*results.cells, *results.parents.values()])
            names = {cell.backbone for cell in cells}
            console.print(
                f"{results.title}: {count(len(scores), 'result')} of"
                f" {count(len(names), 'backbone')} agree{'s' * (len(scores) == 1)} with the"
                " per-image scores"
            )
            for note in (*results.notes, *shortened_notes(results.cells)):
                console.print(f"  note · {note}", style="dim")
        return 0


@options_dataclass
class LeaderboardPage(PluginOptions):
    """Write a leaderboard of shared results: one page that needs no server and no network.

    examples:
      python -m benchmark results page results/ --out site/
    """

    files: Files
    """files or folders of `results export`, URLs"""
    out: Folder = Path("site")
    """output folder"""
    title: str = "Leaderboard of frozen vision backbones"
    """heading of the page"""

    def main(self) -> int:
        """Exit code 2 with the reason if a file is refused; nothing is written then."""
        from benchmark.progress import Bar, console
        from benchmark.unit import threads
        from cliptex_common.files import write_text
        from reports.leaderboard import build_leaderboard, render_leaderboard
        from reports.sharing import load_files
        from reports.tables import count

        files = load_files(self.files)
        with Bar() as bar, threads(1):
            board = build_leaderboard(files, bar.start, bar.advance)
        for note in board.notes:
            console.print(f"  note · {note}", style="dim")
        selection = board.analysis.selection
        tasks = {column.task for column in selection.columns}
        sizes = {"backbone": selection.backbones, "task": tasks, "file": files}
        about = ", ".join(count(len(each), name) for name, each in sizes.items())
        path = self.out / "index.html"
        write_text(path, render_leaderboard(board, self.title, about))
        console.print(f"{about}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
        return 0


@options_dataclass
class ListResults(TrackingOptions):
    """List the runs of an experiment: backbone, seed, status, MLflow id; tasks and what --set
    changed in them; weights, settings of the weights' training, and tags.

    examples:
      python -m benchmark results list --experiment paper
    """

    experiment: Names = ()
    """MLflow experiments (default: the latest with results)"""

    def main(self) -> int:
        """Print a line for each run, by the names of columns."""
        from reports.tables import count

        store, cells, parents, experiments = _runs(self.tracking_uri, self.experiment)
        hint = "" if parents else " has no run of a backbone yet; name another --experiment"
        console.print(f"experiment {', '.join(experiments)}{hint}")
        others = [name for name in store.experiments() if name not in (*experiments, "Default")]
        if others and not self.experiment:
            console.print(f"others, by --experiment: {shorten(', '.join(others), 300)}")
        rows = []
        for run in sorted(parents, key=_by_step):
            own = [cell for cell in cells if cell.parent == run.run_id]
            tasks = [*dict.fromkeys(cell.task for cell in own)]
            listed = ", ".join(tasks) if len(tasks) <= LISTED_TASKS else count(len(tasks), "task")
            changes = dict.fromkeys(cell.changed for cell in own)
            tags = [f"{name}={value}" for name, value in run.own_tags.items()]
            if run.label not in ("", run.backbone):  # a newer run of the same weights has another
                tags.insert(0, f"labelled {run.label} then")
            about = filter(None, [listed, *changes, run.weights_source, run.settings, *tags])
            row = (run.backbone, f"seed {run.seed}", run.status, run.run_id, " · ".join(about))
            rows.append(row)
        print_table(rows)
        return 0


LISTED_TASKS = 3  # more are only counted


def _by_step(run: ParentRun) -> tuple[Any, ...]:
    """The order of a list of runs: checkpoints of a training by their steps."""
    from reports.selection import AT_STEP

    match = AT_STEP.fullmatch(run.backbone)
    return (*((match[1], int(match[2])) if match else (run.backbone, 0)), run.seed, run.started)


@options_dataclass
class LabelResults(TrackingOptions):
    """Change the label of a backbone, the name of its column; its numbers and identities stay.

    examples:
      python -m benchmark results label cliptex@3e8413f7 'longer training'
    """

    old: Positional[str]
    """its column, as reports name it, the name of a training whose checkpoints are columns, or the
    id of a run (`results list`)"""
    new: Annotated[Positional[Label], MAY_BE_EMPTY]
    """its new label, without commas; '' for the backbone's own name"""
    experiment: Names = ()
    """MLflow experiments (default: the latest with results)"""

    def main(self) -> int:
        """Set the tag of its runs."""
        from reports.selection import AT_STEP
        from reports.store import set_naming_tags
        from reports.tables import count

        store, _, parents, experiments = _runs(self.tracking_uri, self.experiment)
        columns = {run.run_id: run.backbone for run in parents}
        column = columns.get(self.old, self.old)
        labels = {run_id: self.new for run_id, name in columns.items() if name == column}
        steps = {run_id: AT_STEP.fullmatch(name) for run_id, name in columns.items()}
        labels |= {
            run_id: self.new and f"{self.new} step {match[2]}"
            for run_id, match in steps.items()
            if match and match[1] == column
        }
        others = {name for run_id, name in columns.items() if run_id not in labels}
        names = others | {match[1] for match in steps.values() if match}
        searched = ", ".join(experiments)
        if not labels:
            raise UserError(
                f"no backbone or run {self.old!r} has results in experiment {searched};"
                f" name another --experiment; {suggest(self.old, names)}"
            )
        if taken := others.intersection(labels.values()):
            raise UserError(
                f"{min(taken)!r} is the name of other results in experiment {searched}; give"
                " another"
            )
        for run in parents:
            if run.run_id in labels:
                set_naming_tags(store.client, run, {"label": labels[run.run_id]})
        _, _, parents, _ = _runs(self.tracking_uri, self.experiment)
        renamed = dict.fromkeys(run.backbone for run in parents if run.run_id in labels)
        new = self.new or ", ".join(renamed)
        console.print(f"{column} is {new} now, in {count(len(labels), 'run')}")
        if (match := AT_STEP.fullmatch(column)) and not AT_STEP.fullmatch(self.new):
            console.print(f"it has left the curve of {match[1]}, whose names end in 'step N'")
        return 0


def _runs(
    uri: str | None, experiments: Sequence[str]
) -> tuple[Store, list[Cell], list[ParentRun], list[str]]:
    """The store, cells and parent runs under the names of their columns, and the experiments that
    they are of."""
    from reports.selection import column_runs, default_experiments, without_studies
    from reports.store import Store

    store = Store(uri)
    names = list(experiments) or default_experiments(store)
    cells, parents, *_ = column_runs(without_studies(store.runs(names)))
    return store, cells, parents, names


RESULTS_COMMAND = {
    "export": ExportResults,
    "check": CheckResults,
    "page": LeaderboardPage,
    "list": ListResults,
    "label": LabelResults,
}


MAPS_BUDGET = 4_000_000  # bytes of feature maps in a page


@options_dataclass
class ShowFeatures(ConfigOptions, PluginOptions):
    """Draw the features of backbones: principal components, and the likeness of parts of images.

    examples:
      python -m benchmark show --backbone dinov2-b14,clip --images photos/ --out features/
      python -m benchmark show --backbone cliptex --weights mine.safetensors --images photos/
        --size 448
    """

    backbones: BackboneNames
    """backbones; see `list backbones`"""
    images: Folder
    """folder of images; of many, evenly spaced ones are drawn"""
    weights: Path | None = None
    """checkpoint of the backbone"""
    layer: PositiveInt | None = None
    """number of the layer that is drawn (default: the last map)"""
    size: Annotated[int, Field(ge=1, le=8192)] | None = None
    """side in pixels of the square that the backbones see (default: their own size)"""
    device: str = "auto"
    """auto, cpu, or an accelerator as torch names it, perhaps with its number"""
    out: Folder = Path("features")
    """output folder"""

    def main(self) -> int:
        """Write the page; print its path."""
        import backbones
        from benchmark.executor import choose_device
        from benchmark.progress import console
        from cliptex_common.device import float32_products
        from cliptex_common.images import spread_indices
        from probes.base import EncodeContext
        from probes.datasets.base import IMAGE_SUFFIXES, walk_images
        from probes.pictures import PICTURED_IMAGES, feature_pictures
        from reports.pages import write
        from reports.pictures import make_feature_pictures
        from reports.report import Report
        from reports.summary import Summary

        if self.weights and len(self.backbones) != 1:
            raise UserError(f"--weights applies to one backbone, not to {len(self.backbones)}")
        files = [self.images / name for name in walk_images(self.images, ".")]
        if not files:
            raise UserError(f"--images {self.images}: no {', '.join(IMAGE_SUFFIXES)} file")
        paths = [files[index] for index in spread_indices(len(files), PICTURED_IMAGES)]
        context = EncodeContext(choose_device(self.device), num_workers=0)
        size = (self.size, self.size) if self.size else None
        layers = [self.layer] if self.layer else []
        features = {}
        with float32_products(tf32=False):
            for name in self.backbones:
                backbone = backbones.create(name, weights=self.weights, layers=layers).to(
                    context.device
                )
                features[name] = feature_pictures(context, backbone, paths, self.images, size)
        about = f"{len(paths)} of {len(files)} images of {self.images}"
        report = Report(
            "Features of backbones",
            ", ".join(self.backbones),
            Summary("open", f"{', '.join(self.backbones)} on {about}", []),
            store=str(self.images),
            features=make_feature_pictures(about, features, MAPS_BUDGET),
        )
        console.print(f"page: {write(report, self.out)[0]}")
        return 0


SHOW_COMMAND = ShowFeatures


@options_dataclass
class Ui(TrackingOptions):
    """Open MLflow's own UI on the right store.

    examples:
      python -m benchmark ui --experiment paper
      python -m benchmark ui --tracking-uri sqlite:////data/mlflow.db --port 5001
    """

    port: Annotated[int, Field(ge=1, le=65535)] = 5000
    """port of the UI"""
    experiment: str | None = None
    """MLflow experiment (default: as for `report`)"""

    def main(self) -> int:
        """Run ``mlflow ui`` until it is interrupted, or print the address of a server."""
        from benchmark.progress import console
        from cliptex_common.errors import HIDDEN, hide_secrets
        from reports.records import TrackingError
        from reports.store import open_mlflow, tracking_uri

        uri = tracking_uri(self.tracking_uri)
        open_mlflow(uri)  # creates or migrates a database, and reports a bad one
        if uri.startswith(("http://", "https://")):
            server = hide_secrets(uri).replace(f"{HIDDEN}@", "")  # the browser asks for the login
            link = _link(server, uri, self.experiment)
            console.print(f"the store is a server with its own UI: open {link}")
            return 0
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise TrackingError(f"port {self.port} is in use; choose another with --port")
        link = _link(f"http://127.0.0.1:{self.port}", uri, self.experiment)
        console.print(f"MLflow on {hide_secrets(uri)}: open {link} (Ctrl-C ends it)")
        command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1"]
        environment = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for judges of LLMs
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": uri,  # everybody on this machine sees arguments
        }
        server_process = subprocess.Popen([*command, "--port", str(self.port)], env=environment)
        try:
            return server_process.wait()
        except KeyboardInterrupt:
            server_process.terminate()
            server_process.wait()
            unit.handle_signals()  # Ctrl-C is how it ends
            return 0


UI_COMMAND = Ui


def _link(ui: str, uri: str, experiment: str | None) -> str:
    """The list of an experiment's runs; MLflow opens an experiment on its language-model view."""
    from reports.records import TrackingError
    from reports.selection import default_experiments
    from reports.store import Store, save_view, view_link

    store = Store(uri)
    try:
        (name,) = [experiment] if experiment else default_experiments(store)
    except TrackingError:  # no results yet
        return ui
    identity = store.experiment_ids([name])[name]
    save_view(store.client, identity)
    return view_link(ui, identity)
