"""CAPI's fields: its ``eval_segmentation.py`` on small images, with features that need no model.

The source needs ``einops``, ``jaxtyping``, ``omegaconf`` and ``tabulate``. cuML, which needs a GPU,
is replaced by scikit-learn's logistic regression, which has the same objective.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from sklearn.preprocessing import StandardScaler

import probes.catalog  # noqa: F401
from benchmark.cell import computing_on
from cliptex_common.metrics import confusion
from cliptex_common.settings import with_changes
from probes.base import Context
from probes.dense.patches.images import PatchImages
from probes.dense.patches.knn import PatchKnn
from probes.dense.patches.logreg import fit, targets
from probes.dense.patches.memory import class_count, held_out_images, remember
from probes.dense.segmentation import segmentation_scores
from probes.image_level.linear import Standardiser
from probes.registry import PROBES, PROTOCOLS
from tests.probes.tiny_mmlab import context
from tests.protocols import capi_attentive, capi_choice, segmented, sources
from tests.protocols.fields import read_record
from tests.recorder import Recorder

KNN, LOGREG = "segmentation/patch-knn", "segmentation/logreg"
TRAIN, VAL = list(range(5)), [20, 21, 22]
PAIRS = ((1, "cosine"), (3, "l2"), (4, "cosine"), (10, "l2"))
STRENGTHS = (1e-4, 1e-2)
SAMPLE = slice(3, 224, 44)
# solvers differ, which moves a patch or two that two classes fit alike; a patch is 0.06 mIoU
TOLERANCE = {
    "mIoU": 0.1,
    **capi_choice.TOLERANCE,
    "predicted pixels": 5.0,
    "predicted patches": 2.0,
    **capi_attentive.TOLERANCE,
}


constructed: list[dict[str, Any]] = []  # options of the source's logistic regressions
fitted: list[Any] = []  # the source's logistic regressions
standardised: list[np.ndarray] = []  # features that the source standardises by


class Scaler(StandardScaler):
    def fit(self, rows: np.ndarray) -> Scaler:
        standardised.append(rows)
        return super().fit(rows)


def _logistic_regression(**options: Any) -> Any:
    constructed.append(options)
    fitted.append(sources.logistic_regression(**options))
    return fitted[-1]


class SourceImages(torch.utils.data.Dataset):
    def __init__(
        self, numbers: list[int], void: int, transform: Any, target_transform: Any
    ) -> None:
        self.numbers, self.void = numbers, void
        self.transforms = transform, target_transform

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        pair = segmented.picture(self.numbers[index], self.void)
        return tuple(make(each) for make, each in zip(self.transforms, pair, strict=True))


class SourceModel(torch.nn.Module):
    patch_size = segmented.PATCH

    def forward(self, images: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        return None, None, segmented.features(images).permute(0, 2, 3, 1)


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    with sources.capi(_logistic_regression):
        import eval_segmentation as code

        fields = {KNN: _source_knn(code), LOGREG: _source_logreg(code)}
        shared = _source_images(code) | _source_model(checkout)
    segmentation = {probe: {**shared, **each} for probe, each in fields.items()}
    return {**segmentation, capi_attentive.PROBE: capi_attentive.source()}


def _evaluate(
    code: ModuleType,
    void: int,
    classifier: str,
    options: Mapping[str, Any],
    val: list[int] = TRAIN,
) -> Any:
    """Results with mIoU in percent, how many pixels each label is predicted for, and the values
    that are fitted last.

    Args:
        val: pictures that values are chosen on, then trained on.
    """
    numbers = {"train": TRAIN, "val": val, "test": VAL}
    fitted_with: list[dict[str, Any]] = []
    fit = code.Classifier.fit

    def fit_and_note(self: Any, *arguments: Any) -> None:
        fitted_with.append({name: getattr(self, name) for name in self.hparam_grids})
        fit(self, *arguments)

    def make_dataset(dataset_str_or_path: str, **transforms: Any) -> SourceImages:
        return SourceImages(numbers[dataset_str_or_path], void, **transforms)

    with (
        mock.patch.object(code, "make_dataset", make_dataset),
        mock.patch.object(code.Classifier, "fit", fit_and_note),
        mock.patch.dict(code.standardizations, StandardScaler=Scaler),
        tempfile.TemporaryDirectory() as out,
    ):
        results = code.eval_model(
            SourceModel(),
            train_dataset_name="train",
            val_dataset_name="val",
            test_dataset_name="test",
            classifiers=(classifier,),
            classifiers_kwargs={classifier: dict(options)},
            num_workers=0,
            ignore_labels=(0, 255) if void == 0 else (255,),
            dump_predictions=True,
            output_dir=out,
        )
        predictions = torch.load(Path(out) / f"preds_{classifier}.pth")
    counts = predictions.flatten().bincount(minlength=256)
    results = {name: 100 * value for name, value in results.items() if "mIoU" in name}
    return results, [int(n) for n in counts if n], fitted_with[-1]


def _score(code: ModuleType, *arguments: Any) -> tuple[float, list[int]]:
    """mIoU in percent, and how many pixels each label is predicted for."""
    results, counts, _ = _evaluate(code, *arguments)
    return results[f"labels_{arguments[1]}_mIoU"], counts


def _source_knn(code: ModuleType) -> dict[str, Any]:
    scores = {}
    for void in segmented.VOID.values():
        for neighbours, distance in PAIRS:
            options = {
                "device": "cpu",
                "num_neighbors": (neighbours,),
                "distance": ("L2" if distance == "l2" else distance,),
            }
            scores[f"{void} {neighbours} {distance}"] = _score(code, void, "knn", options)
    import omegaconf

    config = omegaconf.OmegaConf.load(Path(code.__file__).with_name("default_eval_config.yaml"))
    defaults = _defaults(code.KNNClassifier)
    return {
        "mIoU": {key: miou for key, (miou, _) in scores.items()},
        "predicted pixels": {key: counts for key, (_, counts) in scores.items()},
        **capi_choice.source_knn(partial(_evaluate, code, 255)),
        "neighbours": defaults["num_neighbors"],
        "distances": [each.lower() for each in defaults["distance"]],
        "precision on ADE20K": config.seg_ade20k.classifiers_kwargs.knn.dtype,
    }


def _source_logreg(code: ModuleType) -> dict[str, Any]:
    scores, classes = {}, {}
    for void in segmented.VOID.values():
        for c in STRENGTHS:
            scores[f"{void} {c:g}"] = _score(code, void, "logreg", {"C": (c,)})
        classes[str(void)] = len(fitted[-1].classes_)
    defaults = _defaults(code.LogregClassifier)
    return {
        **capi_choice.source_logreg(partial(_evaluate, code, 255)),
        "mIoU": {key: miou for key, (miou, _) in scores.items()},
        "predicted patches": {key: _patches(counts) for key, (_, counts) in scores.items()},
        "fitted classes": classes,
        "strengths": defaults["C"],
        "iterations": defaults["max_iter"][0],
        "tolerance": defaults["tol"][0],
        "gradients remembered": defaults["lbfgs_hessian_rank"][0],
        "line search": defaults["linesearch_max_iter"][0],
        "warm start": constructed[-1].get("warm_start", False),
    }


def _patches(pixels: list[int]) -> list[float]:
    return [count / segmented.PATCH**2 for count in pixels]


def _defaults(function: Any) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


def _source_images(code: ModuleType) -> dict[str, Any]:
    """What an image and its labels become, the held-out part, the moments of features."""
    captured: dict[str, Any] = {}

    def make_dataset(dataset_str_or_path: str, **transforms: Any) -> SourceImages:
        return captured.setdefault("images", SourceImages(list(range(20)), 255, **transforms))

    def subset(_: Any, indices: list[int]) -> Any:
        captured.setdefault("held out", indices)
        return None

    class Enough(Exception):
        pass

    def extract(*_: Any, **__: Any) -> None:
        raise Enough

    np.random.seed(0)
    with (
        mock.patch.object(code, "make_dataset", make_dataset),
        mock.patch.object(code, "extract_features", extract),
        mock.patch.object(torch.utils.data, "Subset", subset),
        suppress(Enough),
    ):
        code.eval_model(SourceModel())
    image, labels = captured["images"][3]
    return {
        "image": image[:, SAMPLE, SAMPLE],
        "labels": labels[SAMPLE, SAMPLE],
        "number of held-out images": len(captured["held out"]),
        "held-out images": sorted(captured["held out"]),
        "features": str(standardised[-1].dtype),
        "patches to standardise by": len(standardised[-1]),
        "TF32": "matmul.allow_tf32 = True" in inspect.getsource(import_module("utils").base_setup),
        "normalised black": captured["images"].transforms[0](Image.new("RGB", (8, 8)))[:, 0, 0],
        "precision": str(_defaults(code.eval_model)["autocast_dtype"]).removeprefix("torch."),
    }


def _source_model(checkout: Path) -> dict[str, Any]:
    """Which of the encoder's outputs a small CAPI model evaluates, and what of it."""
    import model
    from omegaconf import OmegaConf

    config = OmegaConf.load(checkout / "default_pretrain_config.yaml").model
    config.embed_dim, config.n_blocks = 64, 3
    network = model.EncoderDecoder(**_small(config, model.EncoderDecoder)).eval()
    network.init_weights()
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    blocks = len(network.encoder.blocks)
    with torch.inference_mode():
        _, _, patches = network(images)
        tokens, _ = network.forward_features(images, None, None, enc_layer=blocks, dec_layer=None)
    last = tokens[:, network.num_prefix_tokens :].view_as(patches)
    return {
        "last layer after the final norm": bool(torch.equal(patches, last)),
        "class token": patches.shape[-1] != network.embed_dim,
    }


