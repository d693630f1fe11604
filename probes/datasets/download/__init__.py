"""Datasets from where they are published, in the layouts that ``data check`` expects.

``table`` lists archives and their sources; ``fetch`` downloads one and resumes; ``archives`` and
``nyu`` convert archives to layouts; ``get`` does all of it; ``hub`` downloads webdataset folders.
"""
