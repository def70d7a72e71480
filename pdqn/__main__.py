"""Entry point of ``python -m pdqn``, the same as the command ``pdqn``."""

from __future__ import annotations

if __name__ == "__main__":  # a run's processes also import this module
    # Imported late: most users of this package do not need the launcher.
    from launcher.cli.main import main

    main()
