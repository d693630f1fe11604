"""As ``schedule_40k.py``, in half of the iterations."""

_base_ = "schedule_40k.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=1_000),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=1_000, end=20_000),
]
train_cfg = dict(max_iters=20_000)
