"""Write the table of settings into ``docs/settings.md``: python docs/write_settings.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdqn.layers import settings

PAGE = Path(__file__).with_name("settings.md")
BEGIN = "<!-- settings: written by python docs/write_settings.py -->\n"
END = "<!-- end of settings -->\n"


def with_table(page: str) -> str:
    """Return the page with the settings as they are in the code."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}\n\n{END}{after}"


def table() -> str:
    """Return a table for each section: setting, default, meaning and what is accepted."""
    lines: list[str] = []
    seen: set[str] = set()
    for name, default, meaning, accepted in settings():
        section, _, key = name.partition(".")
        if section not in seen:
            seen.add(section)
            lines += ["", f"### {section}", ""]
            lines += ["| setting | default | meaning | accepted |", "|---|---|---|---|"]
        cells = [f"`{key}`", f"`{shown(default)}`", meaning, accepted]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def shown(default: Any) -> str:
    """Return a default as people write it."""
    if default is None:
        return "auto"
    return str(default).lower() if isinstance(default, bool) else str(default)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
