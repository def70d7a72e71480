"""Learner: losses, the learner state and its step, and the process around them."""
