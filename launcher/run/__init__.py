"""Running: launch a run, in one process or in many, and resume it."""
