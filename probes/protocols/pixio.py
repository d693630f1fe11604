"""Pixio's probes of a frozen backbone: ADE20K, VOC 2012 and NYU Depth v2, linear and DPT, and k-NN.

Source: Yang et al., "In Pursuit of Pixel Supervision for Visual Pre-training", 2025, and
``evaluation`` of github.com/facebookresearch/pixio: ``eval_semseg.py``, ``eval_monodepth.py``,
their configs, data and models; ``eval_knn.py``.

60 epochs of crops of 256 px, on eight GPUs; images are tested as large as they are, in windows of
256 px. Each patch has the class token (of Pixio the mean of its eight). VOC has the 10,582 images
of ``trainaug``, NYU 24,231 images; masks of ADE20K and VOC are those that its README links to.
"""

from probes.registry import (
    ADAMW,
    NEIGHBOURS,
    NORMALISED_BLACK,
    TRAINAUG,
    Preset,
    Protocol,
    register_protocol,
)

EIGEN = (45, 471, 41, 601)
SHARED = {
    **ADAMW,
    "size": 0,
    "crop": (256, 256),
    "colours": "none",
    "weight_decay": 0.01,
    "schedule": "pixio",
    "class_token": "concat",
    "align_corners": True,
    "slide": (256, 170),
    "slide_padded": True,
}
SEGMENTATION = {
    **SHARED,
    "interpolation": "pillow-bicubic",
    "scale_range": (0.5, 2.0),
    "padding": "black",
    "max_class_share": 1.0,
    "loss_mean": "labelled",
    "warmup": 0.0,
}
# an epoch leaves out what does not fill a batch on each GPU
ADE20K = {**SEGMENTATION, "max_iters": 75_780, "batch_size": 16, "loss_images": 2}
VOC = {**SEGMENTATION, "max_iters": 19_800, "batch_size": 32, "loss_images": 4}
NYU = {
    **SHARED,
    "train_area": EIGEN,
    "test_area": EIGEN,
    "scale_range": (1.0, 1.0),
    "rotation": 0.0,
    "bins": 0,
    "silog_lambda": 0.5,
    "max_iters": 45_420,
    "batch_size": 32,
    "loss_images": 4,
    "warmup": 0.1,
}
HEADS = {
    "linear": {"lr": 2e-4, "layers": "last", "dropout_first": False},
    "dpt": {
        "lr": 1e-4,
        "layers": "all",
        "channels": 256,
        "dpt_widths": (256, 512, 1024, 1024),
        "dpt_norm": False,
    },
}
DENSE = tuple(
    preset
    for head, own in HEADS.items()
    for preset in (
        Preset(f"segmentation/{head}", {**ADE20K, **own}, ("ade20k",)),
        Preset(f"segmentation/{head}", {**VOC, **own}, ("voc",), **TRAINAUG),
        Preset(
            f"depth/{head}",
            {**NYU, **own},
            ("nyu-depth",),
            {"split": "24k/654"},
            images={"train": 24_231},
        ),
    )
)

KNN = Preset(
    "classification/knn",
    {**NEIGHBOURS, "size": 256, "neighbours": (10, 20, 100, 200)},
)

register_protocol(
    Protocol(
        "pixio",
        "Pixio (Yang et al. 2025), evaluation of facebookresearch/pixio",
        (*DENSE, KNN),
        differs={
            "classification/knn": {
                "chosen_on": (
                    "the number of neighbours is chosen on val, here on a held-out part of train"
                ),
                "precision": "the backbone computes in bf16, here in fp32 (--set precision=bf16)",
                "image": (
                    "images are resized to 256 px and cropped to 256, here as the backbone's own"
                    " transform does (78 % of the ten nearest neighbours of EfficientNet-Lite0 are"
                    " shared)"
                ),
                "class tokens": (
                    "class tokens are averaged before the backbone's final norm, here after it"
                    " (82 % of the ten nearest neighbours are shared)"
                ),
            },
            "": {
                **NORMALISED_BLACK,
                "validations": "the best of 60 validations on val is reported, here the last",
                "backbone precision": (
                    "the backbone computes in bf16, here in fp32 (--set precision=bf16)"
                ),
                "initial weights": (
                    "layers start with torch's random weights, here the last one with a deviation"
                    " of 0.01, and depth with a bias of -1.1"
                ),
                "mIoU with an absent class": (
                    "classes that are in neither labels nor predictions count as 0, here not at all"
                    " (none on the full ADE20K and VOC)"
                ),
                "output": (
                    "depth is 10 m times a sigmoid, here 1 mm and 9.999 m times a sigmoid (at most"
                    " 1 mm)"
                ),
                "scored pixels": (
                    "depths of exactly 1 mm and 10 m are scored, and images with less than ten"
                    " pixels are left out"
                ),
            },
        },
        commit="b83555d",
    )
)
