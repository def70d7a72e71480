"""Environments that ship with pdqn, and the factory for all others."""
