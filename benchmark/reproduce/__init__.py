"""``reproduce``: run a published protocol, compare with the published number, and name the causes
of a difference that can be checked on this machine."""
