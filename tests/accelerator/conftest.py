"""The cases need an accelerator: a real one, or the pretended one of a process that
``test_cases.py`` starts."""

from __future__ import annotations

import torch

collect_ignore = [] if torch.accelerator.is_available() else ["cases"]
