"""TIPS' fields: its notebook for zero-shot segmentation on small images, with features and texts
that need no model, and its value attention on a tiny ViT. Of the notebook only definitions, and
the cell that scores, are executed.
"""

from __future__ import annotations

import ast
import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

import probes.catalog  # noqa: F401
from backbones.adapters.open_clip import encode_dense
from backbones.backbone import DataConfig
from cliptex_common.settings import with_changes
from probes.datasets.base import PreparedDataset
from probes.dense.patches import open_vocabulary
from probes.dense.patches.images import PatchImages, TextSpaceEncoder
from probes.dense.patches.pixels import Patches, average_windows, windows
from probes.dense.pipelines import ShortSide
from probes.image_level.text import embed_names, templates_for
from probes.registry import DATASETS, PROBES, find_preset
from tests.probes.tiny_mmlab import context
from tests.protocols import segmented

PROBE = "segmentation/open-vocabulary"
SMALL, STRIDE = 112, 84  # of the windows that small images are scored with
NUMBERS = range(3)  # of the images
SIZES = [(448, 448), (449, 448), (448, 1000), (700, 448), (785, 1500), (300, 450), (200, 300)]
IMAGES = [(683, 512), (512, 683), (500, 375), (300, 1001), (448, 448)]  # width, height
SAMPLE = slice(3, None, 9)
TOLERANCE = {"mIoU": 0.05, "values": 1e-5}  # values: processors differ in the last bits
VIT = {"patch_size": 8, "width": 32, "layers": 2, "heads": 2, "image_size": 32}
DEFINITIONS = (
    *("ADE20K_CLASS_NAMES", "NORMALIZE_TIPS", "_SUB_IMAGENET_PROMPTS", "_TCL_PROMPTS"),
    *("PROMPT_TEMPLATES", "MAX_SEQ_LEN", "image_size", "mode", "stride"),
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def class_names() -> tuple[str, ...]:
    return DATASETS["ade20k"].class_names(Path())


def class_texts() -> Tensor:
    """(classes, D) what the embeddings of a class' prompts have in common."""
    return normalize(random(len(class_names()), 6), dim=1)


def embed(texts: Iterable[str]) -> Tensor:
    """(texts, D) embeddings that follow from a prompt and the class it names."""
    rows = []
    for text in texts:
        matches = [name for name in class_names() if name in text]
        row = class_texts()[class_names().index(max(matches, key=len))]
        rows.append(row + random(6, seed=zlib.crc32(text.encode())) / 9)
    return torch.stack(rows)


def write(root: Path) -> None:
    """ADE20K's validation images (PNG files, which need no decoder of JPEG) and their labels: the
    classes whose texts are nearest to the features, under a stripe of void."""
    for folder in ("images", "annotations"):
        (root / folder / "validation").mkdir(parents=True)
    for number in NUMBERS:
        image, stored = segmented.picture(number, 0)
        pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].float() / 255
        scores = normalize(segmented.features(pixels), dim=1)[0]
        labels = torch.einsum("cd,dhw->chw", class_texts(), scores).argmax(dim=0).numpy()
        labels = Image.fromarray((labels + 1).astype(np.uint8)).resize(image.size, Image.NEAREST)
        labels = np.where(np.asarray(stored) == 0, 0, np.asarray(labels))
        image.save(root / f"images/validation/{number}.jpg", "PNG")
        Image.fromarray(labels).save(root / f"annotations/validation/{number}.png")


# ---------------------------------------------------------------- the source


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    names, scoring = _read_notebook(checkout / "pytorch/TIPS_zeroshot_segmentation.ipynb")
    settings = {
        "size": names["image_size"],
        "slide": [names["image_size"], names["stride"]] if names["mode"] == "slide" else [],
        "class names": names["ADE20K_CLASS_NAMES"],
        "prompts": [text.format("pool table") for text in names["PROMPT_TEMPLATES"]],
        "normalisation": [names["NORMALIZE_TIPS"].mean, names["NORMALIZE_TIPS"].std],
        "image sizes": [_source_size(names, *size) for size in IMAGES],
        "windows": [_source_windows(names, *size) for size in SIZES],
        "values": _source_values(names),
        "averaged windows": _source_average(names),
    }
    return {PROBE: {**settings, **_source_scores(names, scoring)}}


