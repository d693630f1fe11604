"""Starts the pretended accelerator in a test process: ``pytest -p tests.accelerator.plugin``."""

from __future__ import annotations

from tests.accelerator import pretended

pretended.start()
