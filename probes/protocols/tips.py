"""TIPSv2's zero-shot segmentation of ADE20K: windows of 448 px, and the values of the last block
in place of its attention.

Source: ``pytorch/TIPS_zeroshot_segmentation.ipynb`` of github.com/google-deepmind/tips, which
follows TCL (Cha, Mun, Roh, CVPR 2023) in its windows and prompts, and MaskCLIP in its values
(``backbones.adapters.open_clip``). A backbone needs a text encoder and patches in its space, which
none of the suite's adapters has for TIPSv2's own weights.
"""

from probes.registry import Preset, Protocol, register_protocol

register_protocol(
    Protocol(
        "tips",
        "TIPSv2, pytorch/TIPS_zeroshot_segmentation.ipynb of google-deepmind/tips",
        (
            Preset(
                "segmentation/open-vocabulary",
                {
                    "size": 448,
                    "resize": "short-side-bicubic",
                    "score_size": None,
                    "precision": "fp32",
                    "templates": "tcl",
                    "background": (),
                    "slide": (448, 336),
                },
                ("ade20k",),
            ),
        ),
        commit="4db271d",
    )
)