def _read_notebook(path: Path) -> tuple[dict[str, Any], Any]:
    """The notebook's names, and the code of its last cell."""
    notebook = json.loads(path.read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"device": "cpu"}
    trees = []
    for cell in cells:
        code = re.sub(r"^( *)!.*$", r"\1pass", cell, flags=re.MULTILINE)  # shell commands
        code = code.replace('"cuda"', '"cpu"')
        trees.append(ast.parse(code))
    for number, tree in enumerate(trees[:-1]):
        nodes = [node for node in tree.body if _is_definition(node, with_imports=number == 1)]
        with mock.patch.dict("sys.modules", {"gdown": SimpleNamespace()}):
            exec(compile(ast.Module(nodes, []), str(path), "exec"), names)
    return names, compile(trees[-1], str(path), "exec")


def _is_definition(node: ast.stmt, with_imports: bool) -> bool:
    if isinstance(node, ast.Assign):
        return all(isinstance(each, ast.Name) and each.id in DEFINITIONS for each in node.targets)
    imports = (ast.Import, ast.ImportFrom) if with_imports else ()
    return isinstance(node, (ast.FunctionDef, ast.ClassDef, *imports))


def _source_size(names: dict[str, Any], width: int, height: int) -> tuple[int, int]:
    cubic = names["TVT"].InterpolationMode.BICUBIC
    resize = names["ShortSideResize"](names["image_size"], cubic)
    return resize(Image.new("L", (width, height))).size


