"""Hummingbird's in-context segmentation: attention over the nearest of ten million training
patches.

Source: Balažević et al., "Towards In-context Scene Understanding", NeurIPS 2023, as reproduced by
github.com/vpariza/open-hummingbird-eval: README.md (sizes, memory of 1024·10⁴) and
``hbird/hbird_eval.py``.
"""

from __future__ import annotations

from probes.protocols.base import Difference, Preset, Protocol, register_protocol

register_protocol(
    Protocol(
        "hummingbird",
        "Hummingbird (Balažević et al. 2023), as in vpariza/open-hummingbird-eval",
        (
            Preset(
                "segmentation/in-context",
                {
                    "size": 512,
                    "layers": "last",
                    "feature_stride": None,
                    "memory": 10_240_000,
                    "neighbours": 30,
                    "temperature": 0.02,
                },
            ),
        ),
        differs=(
            Difference(
                (),
                "the memory is filled from two passes of random crops and flips over train, "
                "here from one of whole images",
            ),
            Difference(
                (),
                "patches of classes that are rare in an image are more likely to be "
                "remembered, here all are equally likely",
            ),
            Difference(
                (),
                "images are squares of 512 px (504 with patches of 14); here the aspect ratio "
                "is kept",
            ),
            Difference(
                (),
                "pixels without a label count as background in the memory, here they are ignored",
            ),
            Difference((), "neighbours are searched approximately (ScaNN, FAISS), here exactly"),
        ),
        commit="5e79da2",
    )
)
