"""Faults on purpose: real runs, a seed that chooses what befalls them, and what must hold then."""
