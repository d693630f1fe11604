"""DPT (Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021)."""

_base_ = "head.py"

model = dict(
    decode_head=dict(
        type="MultiWidthDPTHead",
        channels=512,
        widths=(),
        readout_type="ignore",
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN", requires_grad=True),
    )
)
