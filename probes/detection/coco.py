"""COCO's annotations of a dataset for mmdet, and detections scored by COCO's rules."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from mmengine.dataset import Compose
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS, TRANSFORMS, DefaultScope
from pycocotools import mask as mask_api
from pycocotools.cocoeval import COCOeval
from torch.utils.data import Sampler

from cliptex_common.errors import UserError
from probes.base import EncodeContext
from probes.detection.settings import STATS
from probes.features.maps import FeatureDataset, MapViews, flips, without_images
from probes.mmdet import mmdet

OF_IMAGES = ("LoadImageFromFile", "Resize")  # steps that decide an upright image
META_KEYS = ("img_id", "ori_shape", "img_shape", "scale_factor")
BITS = 1 << np.arange(10)  # one for each IoU threshold 0.5, 0.55 … 0.95


@TRANSFORMS.register_module()
class PackInstances(mmdet.datasets.transforms.PackDetInputs):
    """mmdet's, with the image as RGB: its preprocessor would swap channels on the device, by a list
    that is copied there for each image."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        return super().transform({**results, "img": results["img"][..., ::-1]})


class _OrderedCOCO(mmdet.datasets.api_wrappers.COCO):
    """An annotation file whose category ids have the order of the class names. mmdet numbers labels
    in the order of the file and names in the order of the config, which may differ."""

    def __init__(self, annotation_file: str) -> None:
        with redirect_stdout(io.StringIO()):
            super().__init__(annotation_file)

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Any = (), cat_ids: Any = ()
    ) -> list[int]:
        return category_ids(self.dataset, cat_names)


def category_ids(annotations: Mapping[str, Any], classes: Sequence[str]) -> list[int]:
    """COCO category id of each class.

    Raises:
        UserError: the file lacks a class; names it.
    """
    ids = {category["name"]: category["id"] for category in annotations.get("categories", [])}
    for name in classes:
        if name not in ids:
            raise UserError(
                f"the annotation file has no category {name!r}; it has {', '.join(sorted(ids))}"
            )
    return [ids[name] for name in classes]


