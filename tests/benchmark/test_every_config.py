"""Every task that a suite ships, with the settings that it ships, on a CNN and on a plain ViT: its
config is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import benchmark.catalog  # noqa: F401
from benchmark.executor import decide_precision
from benchmark.options import RunOptions
from benchmark.suites import SUITES
from benchmark.tasks import PlannedTask, plan_tasks
from probes.datasets.base import DatasetSpec, PreparedDataset, Split
from probes.registry import find_task
from tests.probes import tiny_coco
from tests.probes.datasets import make, make_shifts
from tests.probes.datasets.make_sun_rgbd import make_sun_rgbd
from tests.probes.matching.layouts import make_davis, make_navi, make_poses, make_voc_objects
from tests.probes.tiny_mmlab import context

# isort: split
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, PARAM_SCHEDULERS, DefaultScope

pytestmark = pytest.mark.integration


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "VOCdevkit/VOC2012": make.make_voc,
    "ade/ADEChallengeData2016": make.make_ade,
    "camvid": make.make_camvid,
    "coco_stuff164k": make.make_coco_stuff,
    "coco": lambda root: tiny_coco.write(root, train=1),
    "cityscapes": make.make_cityscapes,
    "VOCdevkit/VOC2010": make.make_pascal_context,
    "kitti": make.make_kitti,
    "roxford5k": make.make_revisited,
    "rparis6k": lambda root: make.make_revisited(root, "rparis6k"),
    "AmsterTime": make.make_amstertime,
    "SPair-71k": make.make_spair,
    "DAVIS": make_davis,
    "navi_v1": make_navi,
    "nyu": make.make_nyu,
    "imagenet": make_shifts.make_imagenet,
    "sunrgbd": lambda root: [make_sun_rgbd(root), root][1],
    "imagenet-c": lambda root: make_shifts.make_shift(root, "imagenet-c", 1),
    "imagenet-ood": lambda root: make.make_imagefolder(root / "near/colours").parents[1],
    "places365": make.make_imagefolder,
    "imagefolder": make.make_imagefolder,
    "flickr30k": make.make_flickr,
    "flickr8k": lambda root: make.make_flickr(root, name="flickr8k"),
    "corners": make.make_imagefolder,
    "orientation": make.make_imagefolder,
    "homography-images": make.make_imagefolder,
    "BSR/BSDS500/data": make.make_bsds,
    "VOCdevkit/VOC2007": make.make_voc2007,
    "nights": make.make_nights,
    # datasets that share the folder of another one
    "voc-objects": make_voc_objects,
    "navi-multiview": make_poses,
    "nyu-40": make.make_nyu_40,
}


def different_tasks() -> dict[str, PlannedTask]:
    """One for each task and settings that are not only longer or shorter."""
    tasks, (precision, _) = {}, decide_precision(RunOptions())
    for suite in SUITES.values():
        for task in plan_tasks(suite, [], {}):
            task = task.with_precision(precision)
            settings = {**vars(task.settings), "max_iters": 0, "epochs": 0}
            key = (task.name, repr(settings))
            if task.spec.folder.startswith("wds_"):  # these differ in their name alone
                key = (task.spec.kind, task.probe.name)
            tasks.setdefault(key, (f"{suite.name}:{task.name}", task))
    return dict(tasks.values())


TASKS = different_tasks()
TUNED = {"tiny-cnn": "random/timm/test_resnet", "tiny-vit14": "random/timm/test_vit"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[DatasetSpec], PreparedDataset]:
    """Makes a tiny copy of a dataset in its layout, with its classes."""
    datasets: dict[str, PreparedDataset] = {}

    def prepare(spec: DatasetSpec) -> PreparedDataset:
        if spec.name not in datasets:
            is_wds = spec.folder.startswith("wds_")
            make_it = make.make_wds if is_wds else LAYOUTS.get(spec.name) or LAYOUTS[spec.folder]
            root = make_it(tmp_path_factory.mktemp(spec.name))
            if spec.kind == "association":
                (root / "instances.json").write_text(
                    '[{"cue": "a", "candidates": ["s0000000"], "associations": []}]'
                )
            for path in root.glob(
                "SegmentationClass*/*.png"
            ):  # labels that every dataset of this layout has
                make.save(path, np.zeros((40, 48), np.uint8))
            for file in spec.annotations.values() if spec.kind == "detection" else ():
                content, names = json.loads((root / file).read_text()), spec.class_names(root)
                content["categories"] = [
                    {"id": i, "name": name} for i, name in enumerate(names, start=1)
                ]
                for annotation in content["annotations"]:
                    annotation["category_id"] = 1 + annotation["id"] % len(names)
                (root / file).write_text(json.dumps(content))
            splits: Sequence[Split] = ("val",) if spec.trained_on else ("train", "val")
            samples = {split: spec.list_samples(root, split) for split in splits}
            datasets[spec.name] = PreparedDataset(spec.name, root, samples, partial=True)
        return datasets[spec.name]

    return prepare


@pytest.mark.parametrize("backbone", ["tiny-cnn", "tiny-vit14"])
@pytest.mark.parametrize("name", TASKS)
def test_every_config_is_built(
    prepared: Callable[[DatasetSpec], PreparedDataset], tmp_path: Path, name: str, backbone: str
) -> None:
    task = TASKS[name]
    if getattr(task.settings, "is_tuned", False):  # these have attention or 1×1 convolutions
        backbone = TUNED[backbone]
    data = prepared(task.spec)
    if task.spec.trained_on and task.scored_with:
        data = replace(data, trained_on=prepared(find_task(task.scored_with.name)[0]))
    probe_context = context(tmp_path, data, task.settings, backbone)
    text = task.probe.config(probe_context)
    if text.startswith("{"):
        settings = json.loads(text)["settings"]
        assert settings == json.loads(json.dumps(vars(task.settings)))
        return

    config = Config.fromstring(text, ".py")
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
        METRICS.build(config.val_evaluator)
        train, val = (
            DATASETS.build(loader.dataset)
            for loader in (config.train_dataloader, config.val_dataloader)
        )
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
        for schedule in config.param_scheduler:
            PARAM_SCHEDULERS.build({**schedule, "optimizer": wrapper.optimizer})
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) > 0
    assert len(train) == len(probe_context.training.data.samples["train"])
    assert len(val) == len(probe_context.data.samples["val"])
    for item in (train[0], val[0]):
        if isinstance(item["inputs"], tuple):  # kept feature maps, or tokens where a tier begins
            widths = {maps.shape[0 if maps.ndim == 3 else -1] for maps in item["inputs"]}
            # what is stored of a tier ends with an empty map of the image's size
            assert widths - {0} <= set(probe_context.backbone.channels)
            continue
        assert item["inputs"].shape[0] == 3
        assert min(item["inputs"].shape[1:]) >= 32
    assert config.train_cfg.max_iters == task.settings.max_iters
    assert config.train_dataloader.batch_size == task.settings.batch_size
