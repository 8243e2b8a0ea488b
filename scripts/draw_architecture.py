"""Write the tree of docs/architecture.md: each file of the package with the first line of its docstring."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "onebeat"
PAGE = ROOT / "docs" / "architecture.md"
LAYERS = {  # in the order in which they are drawn
    0: ("errors.py", "timing", "concurrency"),
    1: ("model", "tasks", "tracking", "logs", "offload"),
    2: ("store",),
    3: ("engine",),
    4: ("locks", "settings.py", "scheduler"),
    5: ("fastapi", "cli", "testing", "alembic.py", "__main__.py"),
}
COLUMN = 28  # where the captions begin


def caption(file: Path) -> str:
    """Return the first line of a file's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return docstring.splitlines()[0] if docstring else ""


def draw(place: Path, depth: int) -> list[str]:
    """Return the lines of one file, or of a package and what it contains; `__init__.py` first."""
    indent = "    " * depth
    if place.is_file():
        return [f"{indent}{place.name}".ljust(COLUMN - 1) + " " + caption(place)]
    lines = [f"{indent}{place.name}/"]
    inside = sorted(
        (p for p in place.iterdir() if (p.is_dir() and (p / "__init__.py").exists()) or p.suffix == ".py"),
        key=lambda p: (p.name != "__init__.py", p.is_dir(), p.name),
    )
    for item in inside:
        if item.name != "versions":
            lines += draw(item, depth + 1)
    return lines


def tree() -> str:
    """Return the whole drawing, as it stands between the page's first pair of fences."""
    lines = ["onebeat/", *draw(PACKAGE / "__init__.py", 1)]
    for names in LAYERS.values():
        for name in names:
            lines += ["", *draw(PACKAGE / name, 1)]
    return "\n".join(lines)


def main() -> int:
    """Rewrite the page; with `--check`, return 1 if that would change it."""
    page = PAGE.read_text("utf-8")
    drawn = re.sub(r"(?s)```\n.*?```", lambda _: f"```\n{tree()}\n```", page, count=1)
    if "--check" in sys.argv:
        return int(drawn != page)
    PAGE.write_text(drawn, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
