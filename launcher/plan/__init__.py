"""The plan: machine, sizes and memory of a run before anything starts."""
