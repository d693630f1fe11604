"""Published numbers beside those of the report.

``numbers.csv`` has a row for each number that was read in its source; ``sources.csv`` says where
that is, under which licence and protocol, and what was left out; ``models.csv`` has the names of
this suite that load a source's weights, where the source has other names, and none where it cannot
load them; ``costs.csv`` has what architectures cost, ``seeds.csv`` how scores vary with the seed.

``read_source`` reads the rows of some sources again from a checkout, and says what has changed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from io import StringIO
from pathlib import Path
from statistics import median, stdev
from typing import Any, NamedTuple

from cliptex_common.errors import UserError
from cliptex_common.files import write_text
from reports.comparison import Analysis
from reports.records import Cell
from reports.tables import decimal, with_interval

FOLDER = Path(__file__).parent
# of the sources' own classifiers, which this suite does not train
OWN_HEAD = "own-head"
COST = "cost"  # in place of a task, of the rows of ``costs.csv``
# in place of a model, of the rows of ``seeds.csv``: standard deviations over ``SEEDS`` seeds of a
# backbone, of which half of the source's backbones have less
DEVIATION, SEEDS = "deviation", 5
LOWER_IS_BETTER = (  # of the metrics in the table
    "rmse",
    "abs_rel",
    "normal_image_mean",
    "normal_image_rmse",
    "angle",
    "rotation_error",
    "translation_error",
)


@dataclass(frozen=True)
class PublishedNumber:
    """A number as its source has it.

    Attributes:
        model: the source's name of the weights.
        backbones: names in this suite that load them; none if it cannot.
        architecture: that a backbone of this name must have, since a name may stand for a file of
            other weights; empty if any.
        task: of this suite; empty for a statement about the backbone as such.
        metric: its name here, or the statement.
        value: in the metric's unit.
        digits: as the source writes it, after the point.
        source: key in ``sources.csv``; title, url: of the file at its commit.
        licence: of the source; empty where none is stated.
        protocol: a phrase.
        preset: that follows the source's code; empty where there is none.
        differs: known differences that the preset cannot remove.
        loader: beginning of the name in this suite that loads the weights as the source does.
    """

    model: str
    backbones: tuple[str, ...]
    architecture: str
    task: str
    metric: str
    value: float
    digits: int
    source: str
    title: str
    url: str
    licence: str
    protocol: str
    preset: str
    differs: str
    loader: str = ""

    @property
    def direction(self) -> int:
        """1 where higher is better, else -1."""
        return -1 if self.metric in LOWER_IS_BETTER else 1


@dataclass(frozen=True)
class PublishedRow:
    """A published number beside ours.

    Attributes:
        ours: as text with its interval; empty where the report has no number.
        differs: "same protocol", or the known differences.
    """

    backbone: str
    task: str
    ours: str
    differs: str
    number: PublishedNumber


@cache
def published_numbers(backbones: frozenset[str] | None = None) -> tuple[PublishedNumber, ...]:
    """The numbers of the weights of ``backbones`` (names without a size); None: every number."""
    sources = {row["source"]: row for row in read_rows("sources")}
    models = {row["model"]: row for row in read_rows("models")}
    about = ("source", "title", "url", "licence", "protocol", "preset", "differs", "loader")
    numbers = []
    for row in read_rows("numbers"):
        source, model = sources[row["source"]], row["model"]
        # timm's have the size of the images behind their name
        names = models.get(model, {"names": model.partition("@")[0], "architecture": ""})
        if backbones is not None and backbones.isdisjoint(names["names"].split()):
            continue
        numbers.append(
            PublishedNumber(
                model=model,
                backbones=tuple(names["names"].split()),
                architecture=names["architecture"],
                task=row["task"],
                metric=row["metric"],
                value=float(row["value"]),
                digits=len(row["value"].partition(".")[2]),
                **{name: source[name] for name in about},
            )
        )
    return tuple(numbers)


@cache
def published_costs() -> dict[str, dict[str, dict[str, float]]]:
    """Architecture (``timm/resnet50``, ``open_clip/ViT-B-16``) → size of the images in pixels →
    ``parameters`` (in millions), ``gflops`` an image, ``images_per_second`` of timm's; of open_clip
    of the image tower alone."""
    costs: dict[str, dict[str, dict[str, float]]] = {}
    for row in read_rows("costs"):
        architecture, _, size = row["model"].partition("@")
        of_size = costs.setdefault(architecture, {}).setdefault(size, {})
        of_size[row["metric"]] = float(row["value"])
    return costs


def costs_of(number: PublishedNumber) -> tuple[str, dict[str, float]]:
    """The size of the images and the costs of a number's model: at the size that its name has, else
    at the first that its source measured; empty where none did."""
    for name in (number.model, *number.backbones):
        weights, _, size = name.partition("@")
        architecture = "/".join(weights.split("/")[:2]).partition(".")[0]
        if sizes := published_costs().get(architecture):
            size = size or next(iter(sizes))
            return size, sizes.get(size, {})
    return "", {}


def read_rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of ``NAME.csv``."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def compare_published(analysis: Analysis) -> list[PublishedRow]:
    """Published numbers of the same weights on the same task, and ours beside them."""
    names = analysis.selection.backbones
    entries = published_numbers(frozenset(name.partition("@")[0] for name in names))
    return [
        row
        for name in names
        for entry in entries
        if name.partition("@")[0] in entry.backbones
        for row in _rows(analysis, entry, name)
    ]


def _rows(analysis: Analysis, entry: PublishedNumber, name: str) -> Iterator[PublishedRow]:
    selection = analysis.selection
    if not entry.task:
        gain = analysis.gains.get(name)
        percent = f"{decimal(gain.mean.value, 1, True)} %" if gain else ""
        ours = f"{percent} over {selection.baseline} on average" if gain else ""
        yield PublishedRow(name, "all", ours, entry.differs, entry)
        return
    architectures = {
        run.architecture for (backbone, _), run in selection.parents.items() if backbone == name
    }
    if entry.architecture and architectures - {entry.architecture, ""}:
        return
    if entry.task.endswith(OWN_HEAD):
        yield PublishedRow(name, entry.task, "", "its own classifier, not a probe", entry)
    for column in selection.columns:
        estimate = analysis.estimates.get((name, column, entry.metric))
        if column.task == entry.task and estimate is not None:
            cells = selection.cells[name, column]
            partial = list(dict.fromkeys(cell.shortened for cell in cells if cell.shortened))
            own = [protocol_difference(cell, entry.preset) for cell in cells]
            differences = dict.fromkeys(filter(None, (*partial, *own, entry.differs)))
            same = "same settings; `list protocols` has what its source does otherwise"
            differs = "; ".join(differences) or (
                "same protocol" if entry.preset in ("", "own") else same
            )
            yield PublishedRow(name, column.title, with_interval(estimate, 2), differs, entry)


def protocol_difference(cell: Cell, preset: str) -> str:
    """How a cell's settings differ from the source that a preset follows, by what the cell records;
    '' where nothing is known to differ."""
    own = cell.preset or "own"
    return cell.differs or (f"settings of {own}" if own != preset else "")


NUMBER = ("source", "model", "task", "metric", "value")


class TableRow(NamedTuple):
    """A row of ``numbers.csv``, ``costs.csv`` or ``seeds.csv``; its value in the metric's unit,
    with the source's digits."""

    source: str
    model: str
    task: str
    metric: str
    value: str

    @property
    def key(self) -> tuple[str, ...]:
        """All but the value."""
        return self[:-1]

    @property
    def table(self) -> str:
        """Name of its table."""
        if self.task == COST:
            return "costs"
        return "seeds" if self.model == DEVIATION else "numbers"


