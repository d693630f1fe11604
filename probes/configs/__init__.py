"""The probes that are trained through MMEngine, a config file each, ``KIND/PROBE.py``."""
