"""`make bench` runs every benchmark; `python -m bench engine locks` the named ones. Figures, never verdicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LEFT_OUT = {"pairs", "soak", "charts"}  # needs a second checkout; runs for hours (`make soak`); measures nothing
NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem not in LEFT_OUT)


def main(names: list[str]) -> int:
    """Each benchmark in a process of its own, one after the other."""
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
        return 2
    failed = 0
    for name in names or NAMES:
        print(f"\n── {name} ".ljust(100, "─"), flush=True)
        failed |= subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
