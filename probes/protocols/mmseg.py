"""MMSegmentation's recipes for VOC 2012 (40k iterations) and ADE20K (160k): DeepLabv3, PSPNet, DPT.

Source: ``models/{deeplabv3,pspnet}_r50-d8.py``, ``datasets/{ade20k,pascal_voc12_aug}.py`` and
``schedules/schedule_{40,80,160}k.py`` under ``configs/_base_`` of onedl-mmsegmentation, which goes
on from github.com/open-mmlab/mmsegmentation 1.x: SGD 0.01 with momentum 0.9, weight decay 5e-4,
``poly`` 0.9 down to 1e-4, 16 images of 512 × 512, photometric distortion; the head on the last
stage at stride 8. It has ADE20K at 80k too (``--set max_iters=80000``). For other datasets: 40k.
``configs/dpt``: AdamW 6e-5, ``poly`` 1.0 after 1,500 iterations of warm-up; four blocks with the
class token. On VOC it trains on the 10,582 images of ``trainaug``.

The auxiliary head, which trains the backbone's third stage, is not used: the backbone is frozen.
"""

from probes.registry import (
    ADAMW,
    CROPS_512,
    HEAD_PRECISION,
    NORMALISED_BLACK,
    TRAINAUG,
    TRAINED_ON_IMAGES,
    Preset,
    Protocol,
    register_protocol,
)

IMAGES = {**CROPS_512, "colours": "mmseg", "schedule": "poly"}
SGD = {
    **TRAINED_ON_IMAGES,
    **IMAGES,
    "optimizer": "sgd",
    "lr": 0.01,
    "weight_decay": 5e-4,
    "min_lr": 1e-4,
    "warmup": 0.0,
    "feature_stride": 8,
    "channels": 512,
    "dropout": 0.1,
}
POLY_ADAMW = {
    **ADAMW,
    **IMAGES,
    "power": 1.0,
    "min_lr": 0.0,
    "warmup_start": 1e-6,
}
DPT = {
    **POLY_ADAMW,
    "max_iters": 160_000,
    "lr": 6e-5,
    "weight_decay": 0.01,
    "warmup": 1_500 / 160_000,
    "layers": "all",
    "class_token": "project",
    "channels": 256,
    "dropout": 0.1,
}
LENGTHS = {("voc",): 40_000, ("ade20k",): 160_000, (): 40_000}

HEADS = tuple(
    Preset(
        f"segmentation/{head}",
        {**SGD, "max_iters": length, "padding": "black" if "voc" in datasets else "mean"},
        datasets,
        **(TRAINAUG if "voc" in datasets else {}),
    )
    for head in ("deeplabv3", "pspnet")
    for datasets, length in LENGTHS.items()
)

register_protocol(
    Protocol(
        "mmseg",
        "MMSegmentation, configs/{deeplabv3,pspnet,dpt} and configs/_base_ of"
        " onedl-mmsegmentation 1.4.2",
        (*HEADS, Preset("segmentation/dpt", DPT, ("ade20k",))),
        differs={
            "": {
                **NORMALISED_BLACK,
                "backbone": (
                    "the backbone is trained too, that of DeepLabv3 and PSPNet dilated to stride 8"
                    " and with an auxiliary head on its third stage"
                ),
                **HEAD_PRECISION,
                "padding": (
                    "crops on ADE20K are padded with the mean colour, here with it as whole numbers"
                    " (at most 0.009 of a standard deviation)"
                ),
            },
            "segmentation/dpt": {
                "final norm": "DPT's maps have not passed the backbone's final norm",
            },
        },
        commit="v1.4.2",
        version=2,
    )
)