def _small(config: Any, kind: Any) -> dict[str, Any]:
    return {name: config[name] for name in inspect.signature(kind).parameters if name in config}


def suite() -> dict[str, dict[str, Any]]:
    presets = {preset.probe: preset.settings for preset in PROTOCOLS["capi"].presets}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"CLIPTEX_HOME": folder}),
    ):
        prepare = partial(_prepare, Path(folder), presets)
        shared = _suite_images(prepare)
        order = read_record("capi")["fields"][capi_attentive.PROBE]["order"]
        return {
            KNN: {**shared, **_suite_knn(prepare, presets[KNN])},
            LOGREG: {**shared, **_suite_logreg(prepare, presets[LOGREG])},
            capi_attentive.PROBE: capi_attentive.suite(order),
        }


def _prepare(
    folder: Path,
    presets: Mapping[str, Any],
    probe: str,
    dataset: str,
    train: list[int],
    backbone: str = "golden-projection",
    **changes: Any,
) -> Context:
    data = segmented.write(folder / f"{dataset}-{len(train)}", dataset, train, VAL)
    settings = with_changes(PROBES[probe].settings_type(), {**presets[probe], **changes})
    return context(folder / "work", data, settings, backbone, Recorder())


def _scores(task: Context, predict: Any) -> list[Any]:
    """For each candidate mIoU in percent, and how many pixels each label is predicted for."""
    images = PatchImages(task, "val")
    totals: list[Any] = []
    for patches in images.walk():
        labels = images.labels(patches)
        for number, prediction in enumerate(predict(patches)):
            counts = confusion(prediction, labels, class_count(task), 255)
            pixels = prediction.flatten().bincount(minlength=class_count(task))
            if number == len(totals):
                totals.append((0, 0))
            totals[number] = totals[number][0] + counts, totals[number][1] + pixels
    results = []
    for counts, pixels in totals:
        areas = {
            "intersection": counts.diagonal(),
            "prediction": counts.sum(dim=0),
            "label": counts.sum(dim=1),
        }
        miou = segmentation_scores({name: each.numpy() for name, each in areas.items()})[0]["mIoU"]
        if task.data.spec.label_offset:
            pixels = pixels.roll(1)
        results.append((miou, [int(n) for n in pixels if n]))
    return results


