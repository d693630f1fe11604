"""NAVI's own pairs of views, matched and scored as probe3d does.

Source: Jampani et al., "NAVI: Category-Agnostic Image Collections with High-Quality 3D Shape and
Pose Annotations", NeurIPS 2023, and github.com/google/navi, whose archive has the pairs
(``custom_splits/pairwise_pixel_correspondences/pairs-wild_set.txt``). These do not depend on the
order in which a disk lists files, as probe3d's do.
"""

from probes.protocols.probe3d import OBJECT_VIEWS
from probes.registry import Preset, Protocol, register_protocol

register_protocol(
    Protocol(
        "navi",
        "NAVI (Jampani et al. 2023), google/navi, custom_splits/pairwise_pixel_correspondences",
        (
            Preset(
                OBJECT_VIEWS.probe,
                {**OBJECT_VIEWS.settings, "pairs": "listed"},
                datasets=("navi",),
                required={"listed_pairs": "wild_set"},
            ),
        ),
        differs={
            "": {
                "matching": (
                    "it publishes pairs and no code that matches them, here they are matched and"
                    " scored as probe3d does"
                ),
            }
        },
        commit="3fcfd40",
    )
)
