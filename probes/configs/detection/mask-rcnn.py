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
