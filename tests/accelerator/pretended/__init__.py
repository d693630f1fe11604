"""A pretended accelerator, ``gpu:0``, for machines without one.

It computes on the CPU and refuses what CUDA would refuse: mixed devices, and generators of another
device. It has its own random numbers and autocast, counts waits, copies and bytes with the line of
the project that caused them, and can be out of memory. ``start`` changes torch for the rest of the
process, so it is used in processes of its own.
"""

from __future__ import annotations

from tests.accelerator.pretended.backend import start

__all__ = ["start"]
