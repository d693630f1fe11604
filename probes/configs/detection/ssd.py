"""SSD (Liu et al., ECCV 2016): MMDetection's own, on frozen maps, with square images; 120,000
iterations of 32, about 33 rounds of COCO."""

_base_ = ["mmdet::_base_/models/ssd300.py", "../_base_/detection.py"]

model = dict(
    data_preprocessor=dict(_delete_=True, type="UnstackedDetPreprocessor", pad_mask=False),
    # over the last map of a plain ViT a SimpleFeaturePyramid, then the ChannelMapper
    backbone=dict(
        _delete_=True,
        type="PerShape",
        backbone=dict(type="FrozenBackbone", precision="fp32"),
        neck=dict(type="ChannelMapper", kernel_size=1, out_channels=256),
    ),
    neck=None,
    bbox_head=dict(  # levels and anchors follow from the image's size
        _delete_=True,
        type="PredictingSSDHead",
        anchor_generator=dict(
            type="SSDAnchorGenerator", scale_major=False, basesize_ratio_range=(0.15, 0.9)
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    test_cfg=dict(max_per_img=100),
)
train_pipeline = [
    # orientation tags are ignored: annotations lie over the stored pixels
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=False),
    # the amounts are MMDetection's defaults, which are SSD's
    dict(type="Expand"),
    dict(type="MinIoURandomCrop"),
    dict(type="Resize", scale=(320, 320), keep_ratio=False),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1, 1), keep_empty=False),
    dict(type="PackInstances"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="Resize", scale=(320, 320), keep_ratio=False),
    dict(
        type="PackInstances",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline, aspect_groups=0))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(masks=False)