def _source_windows(names: dict[str, Any], height: int, width: int) -> list[list[int]]:
    """(top, bottom, left, right) of the windows of an image whose pixels are their positions."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    boxes = []

    def read(_model: Any, window: Tensor, _texts: Tensor) -> Tensor:
        first, last = window[:, 0, 0].tolist(), window[:, -1, -1].tolist()
        boxes.append([first[0], last[0] + 1, first[1], last[1] + 1])
        return torch.zeros(1, 1, 1)

    with mock.patch.dict(names, {"predict_whole": read}):
        image = torch.stack([rows, columns])
        names["predict_slide"](None, image, torch.zeros(1, 1), names["image_size"], names["stride"])
    return boxes


def _source_average(names: dict[str, Any]) -> Tensor:
    scores = iter(_scores())
    with mock.patch.dict(names, {"predict_whole": lambda *_: next(scores)}):
        image = torch.zeros(3, 40, 70)
        return names["predict_slide"](None, image, torch.zeros(5, 1), 32, 24)[:, SAMPLE, SAMPLE]


def _source_values(names: dict[str, Any]) -> list[Tensor]:
    from pytorch import image_encoder

    model = image_encoder.VisionTransformer(
        img_size=VIT["image_size"],
        patch_size=VIT["patch_size"],
        embed_dim=VIT["width"],
        depth=VIT["layers"],
        num_heads=VIT["heads"],
        block_chunks=0,
        init_values=1.0,
        interpolate_antialias=True,
        interpolate_offset=0.0,
    )
    renamed = {"patch_embed.proj.bias": torch.zeros(VIT["width"]), "mask_token": model.mask_token}
    theirs = {
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1": "patch_embed.proj",
        "transformer.resblocks": "blocks",
        "in_proj_weight": "qkv.weight",
        "in_proj_bias": "qkv.bias",
        "out_proj": "proj",
        "ln_post": "norm",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "ls_1": "ls1",
        "ls_2": "ls2",
    }
    for name, value in _tower().state_dict().items():
        for ours, their in theirs.items():
            name = name.replace(ours, their)
        renamed[name] = value
    del renamed["proj"]  # the identity
    shapes = model.state_dict()
    model.load_state_dict({name: value.view_as(shapes[name]) for name, value in renamed.items()})
    with torch.no_grad():
        maps = [names["encode_image_value_attention"](model.eval(), image) for image in _images()]
    return [each.permute(0, 3, 1, 2)[:, ::5] for each in maps]


def _source_scores(names: dict[str, Any], scoring: Any) -> dict[str, Any]:
    """What the last cell makes of images, labels and texts."""
    prompts: list[str] = []

    def tokenize(texts: Sequence[str]) -> Any:
        prompts.extend(texts)
        return SimpleNamespace(to_list=lambda: [[prompts.index(text)] for text in texts])

    changes = {
        "image_size": SMALL,
        "stride": STRIDE,
        "tokenizer": SimpleNamespace(tokenize=tokenize),
        "model_text": lambda ids, _: embed(prompts[each] for each in ids[:, 0]),
        "model_image": None,
        "encode_image_value_attention": lambda _, images: segmented.features(images).permute(
            0, 2, 3, 1
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        with mock.patch.dict(names, {**changes, "ADE20K_DIR": folder}):
            exec(scoring, names)
            image, labels = names["dataset"][0]
            return {
                "image": image[:, SAMPLE, SAMPLE],
                "labels": labels[SAMPLE, SAMPLE],
                "text features": names["text_feats"][::15],
                "label map": names["pred"][SAMPLE, SAMPLE],
                "mIoU": 100 * names["miou"],
                "precision": {torch.float32: "fp32"}[names["img"].dtype],
            }


# ---------------------------------------------------------------- inputs of both


def _scores() -> Tensor:
    """(windows, classes, h, w) of an image of 40 × 70 px in windows of 32 px at stride 24."""
    return random(6, 5, 4, 4, seed=1) / 3


def _images() -> list[Tensor]:
    """One that patches divide, and one that is enlarged."""
    return [random(2, 3, 32, 32, seed=2), random(2, 3, 27, 30, seed=3)]


def _tower() -> VisionTransformer:
    """open_clip's ViT, without what TIPS' has not."""
    options = {"mlp_ratio": 4, "ls_init_value": 1.0, "output_dim": VIT["width"], "no_ln_pre": True}
    tower = VisionTransformer(**VIT, **options, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    for seed, (name, parameter) in enumerate(sorted(tower.named_parameters())):
        parameter.data = random(*parameter.shape, seed=seed) * (0.3 if parameter.ndim > 1 else 1)
        if name == "proj":
            parameter.data = torch.eye(VIT["width"])
    return tower.eval()


# ---------------------------------------------------------------- the suite


class TextTower(segmented.Projection):
    """Features and texts of one space."""

    has_text = has_dense_text = True

    def __init__(self) -> None:
        super().__init__("golden-projection")
        self.data = DataConfig((224, 224), (0.0,) * 3, (1.0,) * 3)

    def encode_dense(self, images: Tensor) -> Tensor:
        return segmented.features(images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return embed(texts)


def suite() -> dict[str, dict[str, Any]]:
    spec = DATASETS["ade20k"]
    preset = find_preset("tips", spec, PROBES[PROBE]).settings
    settings = with_changes(PROBES[PROBE].settings_type(), preset)
    boxes = [windows(size, settings.slide) for size in SIZES]
    tower = SimpleNamespace(divisor=VIT["patch_size"], encode_dense=partial(encode_dense, _tower()))
    encoder = TextSpaceEncoder(tower, settings.precision, (VIT["image_size"],) * 2)
    trained = timm.get_pretrained_cfg("vit_large_patch14_reg1_tipsv2")
    with torch.no_grad():
        values = [encoder(image)[0][:, ::5] for image in _images()]
    with tempfile.TemporaryDirectory() as folder:
        scores = _suite_scores(Path(folder), settings)
    fields = {
        "size": settings.size,
        "slide": settings.slide,
        "class names": class_names(),
        "prompts": [fill("pool table") for fill in templates_for(settings.templates, spec)[1]],
        "normalisation": [trained.mean, trained.std],
        "image sizes": [ShortSide(settings.size).new_size(*size) for size in IMAGES],
        "windows": [[[*_ends(y), *_ends(x)] for y, x in each] for each in boxes],
        "values": values,
        "averaged windows": average_windows(_scores(), (40, 70), (32, 24))[:, SAMPLE, SAMPLE],
        "precision": settings.precision,
    }
    return {PROBE: {**fields, **scores}}


def _ends(part: slice) -> tuple[int, int]:
    return part.start, part.stop


def _suite_scores(folder: Path, settings: Any) -> dict[str, Any]:
    write(folder)
    spec = DATASETS["ade20k"]
    data = PreparedDataset(spec.name, folder, {"val": spec.list_samples(folder, "val")}, "golden")
    settings = replace(settings, size=SMALL, slide=(SMALL, STRIDE))
    task = context(folder / "work", data, settings, "golden-projection")
    task = replace(task, backbone=TextTower())
    maps: list[Tensor] = []
    score = open_vocabulary.evaluate_patches

    def evaluate(context: Any, images: PatchImages, predict: Any, notes: Any) -> Any:
        def recorded(group: Sequence[Patches]) -> Iterator[Tensor]:
            for patches, labels in zip(group, predict(group), strict=True):
                maps.append((patches.index, labels))
                yield labels

        return score(context, images, recorded, notes)

    with mock.patch.object(open_vocabulary, "evaluate_patches", evaluate):
        result = open_vocabulary.run(task)
    images = PatchImages(task, "val", TextSpaceEncoder(task.backbone, "fp32", settings.slide))
    patches = next(each for each in images.walk() if each.index == 0)
    templates = templates_for(settings.templates, spec)[1]
    return {
        "image": images.dataset.load(0)["inputs"][:, SAMPLE, SAMPLE] / 255,
        "labels": images.labels(patches)[SAMPLE, SAMPLE],
        "text features": embed_names(task, class_names(), templates)[::15],
        "label map": max(maps)[1][SAMPLE, SAMPLE],
        "mIoU": result.metrics["mIoU"],
    }
