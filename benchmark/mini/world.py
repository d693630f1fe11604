"""The mini world on disk: its sizes, captions, files in official layouts, and datasets.

It is rendered once from its seed, in parallel, chunk by chunk: a chunk is a webdataset shard, or a
hundred pictures of another split. It writes its files first and its record, with their sizes, last;
``manifest.json`` is written at the end. So ``build_world`` resumes a killed build, and renders
chunks again whose files are missing or cut short.

How large the worlds of the suites are, and how much is trained on them, is in ``SIZES``.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from backbones.cliptex.recipes import subsets
from backbones.cliptex.tasks import PAPER
from benchmark.executor import Executor, exclusive_async
from benchmark.mini.solids import (
    CLASSES,
    COLOUR_NAMES,
    IGNORE,
    GroundTruth,
    Item,
    Scene,
    draw_picture,
)
from benchmark.progress import reporter
from cliptex_common.errors import UserError
from cliptex_common.files import content_key, home, mark_in_use, write_text
from cliptex_common.images import palette
from probes.datasets import classification, depth, detection, pairs, segmentation
from probes.datasets.base import DatasetSpec
from probes.registry import register_dataset

if TYPE_CHECKING:
    from webdataset import TarWriter

OTHER_NAMES = (
    "bookcase",
    "flask",
    "seat",
    "light",
    "screen",
    "cup",
    "houseplant",
    "couch",
    "desk",
    "toy bear",
)
SYNONYMS = dict(zip(CLASSES, OTHER_NAMES, strict=True))
IRRELEVANT = ("click to see more pictures", "new arrivals this week", "untitled", "stock photo")
FORMS = ("{}", "a photo of {}", "{} for sale", "{} in a room", "there is {}", "my new photo: {}")


@dataclass(frozen=True)
class CaptionNoise:
    """How bad web captions are; each rate is a probability."""

    irrelevant: float = 0.06  # the caption says nothing about the picture
    wrong: float = 0.06  # it describes another picture: other objects, other colours
    omit_main: float = 0.08  # the largest object is left out (when there is another to name)
    omit_other: float = 0.45  # each other object is left out
    synonym: float = 0.25  # an object goes by another name than its class's
    colour: float = 0.6  # an object's colour is named
    room: float = 0.15  # wall or floor is mentioned


def seen_objects(scene: Scene, target: GroundTruth) -> list[Item]:
    """The objects that can be named in the picture, largest first."""
    areas = np.bincount(
        target.instance[target.semantic != IGNORE], minlength=len(scene.objects) + 1
    )
    numbers = [number for number in np.argsort(-areas[1:], kind="stable") if areas[1 + number]]
    return [scene.objects[number] for number in numbers]


def web_caption(rng: Random, scene: Scene, seen: Sequence[Item], noise: CaptionNoise) -> str:
    """One noisy caption of what is ``seen``."""
    draw = rng.random()
    if draw < noise.irrelevant or not seen:
        return rng.choice(IRRELEVANT)
    named = [item for item in seen[1:] if rng.random() >= noise.omit_other]
    if not named or rng.random() >= noise.omit_main:
        named.insert(0, seen[0])
    if draw < noise.irrelevant + noise.wrong:
        absent = [name for name in CLASSES if name not in {item.name for item in seen}]
        named = [Item(rng.choice(absent), rng.choice(COLOUR_NAMES), "plain")]
    phrases = []
    for item in named:
        words = [SYNONYMS[item.name] if rng.random() < noise.synonym else item.name]
        words[:0] = [item.colour] if rng.random() < noise.colour else []
        words[:0] = [item.texture] if item.texture != "plain" and rng.random() < 0.3 else []
        phrases.append(with_article(" ".join(words)))
    text = rng.choice(FORMS).format(" and ".join(phrases))
    if rng.random() < noise.room:
        text += rng.choice((f", {scene.wall} wall", f" on a {scene.floor} {scene.setting}"))
    return text


def clean_captions(scene: Scene, seen: Sequence[Item]) -> list[str]:
    """Five captions of the main objects, their colours, and the room."""
    phrases = [with_article(f"{item.colour} {item.name}") for item in seen[:3]]
    synonym = with_article(f"{seen[0].colour} {SYNONYMS[seen[0].name]}")
    floor, wall = f"{with_article(scene.floor)} {scene.setting}", f"{with_article(scene.wall)} wall"
    return [
        f"{' and '.join(phrases)} on {floor}",
        f"a photo of {' and '.join(phrases)}",
        f"{phrases[0]} in front of {wall}",
        f"{synonym}, {wall} and {floor}",
        f"{phrases[0]}, {seen[0].texture}, beside {' and '.join(phrases[1:]) or 'nothing'}",
    ]


def with_article(words: str) -> str:
    """``words`` after a or an."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


