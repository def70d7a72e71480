"""Figures of a run: added up from reports, and shown at one moment."""
