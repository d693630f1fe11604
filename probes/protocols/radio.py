"""RADIO's linear probe of ADE20K.

Source: Ranzinger et al., "AM-RADIO: Agglomerative Vision Foundation Model", CVPR 2024, and
``mmseg`` of github.com/NVlabs/RADIO: ``configs/radio/radio_linear_8xb2-80k_ade20k-512x512.py`` and
``linear_head.py``.

MMSegmentation's recipe for 80k iterations with AdamW: batch normalisation and one convolution on
the last map, without decay and dropout. With patches of 14 px crops are 518 px.
"""

from probes.protocols.mmseg import POLY_ADAMW
from probes.registry import NEIGHBOURS, Preset, Protocol, register_protocol

SEGMENTATION = Preset(
    "segmentation/linear",
    {
        **POLY_ADAMW,
        "interpolation": "bilinear",
        "padding": "black",
        "max_class_share": 0.75,
        "loss_images": None,
        "max_iters": 80_000,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "warmup": 1_500 / 80_000,
        "class_token": "none",
        "align_corners": False,
    },
    datasets=("ade20k",),
)
# at the resolution that the model prefers
KNN = Preset("classification/knn", {**NEIGHBOURS, "size": None, "neighbours": (20,)})

register_protocol(
    Protocol(
        "radio",
        "RADIO (Ranzinger et al. 2024), mmseg and examples/knn_classification.py of NVlabs/RADIO",
        (SEGMENTATION, KNN),
        differs={
            "classification/knn": {
                "image": (
                    "both sides of the resized image are rounded to multiples of 16 px before the"
                    " crop, here images are resized as the backbone's own transform does (94 % of"
                    " the ten nearest neighbours of EfficientNet-Lite0 are shared)"
                ),
                "class tokens": (
                    "the summaries of all teachers are concatenated, here (c-radio-b16,"
                    " c-radio-l16) the first class token is read (its effect is not measured)"
                ),
            },
            "": {
                "crop": (
                    "crops of 512 px are padded to 518 px for patches of 14, here they have 518 px"
                ),
                "edge of a class": (
                    "predictions of val are squeezed with their padding, here that is cut off"
                    " (perfect predictions would have 84.9 mIoU on CamVid; none with patches of 16)"
                ),
                "head precision": "its head computes in fp32, on a GPU that here in bf16",
            },
        },
        commit="c0f3701",
    )
)
