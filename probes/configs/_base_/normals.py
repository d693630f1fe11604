"""Data of surface normals, as of depth."""

_base_ = "depth.py"

val_evaluator = dict(type="TaskScores", task="normals")
