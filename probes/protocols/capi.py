"""CAPI's segmentation by k-NN and logistic regression on patches, and its attentive classification.

Source: Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling",
2025, and ``eval_segmentation.py`` and ``eval_classification.py`` of
github.com/facebookresearch/capi with ``default_eval_config.yaml``. That configuration has ADE20K
and ImageNet-1k alone; on other datasets only the recipe is CAPI's.
"""

from __future__ import annotations

from probes.protocols.base import Difference, Preset, Protocol, register_protocol

SHARED = {
    "size": 224,
    "precision": "fp32",
    "resize": "square-bicubic",
    "score_size": 224,
    "layers": "last",
    "feature_stride": None,
    "memory": 100_000_000,
    "void": "vote",
    "votes": "pixels",
    "held_out": None,
}

# for a batch of 256
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)

register_protocol(
    Protocol(
        "capi",
        "CAPI (Darcet et al. 2025), eval_segmentation.py and eval_classification.py of"
        " facebookresearch/capi",
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
                    "warm_start": False,
                },
            ),
            Preset(
                "classification/attentive",
                {
                    "size": 224,
                    "precision": "fp32",
                    "pool": "query",
                    "epochs": 10,
                    "epoch_length": 1_250,
                    "batch_size": 1_024,
                    "learning_rates": tuple(4 * rate for rate in RATES),
                    "weight_decays": (5e-4, 1e-3, 5e-2),
                    "warmup": 0.1,
                    "beta2": 0.95,
                    "decay_biases": False,
                    "holdout": 0.1,
                },
            ),
        ),
        differs=(
            Difference(
                ("held-out images",),
                "the tenth that settings are chosen on is drawn by numpy's generator, here by the"
                " images' content",
            ),
            Difference(
                ("patches to standardise by",),
                "mean and deviation of features are those of the other nine tenths, here of all"
                " of train",
                "0.00 mIoU on CamVid",
            ),
            Difference(
                ("normalised black",),
                "images of every backbone have ImageNet's mean and deviation, here its own",
            ),
            Difference(
                ("TF32",),
                "on a GPU the search's products are rounded to TF32, here they are exact",
                probe="segmentation/patch-knn",
            ),
            Difference(
                ("features",),
                "features are float32, here as they are cached (cache=fp32)",
                "0.00 mIoU on CamVid",
            ),
            Difference(
                ("precision on ADE20K",),
                "on ADE20K its k-NN computes in bfloat16, here in float32",
                "0.02 mIoU on CamVid",
                probe="segmentation/patch-knn",
            ),
            Difference(
                ("line search",),
                "cuML's L-BFGS searches a line by Armijo's rule in up to 50 steps, and stops where"
                " the gradient's largest entry is at most tolerance × max(loss, tolerance) or ten"
                " iterations change the loss little; here PyTorch's searches by the strong Wolfe"
                " conditions in up to 25 steps, takes 1,250 gradients at most, and stops by"
                " absolute tolerances of the gradient and of one step",
                "at most 0.04 % of samples on a small problem",
                probe="segmentation/logreg",
            ),
        ),
        commit="98b4fa1",
        version=3,
    )
)
