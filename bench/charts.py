"""Line charts as an SVG file, one panel below the other; the standard library alone makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, PANEL, LEFT, RIGHT, TITLE, GAP = 900, 110, 90, 20, 44, 34  # pixels
COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart: its title, and the lines by name, each a list of (seconds, value)."""

    title: str
    lines: dict[str, Sequence[tuple[float, float]]]


def draw(title: str, panels: Sequence[Panel], marks: Sequence[float] = ()) -> str:
    """Return the SVG text; each panel begins at 0. `marks`: seconds at which a dotted line stands in every panel.

    >>> draw("one", [Panel(title="jobs", lines={"all": [(0, 1), (1, 2)]})]).count("<polyline")
    1
    """
    end = max((at for panel in panels for line in panel.lines.values() for at, _ in line), default=1) or 1
    height = TITLE + len(panels) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, TITLE + number * (PANEL + GAP), end, marks)
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, top: float, end: float, marks: Sequence[float]) -> list[str]:
    most = max((value for line in panel.lines.values() for _, value in line), default=0) or 1
    width = WIDTH - LEFT - RIGHT

    def place(at: float, value: float) -> str:
        return f"{LEFT + at / end * width:.1f},{top + PANEL - value / most * PANEL:.1f}"

    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{width}" height="{PANEL}" fill="#f8fafc" stroke="#cbd5e1"/>',
        f'<text x="{LEFT - 8}" y="{top + 10}" font-size="11" text-anchor="end">{most:,.6g}</text>',
        f'<text x="{LEFT - 8}" y="{top + PANEL}" font-size="11" text-anchor="end">0</text>',
        f'<text x="{WIDTH - RIGHT}" y="{top + PANEL + 12}" font-size="10" text-anchor="end">{end:,.0f} s</text>',
        f'<text x="{LEFT}" y="{top - 5}" font-size="12">{escape(panel.title)}</text>',
    ]
    for at in marks:
        x = LEFT + at / end * width
        dotted = (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + PANEL}" stroke="#94a3b8" stroke-dasharray="2 3"/>'
        )
        parts.append(dotted)
    for number, (name, line) in enumerate(panel.lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(place(at, value) for at, value in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        x = WIDTH - RIGHT - 130 * (len(panel.lines) - number - 1)
        parts.append(
            f'<text x="{x}" y="{top - 5}" font-size="11" fill="{colour}" text-anchor="end">{escape(name)}</text>'
        )
    return parts
