"""40,000 iterations; optimizer and schedule are those of the settings."""

train_cfg = dict(max_iters=40_000)
