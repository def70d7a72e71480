"""The run itself: launching it, in one process or in many, and resuming it."""