@DATASETS.register_module()
class CocoInstances(FeatureDataset, mmdet.datasets.CocoDataset):
    """mmdet's ``CocoDataset`` on selected images; see ``FeatureDataset``.

    In ``test_mode`` images are sorted by their resized shapes, so that neighbours can be evaluated
    together.

    Args:
        example: id and path below ``data_root`` of one image, which tell where the file names of
            the annotations begin; they may have folders.
        image_ids: use only these images of the file; None for all.
        drop_empty: leave out images without an object that is not a crowd (for training).
        min_size: leave out images with a shorter side of less, pixels (for training).
        aspect_groups: batch size, to have batches of images that are all upright or all not (see
            ``arrange``); 0 for any order.
        encoder: see ``probes.features.maps.encoder_config``. Features are those of each
            image and, where the pipeline may flip it, of its mirror image.
        **kwargs: of ``CocoDataset``; ``metainfo`` must give the ``classes``.

    Attributes:
        dropped_empty: how many images ``drop_empty`` left out.

    Raises:
        UserError: a class is not in the file, or no image remains.
    """

    COCOAPI = _OrderedCOCO
    scope = "mmdet"

    def __init__(
        self,
        *,
        pipeline: Sequence[Mapping[str, Any]],
        example: tuple[int, str],
        image_ids: Sequence[int] | None = None,
        drop_empty: bool = False,
        min_size: int = 0,
        aspect_groups: int = 0,
        encoder: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.example, self.image_ids = example, image_ids
        self.drop_empty, self.dropped_empty = drop_empty, 0
        self.aspect_groups, self.min_size = aspect_groups, min_size
        self.encoder = encoder or {}
        self.flips = flips(
            next((step["prob"] for step in pipeline if step["type"] == "RandomFlip"), 0.0)
        )
        self.image_steps = [step for step in pipeline if step["type"] in OF_IMAGES]
        pack = {"type": "PackInstances", "meta_keys": META_KEYS}
        with DefaultScope.overwrite_default_scope(self.scope):
            self._load_target = Compose(without_images(pipeline))
            self._load_image = {
                flipped: Compose(
                    [*self.image_steps, {"type": "RandomFlip", "prob": float(flipped)}, pack]
                )
                for flipped in self.flips
            }
        super().__init__(pipeline=pipeline, **kwargs)
        self.name = Path(self.ann_file).stem

    def load_data_list(self) -> list[dict[str, Any]]:
        images = super().load_data_list()
        names = {
            image["img_id"]: os.path.relpath(image["img_path"], self.data_root) for image in images
        }
        image_id, path = self.example
        folder = path.removesuffix(names[image_id])
        for image in images:
            image["img_path"] = f"{self.data_root}/{folder}{names[image['img_id']]}"
        return images

    def filter_data(self) -> list[dict[str, Any]]:
        images = self.data_list
        if self.image_ids is not None:
            ids = set(self.image_ids)
            images = [image for image in images if image["img_id"] in ids]
        if self.drop_empty:
            occupied = [
                image
                for image in images
                if not all(instance["ignore_flag"] for instance in image["instances"])
            ]
            self.dropped_empty = len(images) - len(occupied)
            images = occupied
        images = [
            image for image in images if min(image["width"], image["height"]) >= self.min_size
        ]
        if not images:
            raise UserError(
                f"{self.ann_file} has no image with an object of the classes whose sides are"
                f" {self.min_size} px or more; check the classes and min_size"
            )
        return sorted(images, key=self._resized) if self.test_mode else images

    def prepare_data(self, idx: int) -> dict[str, Any] | None:
        if not self.encoder:
            return super().prepare_data(idx)
        sample = self.ground_truth(idx)
        if sample is None:  # no object remains on the image: mmengine takes another one
            return None
        item = idx * len(self.flips) + self.flips.index(bool(sample.get("flip", False)))
        store = self.feature_store()
        sample.set_metainfo({"pad_shape": tuple(store.metadata(item)["pad_shape"])})
        return {"inputs": tuple(store[item]), "data_samples": sample}

    def ground_truth(self, index: int) -> Any:
        packed = self._load_target(self.get_data_info(index))
        return packed and packed["data_samples"]

    def views(self, context: EncodeContext, frozen: Any = None) -> MapViews:
        sizes = [self.shape(index) for index in range(len(self)) for _ in self.flips]
        identity = {
            "images": self.image_hash(),
            "pipeline": self.image_steps,
            "flipped": self.flips,
        }
        return MapViews(context, self, sizes, identity, frozen)

    def load(self, item: int) -> dict[str, Any]:
        index, flipped = divmod(item, len(self.flips))
        return self._load_image[self.flips[flipped]](self.get_data_info(index))

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of an image after the pipeline's ``Resize``."""
        return self._resized(self.get_data_info(index))

    def _resized(self, image: Mapping[str, Any]) -> tuple[int, int]:
        size = image["width"], image["height"]
        for step in self.pipeline.transforms:
            if hasattr(step, "keep_ratio"):  # a resize of mmcv's or mmdet's
                size = mmcv.rescale_size(size, step.scale) if step.keep_ratio else step.scale
        return size[1], size[0]

    def arrange(self, order: np.ndarray, position: int) -> np.ndarray:
        """Arrange one epoch so that the images of a batch are all upright or all not, since such
        batches need less padding.

        By mmdet's ``AspectRatioBatchSampler``; the rest of an epoch is put together. The result
        follows from the arguments alone, so a training that is resumed, or read by other processes,
        has the same batches.

        Args:
            order: indices of images, each once.
            position: samples taken in earlier epochs; the first of this epoch complete the last
                batch.
        """
        if not self.aspect_groups:
            return order
        rest = -position % self.aspect_groups
        sampler = mmdet.datasets.samplers.AspectRatioBatchSampler
        batches = sampler(_InOrder(order[rest:], self), self.aspect_groups)
        return np.concatenate([order[:rest], *batches]).astype(order.dtype)


class _InOrder(Sampler):
    """Indices in a fixed order, with their dataset, as mmdet's sampler reads them."""

    def __init__(self, order: np.ndarray, dataset: CocoInstances) -> None:
        self.order, self.dataset = order, dataset

    def __iter__(self) -> Iterator[int]:
        return iter(self.order.tolist())


@METRICS.register_module()
class CocoMeanAP(BaseMetric):
    """COCO's box and mask average precision in per cent, over exactly the images that were
    predicted.

    The definition is that of pycocotools' ``COCOeval`` (IoU 0.5:0.95, 101 recall points, at most
    100 detections an image, crowds ignored), computed by faster-coco-eval. The area of a mask
    result is its mask's. A size without any object in the ground truth has no score and is left out
    of the result.

    Attributes:
        detections: COCO result list of the last evaluation (boxes x, y, width, height in pixels of
            the original image) with the matches of ``add_matches``.
        image_ids: of the predicted images, in their order.
        class_objects: (images, classes) int64, the objects of each class that are no crowd.
    """

    def __init__(self, ann_file: str, masks: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ann_file, self.masks = ann_file, masks
        self.detections: list[dict[str, Any]] = []
        self.image_ids: list[int] = []
        self.class_objects = np.empty((0, 0), np.int64)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        for sample in data_samples:
            predicted = sample["pred_instances"]
            corners = predicted["bboxes"].cpu().double()
            boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
            labels, scores = predicted["labels"].tolist(), predicted["scores"].tolist()
            image = int(sample["img_id"])
            detections: list[dict[str, Any]] = [
                {"image_id": image, "category_id": label, "bbox": box, "score": score}
                for label, box, score in zip(labels, boxes, scores, strict=True)
            ]
            if self.masks:
                masks = predicted["masks"].cpu().numpy()
                for detection, mask in zip(detections, masks, strict=True):
                    detection["segmentation"] = encode_mask(mask)
            self.results.append({"image_id": image, "detections": detections})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        ground_truth = COCO(self.ann_file)
        categories = category_ids(ground_truth.dataset, self.dataset_meta["classes"])
        self.image_ids = [result["image_id"] for result in results]
        self.detections = [
            {**detection, "category_id": categories[detection["category_id"]]}
            for result in results
            for detection in result["detections"]
        ]
        kinds, metrics = ("bbox", "segm") if self.masks else ("bbox",), dict[str, float]()
        # metrics of all images by faster-coco-eval, then matches of each image by pycocotools
        for kind in kinds:
            metrics |= mean_ap(ground_truth, self.detections, self.image_ids, categories, kind)
        self.class_objects = add_matches(
            ground_truth, self.detections, self.image_ids, categories, kinds
        )
        return metrics


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool → COCO's compressed run-length code, with ``counts`` as str (so that it fits
    JSON)."""
    code = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}


def mean_ap(
    ground_truth: COCO,
    detections: list[dict[str, Any]],
    image_ids: Sequence[int],
    categories: Sequence[int],
    kind: str,
) -> dict[str, float]:
    """``bbox_mAP`` … or ``segm_mAP`` … (as ``kind`` says) in per cent; sizes without ground truth
    are left out.

    Raises:
        UserError: the images have no object at all.
    """
    evaluation = COCOeval_faster(
        ground_truth,
        results_of(ground_truth, detections, kind),
        kind,
        print_function=lambda *_: None,
    )
    evaluation.params.imgIds = sorted(image_ids)
    evaluation.params.catIds = list(categories)
    evaluation.run()
    metrics = {
        f"{kind}_{name}": 100 * float(evaluation.stats[row]) for row, name in enumerate(STATS)
    }
    scored = {name: value for name, value in metrics.items() if value >= 0}
    if f"{kind}_mAP" not in scored:
        raise UserError(
            f"the {len(image_ids)} images to evaluate on have no object; there is nothing to score"
        )
    return scored


def add_matches(
    ground_truth: Any,
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    categories: Sequence[int],
    kinds: Sequence[str],
) -> np.ndarray:
    """Add the matches of pycocotools (areas of all sizes) to each detection, and count the objects.

    The matching of an image does not depend on other images, so a report knows the average
    precision of any resample of images from these matches, without the ground truth.

    A detection gets ``class`` (index of its category in ``categories``) and, for each kind
    (``bbox``, ``segm``), ``KIND_hits`` and ``KIND_ignored``: integers whose bit k is set where it
    is right, or not counted, at the k-th IoU threshold. COCO counts the hundred best detections of
    a class in an image; the others have ``class`` -1.

    Args:
        ground_truth: a ``COCO`` of pycocotools or faster-coco-eval; its masks become run-length
            codes.
        detections: COCO result list, changed in place.

    Returns:
        (images, categories) int64: objects that are no crowd, in the order of ``image_ids``.
    """
    rows = {image: row for row, image in enumerate(image_ids)}
    classes = {category: index for index, category in enumerate(categories)}
    counts = np.zeros((len(image_ids), len(categories)), np.int64)
    for detection in detections:
        detection["class"] = -1
    for kind in kinds:
        with redirect_stdout(io.StringIO()):
            evaluation = COCOeval(ground_truth, results_of(ground_truth, detections, kind), kind)
            evaluation.params.imgIds, evaluation.params.catIds = list(image_ids), list(categories)
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.evaluate()
        for image in filter(None, evaluation.evalImgs):
            class_index, ignored = classes[image["category_id"]], image["dtIgnore"].astype(bool)
            objects = len(image["gtIgnore"]) - sum(image["gtIgnore"])
            counts[rows[image["image_id"]], class_index] = objects
            hits = BITS @ ((image["dtMatches"] > 0) & ~ignored)
            for number, hit, ignore in zip(image["dtIds"], hits, BITS @ ignored, strict=True):
                detection = detections[number - 1]  # results are numbered in their order
                detection["class"] = class_index
                detection[f"{kind}_hits"], detection[f"{kind}_ignored"] = int(hit), int(ignore)
    return counts


def results_of(ground_truth: Any, detections: Sequence[dict[str, Any]], kind: str) -> Any:
    """A COCO result list as an object of the ground truth's type, without masks for ``bbox`` and
    without boxes for ``segm`` (so that the area of a result is its mask's)."""
    unused = "bbox" if kind == "segm" else "segmentation"
    if detections:
        return ground_truth.loadRes(
            [
                {name: detection[name] for name in detection if name != unused}
                for detection in detections
            ]
        )
    empty = type(ground_truth)()  # ``loadRes`` needs a result
    empty.dataset = {**ground_truth.dataset, "annotations": []}
    empty.createIndex()
    return empty
