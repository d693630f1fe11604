"""CAPI's segmentation by k-NN and logistic regression on patches, and its attentive classification.

Source: Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling",
2025, and ``eval_segmentation.py`` and ``eval_classification.py`` of
github.com/facebookresearch/capi with ``default_eval_config.yaml``. That configuration has ADE20K
and ImageNet-1k alone; on other datasets only the recipe is CAPI's. Batches and rates of the
attentive heads are those of the eight GPUs of its ``benchmark.py``.
"""

from probes.registry import NORMALISED_BLACK, Preset, Protocol, register_protocol

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
    "cache": "fp32",
}
# for a batch of 256
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)

HEADS = 4 * 3 * len(RATES)  # of four pooled representations, three decays and the rates

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
                    # its loss is the mean over the heads, so ε is divided by their number there
                    "epsilon": 1e-8 * HEADS,
                    "decay_biases": False,
                    "holdout": 0.1,
                },
            ),
        ),
        differs={
            "segmentation": {
                "held-out images": (
                    "the tenth that settings are chosen on is drawn by numpy's generator, here by"
                    " the images' content"
                ),
                "patches to standardise by": (
                    "mean and deviation of features are those of the other nine tenths, here of all"
                    " of train (0.00 mIoU on CamVid, -0.5 on 15 images of VOC)"
                ),
            },
            "classification/attentive": {
                "held-out split": (
                    "the tenth that heads are chosen on is drawn once for all whatever the classes,"
                    " and the first of equal heads is taken; here a tenth of each class is drawn by"
                    " the run's seed, and of equal heads that of the lower loss is taken"
                ),
                "size of test images": (
                    "images to choose and to score on are resized to 256 px and cropped to 224,"
                    " here as the backbone's own transform does (none where that is bicubic and"
                    " crops 0.875 of the side)"
                ),
                "samplers, first weights": (
                    "images come in the order of seed 42 and each head starts from weights of its"
                    " own, here in an order by the run's seed, and all from the same weights"
                ),
            },
            "": {
                **NORMALISED_BLACK,
                "TF32": "on a GPU products of matrices are rounded to TF32, here they are exact",
            },
            "segmentation/patch-knn": {
                "precision on ADE20K": (
                    "on ADE20K its k-NN computes in bfloat16, here in float32 (0.02 mIoU on CamVid)"
                ),
            },
            "segmentation/logreg": {
                "line search": (
                    "cuML's L-BFGS searches a line by Armijo's rule in up to 50 steps, and stops"
                    " where the gradient's largest entry is at most tolerance × max(loss,"
                    " tolerance) or ten iterations change the loss little; here PyTorch's searches"
                    " by the strong Wolfe conditions, takes 1,250 gradients at most, and stops by"
                    " absolute tolerances of the gradient, the slope, one step and its change of"
                    " the loss (at most 0.04 % of samples on a small problem)"
                ),
                "two classes": (
                    "of two classes cuML fits one vector, whose penalty is twice as strong (none"
                    " with more classes)"
                ),
            },
        },
        commit="98b4fa1",
        version=4,
    )
)
