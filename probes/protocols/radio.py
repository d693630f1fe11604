"""RADIO's linear probe of ADE20K.

Source: Ranzinger et al., "AM-RADIO: Agglomerative Vision Foundation Model", CVPR 2024, and
``mmseg`` of github.com/NVlabs/RADIO: ``configs/radio/radio_linear_8xb2-80k_ade20k-512x512.py`` and
``linear_head.py``.

MMSegmentation's recipe for 80k iterations with AdamW: batch normalisation and one convolution on
the last map, without decay and dropout. With patches of 14 px crops are 518 px.
"""

from probes.protocols.base import TRAINED_ON_IMAGES, Difference, Preset, Protocol, register_protocol

SEGMENTATION = Preset(
    "segmentation/linear",
    {
        "size": 512,
        "interpolation": "bilinear",
        "crop": (512, 512),
        "scale_range": (0.5, 2.0),
        "padding": "black",
        "max_class_share": 0.75,
        "flip": 0.5,
        "colours": "mmseg",
        "loss_mean": "all",
        "loss_images": None,
        "max_iters": 80_000,
        "epochs": 0.0,
        "batch_size": 16,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "betas": (0.9, 0.999),
        "clip_norm": 0.0,
        "schedule": "poly",
        "power": 1.0,
        "min_lr": 0.0,
        "warmup": 1_500 / 80_000,
        "warmup_start": 1e-6,
        "precision": "fp32",
        "layers": "last",
        "class_token": "none",
        "feature_stride": None,
        "dropout": 0.0,
        "align_corners": False,
        "slide": (),
        **TRAINED_ON_IMAGES,
    },
    datasets=("ade20k",),
)

# at the resolution that the model prefers
KNN = Preset(
    "classification/knn",
    {
        "size": None,
        "precision": "fp32",
        "neighbours": (20,),
        "temperature": 0.07,
        "features": "projected",
    },
)

register_protocol(
    Protocol(
        "radio",
        "RADIO (Ranzinger et al. 2024), mmseg and examples/knn_classification.py of NVlabs/RADIO",
        (SEGMENTATION, KNN),
        differs=(
            Difference(
                "crop",
                "crops of 512 px are padded to 518 px for patches of 14, here they have 518 px",
            ),
            Difference(
                "edge of a class",
                "predictions of val are squeezed with their padding, here that is cut off",
                "perfect predictions would have 84.9 mIoU on CamVid; none with patches of 16",
            ),
            Difference("head precision", "its head computes in fp32, on a GPU that here in bf16"),
        ),
        commit="c0f3701",
    )
)
