"""MMDetection's 1x schedule of Mask R-CNN with an FPN on COCO.

Source:
``configs/_base_/{models/mask-rcnn_r50_fpn,datasets/coco_instance,schedules/schedule_1x}.py`` of
github.com/open-mmlab/mmdetection 3.x, as in onedl-mmdetection 3.5.1: SGD 0.02 with momentum 0.9 and
weight decay 1e-4 for 16 images, 500 iterations of warm-up, a tenth of the rate after 8 and after 11
of 12 epochs; 1333 × 800 px, batches by aspect ratio, images below 32 px left out.
"""

from probes.registry import Preset, Protocol, register_protocol

BATCH = 16
LENGTH = 12 * -(-117_266 // BATCH)  # the images of train2017 that have an object, 7,330 batches

# of Mask R-CNN in MMDetection and detectron2 alike
MASK_RCNN = {
    "flip": 0.5,
    "precision": "fp32",
    "aspect_ratio_groups": True,
    "out_channels": 256,
    "fc_out_channels": 1024,
    "anchor_scale": 8.0,
    "proposals": 1000,
    "rois_per_image": 512,
    "detections": 100,
    "cache": "none",
}

register_protocol(
    Protocol(
        "mmdet1x",
        "MMDetection 3.x, configs/_base_ of open-mmlab/mmdetection (mask-rcnn_r50_fpn,"
        " coco_instance, schedule_1x)",
        (
            Preset(
                "detection/mask-rcnn",
                {
                    **MASK_RCNN,
                    "max_iters": LENGTH,
                    "batch_size": BATCH,
                    "optimizer": "sgd",
                    "lr": 0.02,
                    "weight_decay": 1e-4,
                    "decay_all": True,
                    "clip_norm": 0.0,
                    "warmup": 500 / LENGTH,
                    "schedule": "steps",
                    "steps": (8 / 12, 11 / 12),
                    "short_side": 800,
                    "long_side": 1333,
                    "min_size": 32,
                },
                datasets=("coco",),
            ),
        ),
        differs={
            "": {
                "frozen": "its backbone is trained from the second stage on, here frozen",
                "fpn_norm": (
                    "its FPN is not normalised, here by groups, since the scale of frozen features"
                    " differs between backbones; a plain ViT has ViTDet's pyramid"
                ),
                "boxes_below_1_px": "boxes below 1 px are left out here",
            },
        },
        commit="v3.5.1",
        version=2,  # the last batch of an epoch counts
    )
)
