"""Importing this module registers every dataset and every probe; nothing else does."""

from probes.datasets import (  # noqa: F401
    ade20k,
    camvid,
    coco,
    flickr8k,
    flickr30k,
    imagefolder,
    imagenet,
    nyu_depth,
    nyu_normal,
    places365,
    voc,
)
