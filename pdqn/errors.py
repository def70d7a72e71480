"""Errors that a person is meant to read: one clear line, no traceback."""


class UsageError(ValueError):
    """Bad input, found before anything started; the command line exits with 2."""


class RunError(RuntimeError):
    """The run cannot go on; the command line exits with 1."""


class JoinRefusedError(RunError):
    """The coordinator does not want this role; trying again would not help."""
