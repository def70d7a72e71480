"""Distributed deep Q-learning: the core that every role shares."""

__version__ = "0.1.0"
