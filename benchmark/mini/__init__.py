"""The mini world: small ray-traced scenes with exact truth, in the official layouts of the real
datasets."""
