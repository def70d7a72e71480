"""The coordinator: members of a run, their reports, and what they are to do."""
