"""Launcher: command line, machine sizing, coordinator, supervisor, consoles and plots."""