VERSION = 5  # raise it when the same config gives other pictures or captions
CHUNK = 100  # pictures a chunk, except for pairs, whose chunks are shards
DENSE_SPLITS = ("expert_train", "expert_val", "probe_train", "val")  # have dense ground truth
SPLITS = ("pairs", *DENSE_SPLITS, "class_train", "class_val", "retrieval_train", "retrieval")


@dataclass(frozen=True)
class WorldConfig:
    """A mini world: pictures in each of the ``SPLITS``, and what they depend on."""

    pairs: int = 5_000  # with noisy captions
    expert_train: int = 2_000  # from the shifted domain
    expert_val: int = 100
    probe_train: int = 400
    val: int = 300
    class_train: int = 400  # with one dominant object, classes in turn
    class_val: int = 300
    retrieval_train: int = 50  # with five clean captions; monitors a training
    retrieval: int = 300
    seed: int = 0
    size: int = 64  # height and width in pixels
    shard_size: int = 500
    noise: CaptionNoise = field(default_factory=CaptionNoise)  # of the pairs

    def key(self) -> str:
        """Identity of the world: config and version of the generator."""
        return content_key({"version": VERSION, "config": asdict(self)})


MINI = WorldConfig()
SMOKE = WorldConfig(600, 160, 40, 80, 60, 100, 60, 20, 60, shard_size=150)


class Chunk(NamedTuple):
    """Pictures ``start`` to ``stop`` of a split, which are rendered together."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def record(self) -> str:
        return f".chunks/{self.split}-{self.number:05d}.json"


def chunks_of(config: WorldConfig) -> list[Chunk]:
    """All chunks of a world, in a fixed order."""
    chunks = []
    for split in SPLITS:
        total, step = getattr(config, split), config.shard_size if split == "pairs" else CHUNK
        for number, start in enumerate(range(0, total, step)):
            chunks.append(Chunk(split, number, start, min(start + step, total)))
    return chunks


# folders are relative to the world's root, which takes the place of ``--data-root``
VOC = "VOCdevkit/VOC2012"
DEPTH_UNITS = 1000  # stored depth is in millimetres, as in mmseg's NYUDataset
_PALETTE = palette(256).ravel().tolist()


def encode_image(values: np.ndarray, labels: bool = False, **settings: Any) -> bytes:
    """An 8-bit grey or RGB or a 16-bit array as PNG, or as its ``settings`` say; a map of
    ``labels`` has VOC's palette."""
    image, buffer = Image.fromarray(values), io.BytesIO()
    if labels:
        image.putpalette(_PALETTE)
    image.save(buffer, **{"format": "PNG", "compress_level": 1, **settings})
    return buffer.getvalue()


def encode_depth(depth: np.ndarray) -> np.ndarray:
    """Metres → uint16 millimetres."""
    return np.clip(np.rint(depth * DEPTH_UNITS), 0, 65535).astype(np.uint16)


def encode_normals(normals: np.ndarray) -> np.ndarray:
    """Unit normals → uint8 with n = png / 127.5 - 1."""
    return np.clip(np.rint((normals + 1) * 127.5), 0, 255).astype(np.uint8)


