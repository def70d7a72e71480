"""Several runs together: listed, reported, launched with many seeds, and searched for settings."""
