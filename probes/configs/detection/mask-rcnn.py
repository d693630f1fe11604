"""Mask R-CNN (He, Gkioxari, Dollár, Girshick, ICCV 2017): MMDetection's own, on frozen maps; COCO's
1x schedule."""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "../_base_/detection.py"]

model = dict(
    data_preprocessor=dict(_delete_=True, type="UnstackedDetPreprocessor", pad_mask=True),
    # images of one shape together; over the last map of a plain ViT a SimpleFeaturePyramid
    backbone=dict(
        _delete_=True,
        type="PerShape",
        backbone=dict(type="FrozenBackbone", precision="fp32"),
        neck=dict(type="FPN", out_channels=256),
    ),
    neck=None,
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
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, aspect_groups=16))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(masks=True)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=900),
    dict(
        type="CosineAnnealingLR",
        T_max=89_100,
        eta_min=0.0,
        by_epoch=False,
        begin=900,
        end=90_000,
    ),
]
train_cfg = dict(max_iters=90_000)
