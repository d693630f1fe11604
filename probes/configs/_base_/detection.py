"""Data of detection in COCO's format, and AdamW, whose schedule the probes have."""

default_scope = "mmdet"
custom_imports = dict(
    imports=[
        "probes.detection.coco",
        "probes.detection.models",
        "probes.detection.per_shape",
        "probes.runner.batches",
    ]
)
train_dataloader = dict(
    batch_size=16,
    dataset=dict(type="CocoInstances", drop_empty=True, min_size=0),
)
val_dataloader = dict(
    batch_size=16,
    batch_sampler=dict(type="SameShapeBatches"),
    dataset=dict(type="CocoInstances", test_mode=True),
)
val_evaluator = dict(type="CocoMeanAP")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
