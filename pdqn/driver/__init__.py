"""Runs that a Python program starts, follows and ends: ``pdqn.train`` and ``pdqn.launch``."""
