"""Entry point of ``python -m pdqn``, which is the command ``pdqn``."""

from __future__ import annotations

import sys

# Without a package, click takes the program's name from here: "pdqn", not "python -m pdqn".
__package__ = ""


def main() -> None:
    """Run the command line."""
    # The launcher imports what most users of this package do not need.
    from launcher.cli import main as run

    sys.argv[0] = "pdqn"
    run()


if __name__ == "__main__":  # the processes of a run import this module, too
    main()
