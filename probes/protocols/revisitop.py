"""Revisited Oxford and Paris: cropped queries, and the scores of rankings.

Source: Radenović, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris", CVPR 2018, and
``python/{evaluate,example_evaluate,example_process_images}.py`` of
github.com/filipradenovic/revisitop. It says how to crop queries and how to score, not how to encode
images. With its features ``roxford5k_resnet_rsfm120k_gem.mat`` its README has 84.81 (easy), 64.67
(medium) and 38.47 (hard).
"""

from probes.registry import Preset, Protocol, register_protocol

register_protocol(
    Protocol(
        "revisitop",
        "Revisiting Oxford and Paris (Radenović et al. 2018), python/ of filipradenovic/revisitop",
        (
            Preset(
                "instance-retrieval/retrieval", {"crop_queries": True}, ("roxford5k", "rparis6k")
            ),
        ),
        differs={
            "": {
                "encoding": (
                    "features are the network's own there, of several scales and whitened; here the"
                    " embedding of one size"
                )
            }
        },
        commit="be39832",
    )
)