def dense_files(part: str, stem: str, picture: bytes, target: GroundTruth) -> dict[str, bytes]:
    """A picture and its ground truth in VOC's, COCO's and NYU's layout: name → content."""
    nyu = "test" if part == "val" else part
    return {
        f"{VOC}/JPEGImages/{stem}.jpg": picture,
        f"{VOC}/SegmentationClass/{stem}.png": encode_image(target.semantic, labels=True),
        f"coco/{part}2017/{stem}.jpg": picture,
        f"nyu/images/{nyu}/{stem}.jpg": picture,
        f"nyu/annotations/{nyu}/{stem}.png": encode_image(encode_depth(target.depth)),
        f"nyu/normals/{nyu}/{stem}.png": encode_image(encode_normals(target.normals)),
    }


def instance_annotations(scene: Scene, target: GroundTruth) -> list[dict[str, Any]]:
    """COCO annotations without ids; objects too small to name are crowds, which are not scored."""
    annotations = []
    for number, item in enumerate(scene.objects, start=1):
        mask = target.instance == number
        if not mask.any():
            continue
        encoded: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                "category_id": CLASSES.index(item.name) + 1,
                "bbox": [int(value) for value in coco_mask.toBbox(encoded)],
                "area": int(mask.sum()),
                "iscrowd": int((target.semantic[mask] == IGNORE).any()),
                "segmentation": {**encoded, "counts": encoded["counts"].decode()},
            }
        )
    return annotations


