"""The head of the setting ``head``: surface normals."""

_base_ = ["../_base_/normals.py", "../_base_/schedule_20k.py"]

model = dict(
    type="DenseModel",
    backbone=dict(type="FrozenBackbone", precision="fp32"),
    neck=dict(type="ResizeConcat"),  # all maps at one stride, concatenated
    decode_head=dict(
        align_corners=False,
        loss_images=None,
        loss_decode=dict(type="NormalObjective", uncertainty=False),
    ),
    test_cfg=dict(mode="whole", flip=False),
)