@dataclass(frozen=True)
class Source:
    """Files of a repository.

    Attributes:
        keys: of ``sources.csv`` → the file that its rows are read from.
        read: folder of the checkout → rows.
    """

    keys: dict[str, str]
    read: Callable[[Path], Iterator[TableRow]]


@dataclass(frozen=True)
class Changes:
    """How many rows of ``keys`` there are now, and what differs from before.

    Attributes:
        commit: of the checkout; '' where that is no clone, and ``sources.csv`` keeps the old one.
    """

    keys: Sequence[str]
    rows: int
    lines: list[str]
    commit: str


def read_source(checkout: Path) -> Changes:
    """Replace the rows of the source that a checkout is of, and its commit and digests.

    Raises:
        UserError: it is a checkout of none of the sources, or a file is not as expected.
    """
    source = next((each for each in SOURCES if _has_files(checkout, each)), None)
    if source is None:
        files = ", ".join(sorted({file for each in SOURCES for file in each.keys.values()}))
        raise UserError(f"{checkout} has none of the files of the known sources ({files})")
    try:
        new = {row.key: row for row in map(_with_number, source.read(checkout))}
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(
            f"{checkout}: a file is not as expected ({error!r}); the reader is in"
            " reports/published/table.py"
        ) from error
    old: dict[tuple[str, ...], TableRow] = {}
    for name in ("numbers", "costs", "seeds"):
        rows = [TableRow(*(row[field] for field in NUMBER)) for row in read_rows(name)]
        old |= {row.key: row for row in rows if row.source in source.keys}
        own = [row for row in new.values() if row.table == name]
        is_own = [row.source in source.keys for row in rows]
        first = is_own.index(True) if any(is_own) else len(rows)
        after = [row for row in rows[first:] if row.source not in source.keys]
        _write(name, NUMBER, [*rows[:first], *own, *after])
    commit = _update_sources(source, checkout)
    lines = [f"gone: {' · '.join(key)}" for key in old.keys() - new.keys()]
    lines += [f"new: {' · '.join(new[key])}" for key in new.keys() - old.keys()]
    lines += [
        f"changed: {' · '.join(key)}: {old[key].value} → {new[key].value}"
        for key in new.keys() & old.keys()
        if old[key].value != new[key].value
    ]
    return Changes(list(source.keys), len(new), sorted(lines), commit)


