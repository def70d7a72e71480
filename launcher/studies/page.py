"""HTML of a page that has everything in itself: text, tables, pictures. Pure, but for pictures."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pdqn.text import printable

# Nothing is loaded, and no script runs: a page that comes from somebody else is harmless.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; padding: 1.5em;
       max-width: 72em; }
h1 { font-size: 1.6em; margin: 0 0 .2em; }
h2 { font-size: 1.25em; margin: 2em 0 .4em; border-top: 2px solid #0072B2; padding-top: .5em; }
h3 { font-size: 1em; margin: 1.4em 0 .3em; }
table { border-collapse: collapse; margin: .4em 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2em .9em .2em 0; border-bottom: 1px solid #ddd;
         vertical-align: top; }
th { font-weight: 600; }
.wide { overflow-x: auto; }
.tag { background: #e3eef6; border-radius: .6em; padding: .05em .6em; margin-right: .3em; }
.state { font-weight: 600; }
.bad { color: #b03000; }
.note { border-left: 3px solid #E69F00; padding-left: .7em; margin: .3em 0; }
svg, img { max-width: 100%; height: auto; }
summary { cursor: pointer; color: #0072B2; }
pre { background: #f5f5f5; padding: .7em; overflow-x: auto; font-size: .85em; }
footer { margin-top: 3em; color: #666; font-size: .85em; }
"""
_TYPES = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".jpg": "image/jpeg"}


def text(value: object) -> str:
    """Escape a text of a run's files: for HTML, and for a terminal that shows the file."""
    return html.escape(printable(str(value)))


def document(title: str, body: Iterable[str]) -> str:
    """Return a whole page.

    Args:
        title: its title, not escaped yet.
        body: its parts, in HTML.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # A browser would ask for an icon otherwise.
            '<link rel="icon" href="data:,">',
            f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>",
            "",
        ]
    )


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = ()) -> str:
    """Return a table; the texts are escaped here, and the first column names the rows."""
    lines = ['<div class="wide"><table>']
    if head:
        lines.append(f"<tr>{''.join(f'<th>{text(cell)}</th>' for cell in head)}</tr>")
    for name, *cells in rows:
        rest = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th>{text(name)}</th>{rest}</tr>")
    return "\n".join([*lines, "</table></div>"])


def folded(summary: str, content: str) -> str:
    """Return a part that a reader opens; ``content`` is HTML."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def drawing(figure: Figure, number: int, label: str) -> str:
    """Return a figure as SVG within the page.

    Args:
        figure: the figure.
        number: another one for each figure of a page, so that their parts have different names.
        label: what it shows, for readers who do not see it.
    """
    # Text stays text: it is smaller, and a reader can search it.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": f"pdqn{number}"}
    written = io.StringIO()
    with mpl.rc_context(settings):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    # Names of parts are unique in a figure only.
    svg = re.sub(r'\bid="(?=[a-zA-Z])', f'id="f{number}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#(?=[a-zA-Z])', rf"\1#f{number}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{text(label)}"', 1)


def picture(path: Path, label: str) -> str:
    """Return a picture or film of a file as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    kind = _TYPES[path.suffix.lower()]
    return f'<img src="data:{kind};base64,{data}" alt="{text(label)}">'
