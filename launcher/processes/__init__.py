"""Processes of roles on this host: their starts and their ends."""
