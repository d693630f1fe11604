"""NIGHTS as DreamSim's evaluation reads and scores it.

Source: Fu, Tamir, Sundaram et al., "DreamSim", NeurIPS 2023, and ``evaluation/score.py``,
``dataset/dataset.py`` and ``dreamsim/model.py`` of github.com/ssundaram21/dreamsim. Of its
networks, DINO, DINOv2, MAE and SynCLR are read at the class token (``cls``), CLIP at its embedding
(``embedding``; here ``features=projected``), those called ``patch`` at both (``cls_patch``; here
``features=both``). Its README's 96.2 (ensemble) to 93.6 (CLIP B/32) on the test split are of
networks that were trained on NIGHTS.
"""

from probes.registry import Preset, Protocol, register_protocol

register_protocol(
    Protocol(
        "dreamsim",
        "DreamSim (Fu, Tamir, Sundaram et al. 2023), evaluation/score.py of ssundaram21/dreamsim",
        (Preset("triplets/2afc", {"size": 224, "features": "class"}),),
        differs={
            "": {
                "tokens": "read before the final norm there, through it here",
                "interpolation": "bicubic for every network there, here the backbone's own",
            }
        },
        commit="db4d16c",
    )
)
