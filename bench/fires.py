"""How late fires are: `uvicorn --workers 4`, twenty schedules of one second, on each database that can be reached.

`python -m bench.fires [--seconds 60] [sqlite postgresql mariadb]`. Two runs for each database, while nothing else runs:
with `overlap="allow", catch_up="all"`, and with the default policies. It prints the verdicts by kind, how many
violations the checker of the guarantees finds (0), and how late verdicts and starts were once all four workers were up.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.cluster.fires import STRICT, run, words
from tests.support.checker import check
from tests.support.databases import SQL, create_database, drop_database, find_servers


async def measure(kind: str, seconds: float) -> int:
    """Both runs on one kind of database; how many violations there were."""
    broken = 0
    for name, policies in (("strict", STRICT), ("defaults", {})):
        with tempfile.TemporaryDirectory() as folder:
            url = create_database(kind, Path(folder))
            try:
                made = await run(url, Path(folder), seconds, policies)
            finally:
                drop_database(url)
        violations = check(made.facts)
        broken += len(violations)
        print(f"{kind:<11}{name:<9} {made.verdicts}, {len(violations)} violations")
        print(f"{'':<20} verdicts late by {words(made.decided_late)}; starts by {words(made.started_late)}", flush=True)
    return broken


def main() -> int:
    """Measure and print."""
    reached = find_servers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("kinds", nargs="*", default=[kind for kind in SQL if kind in reached])
    options = parser.parse_args()
    return 1 if sum([asyncio.run(measure(kind, options.seconds)) for kind in options.kinds]) else 0


if __name__ == "__main__":
    sys.exit(main())
