"""The entry point: run a command, and end bad input and failed runs in one line."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import click

from launcher.cli.commands import cli
from pdqn.errors import RunError, UsageError


def main() -> None:
    """Run a command; bad input and failed runs end in one line, not in a traceback."""
    _make_streams_usable()
    try:
        # Environments and networks of one's own are named by their modules: find those here, too.
        sys.path.append(str(Path.cwd()))
        sys.exit(cli.main(prog_name="pdqn", standalone_mode=False) or 0)
    except UsageError as error:
        _fail(error, 2)
    except RunError as error:
        _fail(error, 1)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as error:
        _fail(_describe(error), 1)


def _make_streams_usable() -> None:
    """Let every stream take whatever is written to it, and be one."""
    # In the order of their descriptors, which are the lowest that are free: no file that is opened
    # later gets one of them, and with it what somebody prints.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - to the end
            os.set_inheritable(stream.fileno(), True)  # roles need theirs, too
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A table with a few wrong characters is worth more than none.
        sys.stdout.reconfigure(errors="replace")


def _describe(error: OSError) -> str:
    """What went wrong, and with which file, if it is one that has a name."""
    words = error.strerror or str(error)
    return words if error.filename is None else f"{error.filename}: {words}"


def _fail(error: Exception | str, code: int) -> None:
    click.echo(f"pdqn: {error}", err=True)
    sys.exit(code)
