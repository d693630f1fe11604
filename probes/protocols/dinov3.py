"""DINOv3's linear probes for dense tasks, ADE20K and NYU Depth v2, and its propagation of masks.

Source: Siméoni et al., "DINOv3", 2025, and ``dinov3/eval/{segmentation,depth}`` of
github.com/facebookresearch/dinov3: ``segmentation/config.py`` and
``configs/config-ade20k-linear-training.yaml``; ``depth/config.py``, ``depth/models``. They
were read, not copied, since their licence differs. ``notebooks/segmentation_tracking.ipynb`` has
the propagation.

A linear head on the last layer, which (of a ViT) has passed the backbone's own final norm, without
the class token. What the paper and its files leave open is the probe's own default.
"""

from probes.registry import (
    ADAMW,
    CROPS_512,
    HEAD_PRECISION,
    NORMALISED_BLACK,
    Preset,
    Protocol,
    register_protocol,
)

SHARED = {
    "padding": "mean",
    "enlarge": 1.0,
    "decay_all": True,
    "shuffle": True,
    "align_corners": False,
    "test_area": (),
    "class_token": "none",
}

SEGMENTATION = Preset(
    "segmentation/linear",
    {
        **ADAMW,
        **CROPS_512,
        **SHARED,
        "interpolation": "pillow-bilinear",
        "colours": "dinov3",
        "max_iters": 40_000,
        "lr": 1e-3,
        "weight_decay": 1e-3,
        "schedule": "dinov3-segmentation",
        "warmup": 1_500 / 40_000,
        "dropout": 0.1,
        "dropout_first": True,
        "slide": (512, 341),
        "max_class_share": 0.75,
        "loss_images": None,
        "slide_padded": False,
    },
    datasets=("ade20k",),
)

DEPTH = Preset(
    "depth/linear",
    {
        **ADAMW,
        **SHARED,
        "size": 0,
        "train_area": (45, 472, 43, 608),
        "crop": (416, 544),
        "scale_range": (1.0, 1.0),
        "rotation": 2.5,
        "colours": "dinov3-depth",
        "max_iters": 38_400,
        "batch_size": 16,
        "lr": 3e-4,
        "weight_decay": 1e-4,
        "betas": (0.9, 0.99),
        "clip_norm": 35.0,
        "schedule": "dinov3-depth",
        "warmup": 12_800 / 38_400,
        "bins": 256,
        "loss_images": 2,
        "sig_warmup": 100,
        "flip_test": True,
        "bins_loss": "sig",
    },
    datasets=("nyu-depth",),
    data={"split": "24k/654"},
    images={"train": 24_231},
)

VIDEO = Preset(
    "video/label-propagation",
    {
        "size": 960,
        "resize": "dinov3",
        "precision": "fp32",
        "layers": "last",
        "previous_frames": 7,
        "neighbourhood": "circle",
        "radius": 12,
        "neighbours": 5,
        "temperature": 0.2,
        "upsampling": "nearest",
    },
    datasets=("davis",),
)

register_protocol(
    Protocol(
        "dinov3",
        "DINOv3 (Siméoni et al. 2025), dinov3/eval/segmentation, dinov3/eval/depth and"
        " notebooks/segmentation_tracking.ipynb of facebookresearch/dinov3",
        (SEGMENTATION, DEPTH, VIDEO),
        differs={
            "": {
                **NORMALISED_BLACK,
                "final norm of ConvNeXt": (
                    "the last map of a ConvNeXt passes its final norm, here it does not"
                ),
            },
            "segmentation/linear": {
                **HEAD_PRECISION,
                "validations": (
                    "the best of eight validations on val is reported, here the last is scored"
                ),
                "images that a pass leaves out": (
                    "a pass leaves out the images that fill no batch, here they are in the next one"
                ),
                "test sizes": (
                    "the long side of images has no limit, here it is at most four times the short"
                    " one, in training, too (none on usual photographs)"
                ),
                "resized labels": (
                    "resized labels are read at the corner of a pixel, here at its middle"
                ),
                "padding": (
                    "crops are padded with the mean colour, here with it as whole numbers (at most"
                    " 0.009 of a standard deviation)"
                ),
            },
            "video/label-propagation": {
                "published numbers": (
                    "its model card names no protocol for DAVIS, here it is that of the notebook"
                ),
                "object that fills the frame": (
                    "an object that fills the whole frame becomes background, here it stays"
                ),
            },
            "depth/linear": {
                **HEAD_PRECISION,
                "turned image": (
                    "images are turned as real numbers, here by OpenCV, whose weights are multiples"
                    " of 1/32, to whole numbers, and mixed with black at their edges in another way"
                ),
                "trained pixels": (
                    "all known depths are trained on, here those in the range that is scored"
                ),
                "padding to patches of 14": (
                    "images that are no whole number of patches are padded on all sides, and the"
                    " prediction of all is squeezed into the image; here images are padded at the"
                    " right and the bottom, which is cut off, and crops to train on are enlarged"
                    " (none with patches of 16)"
                ),
                "backbone in training": (
                    "for the first 1,600 iterations a ViT's positions are rescaled at random, here"
                    " never"
                ),
            },
        },
        commit="6876159",
        version=3,
    )
)