def _suite_knn(prepare: Any, preset: Mapping[str, Any]) -> dict[str, Any]:
    scores = {}
    for dataset, void in segmented.VOID.items():
        task = prepare(KNN, dataset, TRAIN + TRAIN)
        memory = remember(task, pixels=True)
        voters = {
            distance: PatchKnn(memory, Standardiser.fit(memory.features), distance, task)
            for distance in ("cosine", "l2")
        }

        def predict(patches: Any, voters: Any = voters) -> Iterator[torch.Tensor]:
            for neighbours, distance in PAIRS:
                ((prediction,),) = voters[distance].label_maps([patches], [neighbours])
                yield prediction

        for (neighbours, distance), score in zip(PAIRS, _scores(task, predict), strict=True):
            scores[f"{void} {neighbours} {distance}"] = score
    return {
        "mIoU": {key: miou for key, (miou, _) in scores.items()},
        "predicted pixels": {key: counts for key, (_, counts) in scores.items()},
        **capi_choice.suite_knn(partial(prepare, KNN, "golden-void-255"), TRAIN),
        "neighbours": preset["neighbours"],
        "distances": preset["distances"],
        "precision on ADE20K": "float32",
    }


def _suite_logreg(prepare: Any, preset: Mapping[str, Any]) -> dict[str, Any]:
    scores, classes, options, steps = {}, {}, {}, []
    original, lbfgs = torch.optim.LBFGS, import_module("torch.optim.lbfgs")
    search = lbfgs._strong_wolfe

    def strong_wolfe(*arguments: Any, **settings: Any) -> Any:
        steps.append(settings["max_ls"])
        return search(*arguments, **settings)

    def optimizer(parameters: Any, **settings: Any) -> Any:
        options.update(settings)
        return original(parameters, **settings)

    for dataset, void in segmented.VOID.items():
        task = prepare(LOGREG, dataset, TRAIN + TRAIN)
        memory = remember(task)
        standardise = Standardiser.fit(memory.features)
        labels = targets(memory, task)
        for c in STRENGTHS:
            with (
                mock.patch.object(torch.optim, "LBFGS", optimizer),
                mock.patch.object(lbfgs, "_strong_wolfe", strong_wolfe),
            ):
                model = fit(memory.features, labels, c, task.settings, None, standardise)

            predict = partial(_maps, model, standardise, task.settings)
            (scores[f"{void} {c:g}"],) = _scores(task, predict)
        classes[str(void)] = len(model.classes)
    return {
        **capi_choice.suite_logreg(partial(prepare, LOGREG, "golden-void-255"), TRAIN),
        "mIoU": {key: miou for key, (miou, _) in scores.items()},
        "predicted patches": {key: _patches(counts) for key, (_, counts) in scores.items()},
        "fitted classes": classes,
        "strengths": preset["c"],
        "iterations": options["max_iter"],
        "tolerance": options["tolerance_grad"],
        "gradients remembered": options["history_size"],
        "line search": max(steps),
        "warm start": preset["warm_start"],
    }


