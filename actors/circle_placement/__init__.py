"""Circle placement, the built-in environment."""
