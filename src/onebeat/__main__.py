"""The command line's door."""

from __future__ import annotations

from onebeat.cli.app import main

if __name__ == "__main__":
    main()
