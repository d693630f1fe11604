"""Evaluations by the code of others beside ours: a module for each of them."""
