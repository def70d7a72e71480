"""Actors: environments, policy, and the loop that turns steps into transitions."""
