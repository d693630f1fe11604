"""CAPI's segmentation without training of a backbone: k-NN and logistic regression on patches.

Source: Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling",
2025, and ``eval_segmentation.py`` of github.com/facebookresearch/capi: its defaults, which
``default_eval_config.yaml`` does not change.
"""

from __future__ import annotations

from probes.protocols.base import Difference, Preset, Protocol, register_protocol

SHARED = {
    "size": 224,
    "layers": "last",
    "feature_stride": None,
    "memory": 100_000_000,
}

register_protocol(
    Protocol(
        "capi",
        "CAPI (Darcet et al. 2025), eval_segmentation.py of facebookresearch/capi",
        (
            Preset(
                "segmentation/patch-knn",
                {**SHARED, "neighbours": (1, 3, 10, 30), "distances": ("cosine", "l2")},
            ),
            Preset(
                "segmentation/logreg",
                {
                    **SHARED,
                    "c": tuple(10.0 ** (-6 + 11 * step / 7) for step in range(8)),
                    "iterations": 1000,
                    "tolerance": 1e-12,
                },
            ),
        ),
        differs=(
            Difference(
                (),
                "images and label maps are resized to squares of 224 px, and scored there; "
                "here the aspect ratio is kept, and labels are scored at their own resolution",
            ),
            Difference(
                (),
                "a random tenth of train is held out, here a tenth by content; its chosen "
                "setting is fitted on the other nine tenths, here on all",
            ),
            Difference(
                (),
                "neighbours pass on their labels pixel by pixel, and the logistic regression "
                "one label per patch",
            ),
            Difference(
                (),
                "on ADE20K its k-NN computes in bfloat16, and its mIoU is over the classes "
                "that occur",
            ),
        ),
        commit="98b4fa1",
    )
)
