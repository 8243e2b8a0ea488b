"""The import of preloaded modules, in the fork server or in a spawned child."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module


def import_modules(names: Iterable[str]) -> None:
    """Import these modules; a module that raises or calls `sys.exit` is reported on standard error and left out."""
    for name in names:
        try:
            import_module(name)
        except BaseException as error:  # noqa: BLE001 - the child reports it again if it needs the module
            print(f"onebeat: preloading {name} failed: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
