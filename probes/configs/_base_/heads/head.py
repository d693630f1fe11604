"""A head on the maps of a frozen backbone: what all heads share."""

model = dict(
    type="DenseModel",
    backbone=dict(type="FrozenBackbone", precision="fp32"),
    neck=dict(type="ResizeConcat"),  # all maps at one stride, concatenated
    decode_head=dict(align_corners=False),
    loss_images=None,
    test_cfg=dict(mode="whole", flip=False),
)
