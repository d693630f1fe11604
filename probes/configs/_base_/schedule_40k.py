"""AdamW, 5 % of warm-up, then polynomial decay to 0; 40,000 iterations."""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=2_000),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=2_000, end=40_000),
]
train_cfg = dict(max_iters=40_000)