def dense_lists(part: str, size: int, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The list file and the COCO json of a split with dense ground truth: name → text."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        name = f"{record['stem']}.jpg"
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for annotation in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    stems = "".join(f"{record['stem']}\n" for record in records)
    return {
        f"{VOC}/ImageSets/Segmentation/{part}.txt": stems,
        f"coco/annotations/instances_{part}2017.json": json.dumps(coco),
    }


def karpathy_json(records: Sequence[dict[str, Any]]) -> str:
    """Karpathy's caption json; ``records`` have ``filename``, ``split`` and ``captions``."""
    images = []
    for number, record in enumerate(records):
        sentences = [
            {"tokens": text.replace(",", "").split(), "raw": text, "imgid": number, "sentid": key}
            for key, text in enumerate(record["captions"], start=5 * number)
        ]
        entry = {"imgid": number, "filename": record["filename"], "split": record["split"]}
        images.append({**entry, "sentences": sentences})
    return json.dumps({"images": images, "dataset": "mini"})


def _spec(official: DatasetSpec, about: str, split: str, **changes: Any) -> DatasetSpec:
    extra = official.extra | changes.pop("extra", {}) | {"split": f"{split} of the mini world"}
    changes |= {"expected": {}, "adapt": None, "is_generated": True, "module": __name__}
    changes["image_set"] = "mini"
    return replace(official, about=f"mini world, {about}", extra=extra, **changes)


PROBING_SPLITS = "probe_train / val"
NAMES = ("background", *CLASSES)
VOC_LAYOUT = DatasetSpec("", "segmentation", VOC, segmentation.list_voc, ignore_index=IGNORE)
IMAGE_FOLDER_LAYOUT = DatasetSpec(
    "", "classification", "imagefolder", classification.list_imagefolder
)
DATASETS = (
    _spec(VOC_LAYOUT, "ten classes and background", PROBING_SPLITS, name="mini-seg", classes=NAMES),
    _spec(
        detection.COCO,
        "boxes and masks of ten classes",
        PROBING_SPLITS,
        name="mini-det",
        classes=CLASSES,
    ),
    _spec(depth.DEPTH, "depth in metres", PROBING_SPLITS, name="mini-depth", extra={"crop": None}),
    _spec(depth.NORMAL, "surface normals", PROBING_SPLITS, name="mini-normal"),
    _spec(
        IMAGE_FOLDER_LAYOUT,
        "one dominant object of ten classes",
        "class_train / class_val",
        name="mini-class",
        classes=classification.folder_classes,
    ),
    _spec(pairs.FLICKR30K, "five captions an image", "test", name="mini-retrieval"),
)
for spec in DATASETS:
    register_dataset(spec)


PIECES = 4  # units per worker, so that all end at about the same time
MANIFEST = "manifest.json"


async def build_world(config: WorldConfig, executor: Executor) -> Path:
    """The folder of a world, rendered or completed as needed."""
    root = home() / "mini" / config.key()
    mark_in_use(root)
    async with exclusive_async(root):
        if is_complete(root, config):
            return root
        root.mkdir(parents=True, exist_ok=True)
        (root / MANIFEST).unlink(missing_ok=True)
        missing = [chunk for chunk in chunks_of(config) if _read(root, chunk.record) is None]
        pieces = min(len(missing), PIECES * executor.cpu_slots)
        units = []
        for n in range(pieces):
            unit = root, config, missing[n::pieces]
            name = f"render {n + 1}/{pieces}"
            units.append(
                executor.run(render_chunks, *unit, name=name, kind="render", on_device=False)
            )
        await asyncio.gather(*units)
        _write_lists(root, config)
    return root


def render_chunks(root: Path, config: WorldConfig, chunks: Sequence[Chunk]) -> None:
    """Render some chunks of the world at ``root``; a resumable unit of work."""
    from webdataset import TarWriter  # imports torch

    progress = reporter()
    progress.start("rendering the mini world", sum(chunk.stop - chunk.start for chunk in chunks))
    for chunk in chunks:
        files: dict[str, bytes] = {}
        shard, pictures = io.BytesIO(), []
        with TarWriter(shard, mtime=0) as writer:  # the same pairs give the same bytes
            for index in range(chunk.start, chunk.stop):
                pictures.append(_render(files, writer, config, chunk.split, index))
                progress.advance()
        if chunk.split == "pairs":
            files[f"pairs/{chunk.number:05d}.tar"] = shard.getvalue()
        _write(root, files, chunk.record, pictures)


def _render(
    files: dict[str, bytes], shard: TarWriter, config: WorldConfig, split: str, index: int
) -> dict[str, Any]:
    """Add a picture to ``files``, or a pair to ``shard``; returns its entry in list files, {} where
    the layout has none."""
    rng = Random(f"{config.seed}/{split}/{index}")
    kind, _, part = split.rpartition("_")
    subject = CLASSES[index % len(CLASSES)] if kind == "class" else None
    domain = "expert" if kind == "expert" else "home"
    scene, pixels, target = draw_picture(rng, domain, config.size, subject)
    picture = encode_image(pixels, format="JPEG", quality=92, subsampling=0)  # it is small
    if split in DENSE_SPLITS:
        stem, prefix = f"{part}{index:06d}", "expert/" if kind == "expert" else ""
        dense = dense_files(part, stem, picture, target)
        files |= {f"{prefix}{name}": content for name, content in dense.items()}
        return {"stem": stem, "annotations": instance_annotations(scene, target)}
    if subject:
        files[f"imagefolder/{part}/{subject}/{index:06d}.jpg"] = picture
        return {}
    seen = seen_objects(scene, target)
    if split == "pairs":
        caption, key = web_caption(rng, scene, seen, config.noise), f"{index:09d}"
        metadata = {"key": key, "caption": caption, "width": config.size, "height": config.size}
        shard.write({"__key__": key, "jpg": picture, "txt": caption, "json": metadata})
        return {}
    part = "train" if part == "train" else "test"
    name = f"{part}_{index:06d}.jpg"
    files[f"flickr30k/images/{name}"] = picture
    return {"filename": name, "split": part, "captions": clean_captions(scene, seen)}


def _write(root: Path, files: Mapping[str, bytes], record: str, content: Any) -> None:
    """Write ``files``, then a record of their sizes and of ``content``."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sizes = {name: len(data) for name, data in files.items()}
    write_text(root / record, json.dumps({"files": sizes, "content": content}))


def _read(root: Path, record: str) -> Any:
    """The content of a record; None if it, or one of its files, is missing or cut short."""
    try:
        values = json.loads((root / record).read_text(encoding="utf-8"))
        if any((root / name).stat().st_size != size for name, size in values["files"].items()):
            return None
        return values["content"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def is_complete(root: Path, config: WorldConfig) -> bool:
    """Whether the world at ``root`` is finished and undamaged."""
    records = (chunk.record for chunk in chunks_of(config))
    return all(_read(root, record) is not None for record in (MANIFEST, *records))


def _write_lists(root: Path, config: WorldConfig) -> None:
    """Write lists and annotation files from all records, then the manifest."""
    pictures: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for chunk in chunks_of(config):
        content = _read(root, chunk.record)
        if content is None:
            raise UserError(
                f"mini world in {root}: {chunk.record} was damaged meanwhile; run the command again"
            )
        pictures[chunk.split] += content
    captions = karpathy_json(pictures["retrieval_train"] + pictures["retrieval"])
    lists = {"flickr30k/dataset_flickr30k.json": captions}
    for split in DENSE_SPLITS:
        prefix, part = ("expert/" if "expert" in split else ""), split.rpartition("_")[2]
        texts = dense_lists(part, config.size, pictures[split])
        lists |= {f"{prefix}{name}": text for name, text in texts.items()}
    _write(root, {name: text.encode() for name, text in lists.items()}, MANIFEST, asdict(config))


SUBSETS = subsets(PAPER)  # recipes with fewer experts
LABELLED = ("cliptex-manual", "cliptex-both")  # cliptex with other labels
TRAINED = ("clip", "clip-ft", *SUBSETS, *LABELLED)


@dataclass(frozen=True)
class Sizes:
    """The world of a mini suite, and how much it trains.

    Attributes:
        world: its pictures.
        clip: changes to the recipe that pre-trains CLIP on captions.
        init: its initial weights, see ``backbones.cliptex.model.load_initial_clip``.
            ``mini`` has an image tower with ImageNet weights: a small ViT from scratch stays at
            chance in zero-shot after 56,000 samples of this world.
        tune: changes to the recipes that fine-tune it; clip-ft and cliptex share them, so that
            both see the same pairs in the same order.
        lambdas: further changes to cliptex: its λs.
        experts: expert → changes to its settings.
    """

    world: WorldConfig
    clip: Mapping[str, Any]
    init: str
    tune: Mapping[str, Any]
    lambdas: Mapping[str, Any]
    experts: Mapping[str, Mapping[str, Any]]


# one frozen encoder, so that an expert learns its decoder alone, at a third of the time
_EXPERT = {
    "size": 64,
    "batch_size": 16,
    "color_jitter": 0.3,
    "crop_scale": (0.6, 1.0),
    "frozen": True,
    "width": 32,
    "stride": 4,
    "lr": 5e-3,
}
EXPERTS: dict[str, dict[str, Any]] = {  # the longest first, so that no core is alone in the end
    # instead of Mask R-CNN, which trains too slowly (23 images a second on the CPU)
    "unet-seg": {**_EXPERT, "epochs": 4.0, "balance": 0.5},
    "unet-depth": {**_EXPERT, "epochs": 1.5},
    "unet-normals": {**_EXPERT, "epochs": 1.5},
}
SIZES = {
    "mini": Sizes(
        world=MINI,
        clip={
            "model": "mini",
            "epochs": 1.5,
            "batch_size": 32,
            "lr": 1e-3,
            "warmup": 0.1,
            "val_pairs": 400,
        },
        init="imagenet",
        tune={
            "epochs": 1.2,
            "batch_size": 32,
            "lr": 1e-3,
            "warmup": 0.1,
            "val_pairs": 400,
            "head_lr": 3.0,
            "head_width": 64,
            "label_size": 32,
        },
        # the paper's 0.1 fits its losses and data; as in its search, everything starts at 1
        lambdas={"lambda_seg": 1.0},
        experts=EXPERTS,
    ),
    "smoke": Sizes(
        world=SMOKE,
        clip={"model": "tiny", "epochs": 1.0, "batch_size": 32, "lr": 1e-3, "image_size": 64},
        init="random",
        tune={"epochs": 1.0, "batch_size": 32, "lr": 3e-4},
        lambdas={},
        experts={name: {**settings, "epochs": 0.5} for name, settings in EXPERTS.items()},
    ),
}
# a sweep repeats a shorter training; world, CLIP, experts and labels are those of mini
SIZES["sweep"] = replace(SIZES["mini"], tune={**SIZES["mini"].tune, "epochs": 1.0})
SIZES["tune"] = SIZES["mini"]
