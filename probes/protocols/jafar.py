"""The linear probe by which papers on upsamplers compare them, on VOC 2012 and ADE20K.

Source: Couairon et al., "JAFAR: Jack up Any Feature at Any Resolution", 2025, and
``evaluation/train_probes.py`` of github.com/PaulCouairon/JAFAR. AnyUp and NAF evaluate with copies
of it.

One convolution on features at the image's resolution, whatever brings them there: ``upsampler`` is
no part of the preset. Depth is scored against another network's predictions there, not here.
"""

from probes.registry import ADAMW, HEAD_PRECISION, Preset, Protocol, register_protocol

SETTINGS = {
    **ADAMW,
    "size": 448,
    "fixed_crops": 1,  # the centre
    "feature_stride": 1,
    "linear_norm": False,
    "class_token": "none",
    "loss_mean": "labelled",
    "loss_images": None,
    "align_corners": False,
    "lr": 5e-4,
    "weight_decay": 1e-5,
    "schedule": "cosine",
    "min_lr": 0.0,
    "warmup": 0.0,
    "epochs": 20.0,
    "batch_size": 2,
}

register_protocol(
    Protocol(
        "jafar",
        "JAFAR (Couairon et al. 2025), evaluation/train_probes.py of PaulCouairon/JAFAR",
        (
            Preset("segmentation/linear", SETTINGS, ("voc",), data={"train_list": "train"}),
            Preset("segmentation/linear", SETTINGS, ("ade20k",)),
        ),
        differs={
            "": {
                "schedule": (
                    "the cosine of the learning rate falls and rises every 20 iterations (its"
                    " length is in epochs, its steps are iterations), here it falls once; AnyUp"
                    " takes a step each epoch, NAF a length in iterations: three protocols"
                ),
                "test images": (
                    "images of val are cropped to a square of 448 px and scored there, here they"
                    " are complete and scored at their labels' own resolution"
                ),
                "resizing": (
                    "Pillow's bilinear and labels by nearest-exact, here OpenCV's bilinear and"
                    " nearest"
                ),
                "flip": "the images of a batch are mirrored together, here each by itself",
                "classes of ADE20K": "what is none of its 150 classes is one more, here unlabelled",
                **HEAD_PRECISION,
            },
        },
        commit="94d4d54",
    )
)
