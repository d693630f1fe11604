"""Datasets from where they are published, into the layouts that ``data check`` wants.

``table`` says what can be had and where; ``fetch`` brings an archive, resumed where it was cut
short; ``archives`` and ``nyu`` turn archives into layouts; ``get`` does all of it.
"""
