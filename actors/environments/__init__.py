"""Any gymnasium environment, described and stepped as one batch."""
