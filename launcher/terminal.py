"""Output of the commands to a terminal, which obeys nothing that a file or another host says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from launcher import status_line, streams
from launcher.strict_json import to_json
from pdqn.text import printable_lines

if TYPE_CHECKING:  # commands that print one line need not wait for it
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment


class Printable:
    """A renderable whose texts hold no escapes but those of rich's own styles.

    It is the last line of defence, behind the checks of messages and files. An escape that is made
    here takes more columns than the layout gave it.

    Args:
        renderable: what to render.
    """

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        """Render, and escape what a terminal would obey."""
        from rich.segment import Segment

        for text, style, control in console.render(self._renderable, options):
            yield Segment(text if control else printable_lines(text), style, control)


def terminal(**settings: Any) -> Console:
    """Make a console for which ``[red]`` and ``:smile:`` in a text are just characters.

    Args:
        settings: further arguments of rich's console.
    """
    from rich.console import Console

    settings = {"file": streams.out(), **settings}
    return Console(markup=False, emoji=False, highlight=False, **settings)


def show(*renderables: RenderableType) -> None:
    """Print tables and texts on standard output."""
    status_line.end()
    console = terminal()
    for renderable in renderables:
        console.print(Printable(renderable))


def echo(text: object, *, err: bool = False) -> None:
    """Print a text on standard output, or on standard error."""
    status_line.make_room()
    click.echo(printable_lines(str(text)), file=streams.err() if err else streams.out())


def echo_json(value: object, indent: int | None = None) -> None:
    """Print a value as strict JSON, which escapes by itself, on standard output."""
    click.echo(to_json(value, indent=indent), file=streams.out())
