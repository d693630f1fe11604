"""UPerNet (Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018): it reads
each map at its own stride, so there is no neck."""

model = dict(
    type="DenseModel",
    backbone=dict(type="FrozenBackbone", precision="fp32"),
    decode_head=dict(
        type="PyramidUPerHead",
        channels=512,
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
    ),
    loss_images=None,
    test_cfg=dict(mode="whole", flip=False),
)
