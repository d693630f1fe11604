"""Reports of made-up backbones whose truth is known: how often a headline is false, and how often
an interval covers."""
