"""VisBench's linear probes of depth, normals, segmentation and classification.

Source: VisBench 0.27.0 (pypi.org/project/visbench): ``scripts/build_corpus.sh`` (the commands of
its boards), ``tasks/{schedule,dense_base}.py``, ``tasks/mid_level/{depth,surface_normal}.py``,
``tasks/high_level/{semantic_segmentation,classification}.py``, ``heads/linear.py``,
``data/dense.py``, ``metrics/{dense,classification}.py`` and ``backbones``.

One 1 × 1 convolution on the last map; images and ground truth are the central square at 224 px, in
training and in testing. AdamW, 10 epochs of batches of 8 with 1.5 of warm-up, then a cosine to
zero; depth and normals have the outputs and losses of probe3d's mended code. Its numbers of them
are means over images (``normal_image_mean`` …).

Classification is one linear layer on one embedding of each image, 200 epochs of AdamW at a constant
rate. Its board of scenes has 100 images of each class of Places365.
"""

from typing import Any

from probes.registry import ADAMW, HEAD_PRECISION, Preset, Protocol, register_protocol

SQUARE = ("square",)
DENSE = {
    **ADAMW,
    "size": 224,
    "train_area": SQUARE,
    "test_area": SQUARE,
    "crop": (224, 224),
    "scale_range": (1.0, 1.0),
    "interpolation": "pillow-bicubic",
    "max_class_share": 1.0,
    "enlarge": 1.0,
    "colours": "none",
    "flip": 0.0,
    "shuffle": True,
    "batch_size": 8,
    "loss_images": None,
    "lr": 5e-4,
    "weight_decay": 1e-4,
    "decay_all": True,
    "schedule": "cosine",
    "min_lr": 0.0,
    "class_token": "none",
    "align_corners": False,
    "linear_norm": False,
}


def _length(images: int) -> dict[str, Any]:
    """Ten passes, of which 1.5 are warm-up: its first step is the n-th part of the rate."""
    steps = -(-images // DENSE["batch_size"])
    warm = float(int(1.5 * steps))
    return {"max_iters": 10 * steps, "warmup": warm, "warmup_start": 1 / warm}


BINS = {"bins": 256, "bins_read": "pixels", "bins_loss": "probe3d-gradient"}
NYU: dict[str, Any] = {"data": {"split": "official 795/654"}}
DEPTH = Preset(
    "depth/linear",
    {**DENSE, **_length(795), **BINS, "rotation": 0.0},
    ("nyu-depth",),
    **NYU,
)
NORMALS = Preset(
    "normals/linear",
    {**DENSE, **_length(795), "uncertainty": True, "mask": "normals"},
    ("nyu-normal",),
    **NYU,
)
SEGMENTATION = Preset(
    "segmentation/linear",
    {**DENSE, **_length(1464), "loss_mean": "labelled"},
    ("voc",),
    data={"train_list": "train"},
)
CLASSIFICATION = {
    "size": 224,
    "precision": "fp32",
    "features": "pre_projection",
    "solver": "adamw",
    "epochs": 200,
    "batch_size": 256,
    "learning_rates": (1e-2,),
    "weight_decays": (1e-4,),
    "standardise": False,
    "random_crops": False,
}
SCENES = Preset("classification/linear", CLASSIFICATION, ("places365",), images={"train": 36_500})
GEOMETRY = {
    "scored size": "its square of 224 px is scored, here that of the ground truth's own resolution",
    "central square": (
        "images are resized before the square is cut out, here after it (its edges move by up to"
        " 0.6 of 224 px)"
    ),
    "nearest pixels": (
        "ground truth to learn from is sampled at the upper left corners of pixels, here at their"
        " centres (half a pixel of the file)"
    ),
    "initial weights": (
        "the convolution starts as torch makes it, here with weights of σ = 0.01 and normals that"
        " face the camera"
    ),
}
LAST_BATCH = {
    "last batch": (
        "the last batch of a pass has the images that are left, here batches go on into the next"
        " pass"
    ),
    "scores without valid pixels": "an image without valid pixels counts as 0, here not at all",
}

register_protocol(
    Protocol(
        "visbench",
        "VisBench 0.27.0 (pypi.org/project/visbench), scripts/build_corpus.sh and visbench/tasks",
        (DEPTH, NORMALS, SEGMENTATION, SCENES),
        differs={
            "": {
                "training images of a record": (
                    "its records do not say which images a head was trained on, nor how many"
                ),
                **HEAD_PRECISION,
            },
            "depth/linear": {
                **GEOMETRY,
                **LAST_BATCH,
                "test depth": "depth is not rounded, here to 1 mm",
                "learned pixels": "depths of up to 1 mm are learned, here not (none on NYU)",
                "scored pixels": (
                    "depths of up to 1 mm and of exactly 10 m are scored, here not (none expected"
                    " on NYU)"
                ),
            },
            "normals/linear": {
                **GEOMETRY,
                **LAST_BATCH,
                "loss of small angles": "angles below 0.81° have no gradient, here below 0.08°",
                "stored normals": (
                    "normals are not rounded, here their components to 1/127.5 (0.2° a pixel)"
                ),
                "pixels without a normal": (
                    "its copy has a normal at each pixel, also where depth is unknown (28 %), here"
                    " those of the copy count"
                ),
            },
            "segmentation/linear": GEOMETRY,
            "classification/linear": {
                "initial weights": "the layer starts as torch makes it, here with zeros",
                "embedding of ConvNeXt": (
                    "it is the mean of the last map, here also through the norm of its classifier"
                ),
                "image": (
                    "the short side is resized to 224 px for every backbone, here as its own"
                    " transform does (of timm's a tenth more is cut off)"
                ),
                "training images": (
                    "the first 100 images of each class of train, here all of the copy"
                ),
            },
        },
        commit="0.27.0",
    )
)
