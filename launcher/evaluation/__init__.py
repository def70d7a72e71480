"""Evaluations of a policy, and its searches beside those without it."""
