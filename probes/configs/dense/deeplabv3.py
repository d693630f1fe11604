"""DeepLabv3 (Chen et al., "Rethinking Atrous Convolution …", 2017): a plugin's dense task."""

_base_ = ["../_base_/dense.py", "../_base_/schedule_40k.py"]

model = dict(
    type="DenseModel",
    backbone=dict(type="FrozenBackbone", precision="fp32"),
    neck=dict(type="ResizeConcat"),  # all maps at one stride, concatenated
    decode_head=dict(
        type="ASPPHead",
        channels=512,
        dilations=(1, 12, 24, 36),  # on 64×64 cells; in proportion on others
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_images=None,
        loss_decode=dict(type="TaskObjective"),
    ),
    test_cfg=dict(mode="whole", flip=False),
)
