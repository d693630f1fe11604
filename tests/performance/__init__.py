"""Measurements behind every speed claim: A against B, alternating in one process, medians and their
ratio (``make bench``)."""
