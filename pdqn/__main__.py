"""Entry point of ``python -m pdqn``, which is the command ``pdqn``."""

from __future__ import annotations

if __name__ == "__main__":  # processes of a run import this module as well
    # The launcher imports what most users of this package do not need.
    from launcher.cli.main import main

    main()
