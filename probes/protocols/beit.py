"""BEiT's fine-tuning with UPerNet on ADE20K, 160,000 iterations (for ViTs of other pre-training,
too; MAE's differ in ``tune_rates`` 1e-4, ``layer_decay`` 0.65 and 512 px).

Source: ``beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py`` and what it builds on, under
``configs`` of onedl-mmsegmentation, which goes on from github.com/open-mmlab/mmsegmentation 1.x,
and its ``LayerDecayOptimizerConstructor``: AdamW 3e-5, weight decay 0.05, 0.9 times the rate from a
block to the one before, drop path 0.1, ``poly`` 1.0 after 1,500 iterations of warm-up, 16 images of
640 × 640, tested in windows of 640 px. UPerNet reads four blocks, rescaled to a pyramid.
"""

from probes.protocols.mmseg import POLY_ADAMW
from probes.registry import (
    HEAD_PRECISION,
    NORMALISED_BLACK,
    Preset,
    Protocol,
    register_protocol,
)

RATE = 3e-5

register_protocol(
    Protocol(
        "beit",
        "BEiT (Bao et al. 2022), configs/beit of onedl-mmsegmentation 1.4.2",
        (
            Preset(
                "segmentation/upernet",
                {
                    **POLY_ADAMW,
                    "tune": "all",
                    "tune_rates": (RATE,),
                    "layer_decay": 0.9,
                    "drop_path": 0.1,
                    "lr": RATE,
                    "weight_decay": 0.05,
                    "decay_all": False,
                    "max_iters": 160_000,
                    "warmup": 1_500 / 160_000,
                    "size": 640,
                    "crop": (640, 640),
                    "slide": (640, 426),
                    "padding": "mean",
                    "layers": "all",
                    "channels": 768,
                    "dropout": 0.1,
                },
                ("ade20k",),
            ),
        ),
        differs={
            "": {
                **NORMALISED_BLACK,
                **HEAD_PRECISION,
                "auxiliary head": (
                    "a second head on the third map adds 0.4 times its loss, here there is none"
                ),
                "blocks": "it reads the blocks 4, 6, 8 and 12 of 12, here 3, 6, 9 and 12",
                "final norm": "its maps have not passed the backbone's final norm",
                "decay": "its class token decays, too",
                "padding": (
                    "crops are padded with the mean colour, here with it as whole numbers (at most"
                    " 0.009 of a standard deviation)"
                ),
            },
        },
        commit="v1.4.2",
    )
)