def _has_files(checkout: Path, source: Source) -> bool:
    return all((checkout / file).is_file() for file in source.keys.values())


def _with_number(row: TableRow) -> TableRow:
    """The row, if its value is a number. Raises ``ValueError`` or ``TypeError``."""
    if not math.isfinite(float(row.value)):
        raise ValueError(f"{row.value} in {row.key}")
    return row


def _update_sources(source: Source, checkout: Path) -> str:
    """Write the checkout's commit and the digests of its files; returns the commit."""
    # not a repository around it: without .git, the commit is unknown
    words = ["git", f"--git-dir={checkout / '.git'}", "rev-parse", "--verify", "HEAD"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    commit_here = result.stdout.strip()
    rows = list(read_rows("sources"))
    for row in rows:
        if file := source.keys.get(row["source"]):
            commit = commit_here or row["commit"]
            row["url"] = row["url"].replace(row["commit"], commit)
            row["commit"] = commit
            row["sha256"] = hashlib.sha256((checkout / file).read_bytes()).hexdigest()
    _write("sources", list(rows[0]), [list(row.values()) for row in rows])
    return commit_here


def _write(name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(FOLDER / f"{name}.csv", text.getvalue())


def _records(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _percent(share: str) -> str:
    """``0.8437`` → ``84.37``: exactly, and with all digits of the source."""
    return f"{Decimal(share).scaleb(2):f}"


# --- open_clip: docs/*.csv, shares

ZERO_SHOT = {  # column → task and main metric
    "ImageNet 1k": ("imagenet1k", "top1"),
    "Caltech-101": ("vtab-caltech101", "mean_per_class_recall"),
    "CIFAR-10": ("cifar10", "top1"),
    "CIFAR-100": ("vtab-cifar100", "top1"),
    "CLEVR Counts": ("vtab-clevr_count_all", "top1"),
    "CLEVR Distance": ("vtab-clevr_closest_object_distance", "top1"),
    "Country211": ("country211", "top1"),
    "Describable Textures": ("vtab-dtd", "top1"),
    "EuroSAT": ("vtab-eurosat", "top1"),
    "FGVC Aircraft": ("fgvc_aircraft", "mean_per_class_recall"),
    "Food-101": ("food101", "top1"),
    "GTSRB": ("gtsrb", "top1"),
    "ImageNet Sketch": ("imagenet_sketch", "top1"),
    "ImageNet v2": ("imagenetv2", "top1"),
    "ImageNet-A": ("imagenet-a", "top1"),
    "ImageNet-O": ("imagenet-o", "top1"),
    "ImageNet-R": ("imagenet-r", "top1"),
    "KITTI Vehicle Distance": ("vtab-kitti_closest_vehicle_distance", "top1"),
    "MNIST": ("mnist", "top1"),
    "ObjectNet": ("objectnet", "top1"),
    "Oxford Flowers-102": ("vtab-flowers", "mean_per_class_recall"),
    "Oxford-IIIT Pet": ("vtab-pets", "mean_per_class_recall"),
    "Pascal VOC 2007": ("voc2007", "top1"),
    "PatchCamelyon": ("vtab-pcam", "top1"),
    "Rendered SST2": ("renderedsst2", "top1"),
    "RESISC45": ("vtab-resisc45", "top1"),
    "Stanford Cars": ("cars", "top1"),
    "STL-10": ("stl10", "top1"),
    "SUN397": ("sun397", "top1"),
    "SVHN": ("vtab-svhn", "top1"),
    "WinoGAViL": ("misc-winogavil", "jaccard_10-12"),
    "iWildCam": ("wilds-iwildcam", "f1_macro"),
    "Camelyon17": ("wilds-camelyon17", "top1"),
    "FMoW": ("wilds-fmow", "worst_group_top1"),
    "Dollar Street": ("fairness-dollar_street", "worst_group_top5"),
    "GeoDE": ("fairness-geode", "worst_group_top1"),
}
FLICKR = "retrieval-flickr_1k_test_image_text_retrieval"
COCO = "retrieval-mscoco_2014_5k_test_image_text_retrieval"
PAIRS = {"Flickr": (FLICKR, "flickr30k"), "MSCOCO": (COCO,)}


def _open_clip(checkout: Path) -> Iterator[TableRow]:
    def of(
        source: str, record: dict[str, str], tasks: dict[str, tuple[str, str]]
    ) -> Iterator[TableRow]:
        model = f"open_clip/{record['name']}/{record['pretrained']}"
        for column, (task, metric) in tasks.items():
            if record[column]:
                yield TableRow(source, model, task, metric, _percent(record[column]))

    zero_shot = {
        column: (f"{task}/zero-shot", metric) for column, (task, metric) in ZERO_SHOT.items()
    }
    zero_shot |= {column: (f"{tasks[0]}/retrieval", "mean_R@1") for column, tasks in PAIRS.items()}
    imagenet = {"ImageNet 1k": ("imagenet/zero-shot", "top1")}
    for record in _records(checkout / "docs/openclip_results.csv"):
        yield from of("open_clip-zero-shot", record, zero_shot)
        yield from of("open_clip-imagenet", record, imagenet)
    retrieval = {
        f"{column} {kind} retr. R@{k}": (column, f"{short}_R@{k}")
        for column in PAIRS
        for kind, short in (("image", "t2i"), ("text", "i2t"))
        for k in (1, 5, 10)
    }
    for record in _records(checkout / "docs/openclip_retrieval_results.csv"):
        for part in (0, 1):
            tasks = {
                title: (f"{PAIRS[column][part]}/retrieval", metric)
                for title, (column, metric) in retrieval.items()
                if part < len(PAIRS[column])
            }
            yield from of(("open_clip-retrieval", "open_clip-flickr30k")[part], record, tasks)
    for record in _records(checkout / PROFILE):
        model = f"open_clip/{record['model']}@{record['image_size']}"
        yield TableRow("open_clip-costs", model, COST, "parameters", record["image_mparams"])
        yield TableRow("open_clip-costs", model, COST, "gflops", record["image_gflops"])


# --- timm: results/*.csv, percent, of each model's own classifier

TIMM = {
    "imagenet": "imagenet",
    "imagenet-real": "imagenet-real",
    "imagenet-a": "imagenet-a",
    "imagenet-r": "imagenet-r",
    "imagenetv2-matched-frequency": "imagenetv2",
    "sketch": "imagenet_sketch",
}


def _timm(checkout: Path) -> Iterator[TableRow]:
    for file, dataset in TIMM.items():
        for record in _records(checkout / f"results/results-{file}.csv"):
            model = f"timm/{record['model']}@{record['img_size']}"
            yield TableRow(f"timm-{file}", model, f"{dataset}/{OWN_HEAD}", "top1", record["top1"])
    for record in _records(checkout / SPEED):
        model = f"timm/{record['model']}@{record['infer_img_size']}"
        gflops = f"{2 * Decimal(record['infer_gmacs'])}"
        speed = record["infer_samples_per_sec"]
        yield TableRow("timm-costs", model, COST, "parameters", record["param_count"])
        yield TableRow("timm-costs", model, COST, "gflops", gflops)
        yield TableRow("timm-costs", model, COST, "images_per_second", speed)


# --- CLIP_benchmark: linear probes, shares; the best of the grid, as its own table has it

PROBES = "probe_benchmark/scaling_experiment_data2.json"
PROBED = {  # dataset → its name here; others of the file are not in this suite
    "imagenet1k-unverified": "imagenet1k",
    "vtab/cifar10": "cifar10",
    "vtab_svhn": "vtab-svhn",
    **{
        f"vtab/{name}": f"vtab-{name}"
        for name in (
            *("caltech101", "cifar100", "clevr_closest_object_distance", "clevr_count_all", "dtd"),
            *("eurosat", "flowers", "kitti_closest_vehicle_distance", "pcam", "pets", "resisc45"),
        )
    },
}


def _clip_benchmark(checkout: Path) -> Iterator[TableRow]:
    best: dict[tuple[str, str], float] = defaultdict(float)
    for run in json.loads((checkout / PROBES).read_text(encoding="utf-8")):
        if run["fewshot_k"] == -1 and (dataset := PROBED.get(run["dataset"])):
            model = run["model_short"].replace(" ", "/")
            key = f"open_clip/{model}", f"{dataset}/linear"
            best[key] = max(best[key], run["lp_acc1"])
    for (model, task), share in best.items():
        yield TableRow("clip_benchmark-linear", model, task, "top1", f"{100 * share:.2f}")


# --- VisBench: a record of JSON a line; shares, degrees and metres

CORPUS = "results/corpus/visbench.jsonl"
VISBENCH = {  # its probe → key, task, and its metrics that this suite has
    "semantic_segmentation": (
        "visbench-voc",
        "voc/linear",
        {"miou": "mIoU", "mean_acc": "mAcc", "pixel_acc": "aAcc"},
    ),
    "depth": (
        "visbench-nyu-depth",
        "nyu-depth/linear",
        {"abs_rel": "abs_rel", "rmse": "rmse"} | {f"d{n}": f"delta{n}" for n in (1, 2, 3)},
    ),
    "surface_normal": (
        "visbench-nyu-normal",
        "nyu-normal/linear",
        {"mean": "normal_image_mean", "rmse": "normal_image_rmse"}
        | {f"d{n}": f"normal_image_{angle}" for n, angle in ((1, "11.25"), (2, "22.5"), (3, "30"))},
    ),
    "scene_classification": (
        "visbench-places365",
        "places365/linear",
        {"top1": "top1", "top5": "top5"},
    ),
    "scene_parsing": (
        "visbench-nyu-40",
        "nyu-40/linear",
        {"miou": "mIoU", "mean_acc": "mAcc", "pixel_acc": "aAcc"},
    ),
    "generic_segmentation": (
        "visbench-voc-foreground",
        "voc-foreground/linear",
        {"iou": "object_IoU"},
    ),
    "similarity": ("visbench-nights", "nights/2afc", {"accuracy": "2AFC"}),
    "relative_pose": (
        "visbench-navi-multiview",
        "navi-multiview/relative-pose",
        {"rotation_error_deg": "rotation_error", "translation_error": "translation_error"},
    ),
}
NO_SHARES = ("abs_rel", "rmse", "mean", "rotation_error_deg", "translation_error")


SEED_RECORDS = "results/controls/{}.jsonl"
# its records of five seeds → our task and main metric, its metric, the unit's factor
VISBENCH_SEEDS = {
    "seeds/semantic_segmentation": ("voc/linear", "mIoU", "miou", 100),
    "seeds/scene_parsing": ("nyu-40/linear", "mIoU", "miou", 100),
    "seeds/generic_segmentation": ("voc-foreground/linear", "object_IoU", "iou", 100),
    "seeds/depth": ("nyu-depth/linear", "abs_rel", "abs_rel", 1),
    "seeds/corner": ("corners/linear", "pearson", "corner_correlation", 1),
    "seeds/orientation": ("orientation/linear", "angle", "orientation_error", 1),
    "seeds/occlusion_edge": ("nyu-occlusion/linear", "pearson", "occlusion_edge_correlation", 1),
    "pose_seeds": ("navi-multiview/relative-pose", "rotation_error", "rotation_error_deg", 1),
    "scene_classification_seeds": ("places365/linear", "top1", "top1", 100),
}


def _visbench(checkout: Path) -> Iterator[TableRow]:
    """The newest record of each probe and backbone. Keys of timm without ``/crop1`` are superseded:
    the backbone cropped images that were cropped already (``SUPERSEDED_KEYS`` of its code)."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for line in (checkout / CORPUS).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        key = record["task"], record["backbone"]
        weights = record["backbone_key"]
        is_superseded = weights.startswith("timm/") and not weights.endswith("/crop1")
        order = (not is_superseded, record["timestamp"])
        if key not in newest or order >= newest[key]["order"]:
            newest[key] = {**record, "order": order}
    for (probe, _), record in newest.items():
        if probe not in VISBENCH:
            continue
        source, task, metrics = VISBENCH[probe]
        library, *name = record["backbone_key"].split("/")
        model = {
            "timm": f"timm/{'.'.join(name[:2])}",
            "clip": f"open_clip/{'/'.join(name[:2])}",
            "dinov2": f"hub/facebookresearch/dinov2:{name[0]}",
        }[library]
        for theirs, ours in metrics.items():
            value = record["metrics"][theirs]
            text = f"{value:.3f}" if theirs in NO_SHARES else f"{100 * value:.2f}"
            yield TableRow(source, model, task, ours, text)
    for board, (task, metric, theirs, factor) in VISBENCH_SEEDS.items():
        scores = defaultdict(list)
        for line in (checkout / SEED_RECORDS.format(board)).read_text("utf-8").splitlines():
            record = json.loads(line)
            scores[record["backbone"]].append(factor * record["metrics"][theirs])
        if {len(values) for values in scores.values()} != {SEEDS}:
            raise ValueError(f"{board}: not {SEEDS} seeds of each backbone")
        deviation = median(map(stdev, scores.values()))
        source = f"visbench-seeds-{task.partition('/')[0]}"
        yield TableRow(source, DEVIATION, task, metric, f"{deviation:.3g}")


ZERO_SHOT_FILE, RETRIEVAL_FILE = "docs/openclip_results.csv", "docs/openclip_retrieval_results.csv"
PROFILE = "docs/model_profile.csv"
SPEED = "results/benchmark-infer-amp-nchw-pt291-cu128-4090.csv"
SOURCES = (
    Source(
        {
            "open_clip-zero-shot": ZERO_SHOT_FILE,
            "open_clip-imagenet": ZERO_SHOT_FILE,
            "open_clip-retrieval": RETRIEVAL_FILE,
            "open_clip-flickr30k": RETRIEVAL_FILE,
            "open_clip-costs": PROFILE,
        },
        _open_clip,
    ),
    Source(
        {f"timm-{file}": f"results/results-{file}.csv" for file in TIMM} | {"timm-costs": SPEED},
        _timm,
    ),
    Source({"clip_benchmark-linear": PROBES}, _clip_benchmark),
    Source(
        {source: CORPUS for source, _, _ in VISBENCH.values()}
        | {
            f"visbench-seeds-{task.partition('/')[0]}": SEED_RECORDS.format(board)
            for board, (task, *_) in VISBENCH_SEEDS.items()
        },
        _visbench,
    ),
)
