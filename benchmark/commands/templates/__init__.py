"""Files that ``python -m benchmark new`` copies, each a plugin; the documentation shows them."""
