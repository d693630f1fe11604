"""Numbers that must not move unnoticed."""
