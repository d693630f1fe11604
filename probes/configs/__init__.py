"""Configs of the probes that are trained through MMEngine: of a dense probe the file of its head
and that of its data, of a detection probe one of its own; see ``probes.train.config``."""
