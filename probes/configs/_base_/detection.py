"""Boxes and masks in COCO's format, as Mask R-CNN takes them."""

default_scope = "mmdet"
custom_imports = dict(
    imports=[
        "probes.detection.coco",
        "probes.detection.models",
        "probes.train.sampling",
    ]
)
train_pipeline = [
    # orientation tags are ignored: annotations lie over the stored pixels
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type="PackInstances"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(
        type="PackInstances",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        type="CocoInstances",
        drop_empty=True,
        min_size=0,
        pipeline=train_pipeline,
        aspect_groups=16,
    ),
)
val_dataloader = dict(
    batch_size=16,
    batch_sampler=dict(type="SameShapeBatches"),
    dataset=dict(type="CocoInstances", test_mode=True, pipeline=test_pipeline),
)
val_evaluator = dict(type="CocoMeanAP", masks=True)
