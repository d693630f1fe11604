"""Flickr8k, 6,000 train and 1,000 test images, 5 captions each: ``dataset_flickr8k.json`` (Karpathy's) and the images."""

from probes.datasets.flickr30k import declare

declare("flickr8k", "Flickr8k", 6000)
