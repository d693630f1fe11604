"""ViTDet: Mask R-CNN on a plain ViT-B, fine-tuned on COCO for 100 epochs.

Source: Li, Mao, Girshick, He, "Exploring Plain Vision Transformer Backbones for Object Detection",
ECCV 2022, and ``projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py``,
``configs/common/{optim,models/mask_rcnn_vitdet}.py`` and ``get_vit_lr_decay_rate`` of
github.com/facebookresearch/detectron2: AdamW 1e-4, weight decay 0.1, 0.7 times the rate from a
block to the one before, drop path 0.1, 250 iterations of warm-up, a tenth of the rate at 8/9 and at
26/27 of 184,375 iterations of 64 images, at 1024 px. For ViT-L: ``layer_decay`` 0.8, ``drop_path``
0.4.
"""

from probes.protocols.mmdet1x import MASK_RCNN
from probes.registry import Preset, Protocol, register_protocol

LENGTH, RATE = 184_375, 1e-4

register_protocol(
    Protocol(
        "vitdet",
        "ViTDet (Li et al. 2022), projects/ViTDet of facebookresearch/detectron2",
        (
            Preset(
                "detection/mask-rcnn",
                {
                    **MASK_RCNN,
                    "tune": "all",
                    "tune_rates": (RATE,),
                    "layer_decay": 0.7,
                    "drop_path": 0.1,
                    "max_iters": LENGTH,
                    "batch_size": 64,
                    "optimizer": "adamw",
                    "lr": RATE,
                    "weight_decay": 0.1,
                    "betas": (0.9, 0.999),
                    "decay_all": False,
                    "clip_norm": 0.0,
                    "warmup": 251,  # LinearLR reaches the rate an iteration early
                    "warmup_start": 1e-3,
                    "schedule": "steps",
                    "steps": (163_889 / LENGTH, 177_546 / LENGTH),
                    "short_side": 1024,
                    "long_side": 1024,
                    "min_size": 0,
                },
                datasets=("coco",),
            ),
        ),
        differs={
            "": {
                "scale jitter": (
                    "training images are resized by 0.1 to 2 times 1024 px and cropped to that,"
                    " here to 1024 px"
                ),
                "attention": (
                    "its ViT attends in windows of 14 patches in eight of twelve blocks and has"
                    " relative positions, here the backbone is as it is"
                ),
                "heads": (
                    "the box head has four convolutions and one fully connected layer, the RPN two"
                    " convolutions, all with layer norms; here MMDetection's two fully connected"
                    " layers and one convolution, and groups are normalised"
                ),
                "decay": "biases decay, too, and the class token, which it has not, does not",
                "precision": "the network computes in float16, here in float32",
            },
        },
        commit="02b5c4e",
    )
)
