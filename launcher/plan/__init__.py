"""The plan of a run, made before anything starts: machine, sizes and memory."""
