"""An image has the same maps whatever it is in a batch with, so that training sees what evaluation
does."""

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope

from probes.detection.coco import CocoInstances
from probes.detection.models import detection_config
from probes.detection.settings import MaskRCNNSettings
from probes.registry import PROBES
from tests.probes import tiny_coco
from tests.probes.tiny_mmlab import context

pytestmark = pytest.mark.integration

SETTINGS = MaskRCNNSettings(
    batch_size=4, short_side=64, long_side=96, out_channels=16, fc_out_channels=16
)


@pytest.fixture
def data(tmp_path):
    return tiny_coco.prepared(tiny_coco.write(tmp_path / "shapes", train=10, val=6))


@pytest.mark.parametrize("backbone", ["random/timm/test_vit", "random/timm/test_resnet"])
def test_maps_of_a_batch_of_several_shapes_are_those_of_each_image_alone(tmp_path, data, backbone):
    config = detection_config(
        PROBES["detection/mask-rcnn"], context(tmp_path / "w", data, SETTINGS, backbone)
    )
    with DefaultScope.overwrite_default_scope("mmdet"), torch.no_grad():
        model, images = (
            MODELS.build(config.model).eval(),
            DATASETS.build(config.train_dataloader.dataset),
        )
        items = [images[index] for index in range(4)]
        batch = model.data_preprocessor(pseudo_collate(items), training=True)
        together = model.extract_feat(batch["inputs"])
        assert len({tuple(image.shape) for image in batch["inputs"]}) == 2
        one_size = {sample.batch_input_shape for sample in batch["data_samples"]}
        assert (
            len(one_size) == 1
            and len({sample.gt_instances.masks.width for sample in batch["data_samples"]}) == 1
        )
        for row, item in enumerate(items):
            alone = model.data_preprocessor(pseudo_collate([item]), training=False)
            for level, own in zip(together, model.extract_feat(alone["inputs"]), strict=True):
                height, width = own.shape[-2:]
                torch.testing.assert_close(
                    level[row, :, :height, :width], own[0], rtol=1e-4, atol=1e-5
                )
                assert not level[row, :, height:].any() and not level[row, :, :, width:].any()


class Sizes:
    """A dataset of which only the images' sizes are asked."""

    def __init__(self, wide, aspect_groups):
        self.wide, self.aspect_groups = wide, aspect_groups

    def __len__(self):
        return len(self.wide)

    def get_data_info(self, index):
        return {"width": 1 + self.wide[index], "height": 2}

    def arrange(self, order, position):
        return CocoInstances.arrange(self, order, position)


def test_batches_are_those_of_mmdet():
    images = Sizes(np.random.default_rng(1).random(50) < 0.5, 4)
    order, buckets, expected = np.random.default_rng(2).permutation(50), {False: [], True: []}, []
    for index in order[3:]:  # 3 samples complete a batch that was begun
        bucket = buckets[bool(images.wide[index])]
        bucket.append(int(index))
        if len(bucket) == 4:
            expected += bucket
            bucket.clear()
    expected += buckets[False] + buckets[True]
    assert images.arrange(order, 13).tolist() == [*order[:3].tolist(), *expected]
    images.aspect_groups = 0
    assert images.arrange(order, 13) is order
