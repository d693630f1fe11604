"""PSPNet (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017)."""

_base_ = "head.py"

model = dict(
    decode_head=dict(
        type="PSPHead",
        channels=512,
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN", requires_grad=True),
    )
)
