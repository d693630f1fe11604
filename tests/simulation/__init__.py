"""Reports of simulated backbones: how often a headline is false, and an interval covers."""
