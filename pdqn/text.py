"""Texts that come from elsewhere: whether they can be held, and made safe to show."""

from __future__ import annotations

import os
import re
import unicodedata

# Joiners, fillers and variation selectors: letters or marks by category, but nothing is drawn.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"
                        "\U000e0100-\U000e01ef]")  # fmt: skip
# No script puts more marks on one letter; a pile of them covers the lines above and below.
_MOST_MARKS = 4


def printable(text: str, keep: str = "") -> str:
    r"""Replace what a terminal would obey or not show by a visible escape, such as ``\x1b``.

    These are first the characters that Python's ``repr`` escapes: controls, marks of direction and
    other invisible formats, surrogates, line ends, unusual spaces, and unassigned ones. Invisible
    letters, and marks piled on one letter, come on top. A second call changes nothing more.

    Args:
        text: any text.
        keep: characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        visible = _is_visible(character) and marks <= _MOST_MARKS
        shown.append(character if visible or character in keep else _escaped(character))
    return "".join(shown)


def printable_lines(text: str) -> str:
    """Do the same for a text of several lines, such as a traceback: line ends and tabs stay."""
    return printable(text, keep="\n\t")


def is_printable(text: str) -> bool:
    """Return whether ``printable`` would leave a text as it is."""
    return printable(text) == text


def is_utf8(text: str) -> bool:
    """Return whether files and messages can hold a text, which a terminal may give otherwise."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_path_utf8(path: str) -> bool:
    """Return whether this process names a file by the path's UTF-8, as other libraries do.

    Some locales give its characters other bytes, and a file's name may be any bytes.
    """
    return path.encode("utf-8", "replace") == os.fsencode(path)


def _is_visible(character: str) -> bool:
    return character.isprintable() and not _INVISIBLE.match(character)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
