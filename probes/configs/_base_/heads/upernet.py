"""UPerNet (Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018)."""

_base_ = "head.py"

model = dict(
    decode_head=dict(
        type="PyramidUPerHead",
        channels=512,
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN", requires_grad=True),
    )
)
