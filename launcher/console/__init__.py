"""Consoles: the live dashboard, lines, keys, and the view from another terminal."""
