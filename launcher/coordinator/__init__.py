"""The coordinator: the members of a run, their reports and their orders."""
