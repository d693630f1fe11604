"""DeepLabv3 (Chen et al., "Rethinking Atrous Convolution …", 2017)."""

_base_ = "head.py"

model = dict(
    decode_head=dict(
        type="ASPPHead",
        channels=512,
        dilations=None,  # (1, 12, 24, 36) on 64×64 cells, as in the paper; in proportion on others
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN", requires_grad=True),
    )
)
