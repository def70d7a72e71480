"""Help that shows a command's options in groups, since nobody reads one long list."""

from __future__ import annotations

from typing import Any

import click

_REST = "Other options"


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings.

    Args:
        groups: names of parameters by heading, in order; all others come last.
    """

    def __init__(self, *arguments: Any, groups: dict[str, tuple[str, ...]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._groups = groups
        known = {param.name for param in self.params}
        if unknown := [name for names in groups.values() for name in names if name not in known]:
            raise ValueError(f"{self.name} has no option {', '.join(unknown)}")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        rest = {param.name or "": param for param in self.get_params(ctx)}
        for heading, names in self._groups.items():
            _write(ctx, formatter, heading, [rest.pop(name) for name in names])
        _write(ctx, formatter, _REST, list(rest.values()))


def _write(
    ctx: click.Context, formatter: click.HelpFormatter, heading: str, params: list[click.Parameter]
) -> None:
    records = [record for param in params if (record := param.get_help_record(ctx)) is not None]
    if records:
        with formatter.section(heading):
            formatter.write_dl(records)
