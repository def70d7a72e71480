"""The files that a run writes while it goes on, and other receivers of its figures."""
