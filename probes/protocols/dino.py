"""DINO's propagation of masks through the videos of DAVIS 2017.

Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, and
``eval_video_segmentation.py`` of github.com/facebookresearch/dino; scored by
github.com/davisvideochallenge/davis2017-evaluation at ac7c43f.
"""

from probes.registry import Preset, Protocol, register_protocol

register_protocol(
    Protocol(
        "dino",
        "DINO (Caron et al. 2021), eval_video_segmentation.py of facebookresearch/dino",
        (
            Preset(
                "video/label-propagation",
                {
                    "size": 480,
                    "resize": "dino",
                    "precision": "fp32",
                    "layers": "last",
                    "previous_frames": 7,
                    "neighbourhood": "square",
                    "radius": 12,
                    "neighbours": 5,
                    "temperature": 0.1,
                    "upsampling": "bilinear",
                },
                datasets=("davis",),
            ),
        ),
        differs={
            "": {
                "normalised black": (
                    "frames of every backbone have ImageNet's mean and deviation, of red 0.228,"
                    " here its own"
                ),
                "patches of 14": (
                    "frames are 480 × 832 whatever the patch, which patches of 14 do not divide,"
                    " here both sides are rounded up to whole patches (490 × 840)"
                ),
            }
        },
        commit="7c446df",
    )
)
