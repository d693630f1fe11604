"""DINOv2's linear classification, of ImageNet-1k (for other datasets the same length).

Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, and
``dinov2/eval/linear.py``, ``dinov2/eval/utils.py`` and ``dinov2/data/transforms.py`` of
github.com/facebookresearch/dinov2.

52 heads on one frozen pass: 13 learning rates (for a batch of 256) × the class tokens of the last 1
or 4 blocks × without or with the mean of the last patch tokens; 10 epochs of 1,250 iterations of
1,024 images, ``RandomResizedCrop`` and a flip. For a network without blocks, which the source has
not, averages of the last feature maps replace class tokens.
"""

from probes.registry import NORMALISED_BLACK, Preset, Protocol, register_protocol

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)

LINEAR = Preset(
    "classification/linear",
    {
        "size": 224,
        "precision": "fp32",
        "random_crops": True,
        "epochs": 10,
        "epoch_length": 1_250,
        "batch_size": 1_024,
        "momentum": 0.9,
        "learning_rates": RATES,
        "weight_decays": (0.0,),
        "blocks": (1, 4),
        "average_pool": (False, True),
        "standardise": False,
        "features": "projected",
        "holdout": 0.02,
    },
)

register_protocol(
    Protocol(
        "dinov2",
        "DINOv2 (Oquab et al. 2024), dinov2/eval/linear.py of facebookresearch/dinov2",
        (LINEAR,),
        differs={
            "": {
                "chosen_on": (
                    "it chooses the best head on val, here on the 2 % of train that no head is"
                    " trained on"
                ),
                "val_resize": (
                    "val is resized to 256 and cropped to 224, here as the backbone's own transform"
                    " does (which is the same for dinov2-b14)"
                ),
                **NORMALISED_BLACK,
                "precision": "its backbone computes in float16, here in float32",
            },
        },
        commit="b8931f7",
        version=2,
    )
)