def _maps(model: Any, standardise: Any, settings: Any, patches: Any) -> list[torch.Tensor]:
    return [model.label_map(patches, standardise, settings)]


def _products_may_be_rounded() -> bool:
    with computing_on(torch.device("cpu")):
        return torch.get_float32_matmul_precision() != "highest"


def _suite_images(prepare: Any) -> dict[str, Any]:
    memory = remember(prepare(KNN, "golden-void-255", TRAIN + TRAIN))
    task = prepare(KNN, "golden-void-255", list(range(20)))
    images = PatchImages(task, "train")
    packed = images.dataset.load(3)["inputs"].float()
    mean, std = (
        255 * torch.tensor(each)[:, None, None] for each in (segmented.MEAN, segmented.STD)
    )
    (patches,) = images.walk([3])
    held_out = held_out_images(task)
    frozen = images.dataset.encoder["backbone"]
    return {
        "image": ((packed - mean) / std)[:, SAMPLE, SAMPLE],
        "labels": images.labels(patches)[SAMPLE, SAMPLE],
        "number of held-out images": len(held_out),
        "held-out images": held_out,
        "features": str(images.dtype).removeprefix("torch."),
        "patches to standardise by": len(memory),
        "normalised black": segmented.normalised_black(
            prepare(KNN, "golden-void-255", TRAIN, backbone="tiny-vit")
        ),
        "TF32": _products_may_be_rounded(),
        "precision": capi_attentive.PRECISIONS[task.settings.precision],
        "last layer after the final norm": frozen["out_indices"] == [-1],
        "class token": patches.features.shape[1] != task.backbone.channels[-1],
    }
