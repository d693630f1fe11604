"""Importing this module registers every dataset that the suite ships."""

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
