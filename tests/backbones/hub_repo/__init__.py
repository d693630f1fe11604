"""A folder as torch.hub wants it: a tiny ViT behind the two interfaces that ``hub/`` knows."""

from pathlib import Path

HUB_REPO = Path(__file__).parent
