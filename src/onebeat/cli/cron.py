"""`onebeat cron`: explains a cron expression and lists its next fires, with clock changes marked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from onebeat.timing.clock import SystemClock, from_us, to_us
from onebeat.timing.rule import DueFire
from onebeat.timing.triggers import Cron
from onebeat.timing.zones import Zone

_MARKS = {
    "gap": "clocks go forward here; this fire stands for the times that do not exist",
    "fold": "clocks go back here; this time of the day comes twice",
}
_MOST = 1_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("cron")(cron)


def cron(
    expression: Annotated[
        str, typer.Argument(help="5 fields, 6 with seconds first, or @daily and the like; quote it.")
    ],
    tz: Annotated[str, typer.Option("--tz", help="IANA time zone of the rule.")] = "UTC",
    n: Annotated[int, typer.Option("-n", "--count", min=1, max=_MOST, help="How many fires to show.")] = 10,
    after: Annotated[str | None, typer.Option(help="Start here, not now: ISO 8601; without offset in --tz.")] = None,
    dst: Annotated[str, typer.Option(help="vixie, skip_missing or run_both.")] = "vixie",
    seed: Annotated[str | None, typer.Option(help="The name that decides H; a schedule uses its id.")] = None,
) -> None:
    """Explain a cron expression, warn about surprises, and list its next fires."""
    rule = Cron(expression, tz, dst=dst)
    rule = rule if seed is None else rule.bind(seed)
    start = SystemClock().now() if after is None else to_us(_moment(after, rule.zone))
    fires = rule.upcoming_fires(n, after=start)
    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(rule.summary()))
    for note in rule.lint(after=from_us(start)):
        console.print(Text(f"note: {note}", style="yellow"))
    for fire in fires:
        console.print(_line(fire, rule.zone))
    for mark in sorted({fire.mark for fire in fires if fire.mark}):
        console.print(Text(f"{mark}: {_MARKS[mark]}", style="yellow"))


def _line(fire: DueFire, zone: Zone) -> Text:
    local = from_us(fire.at, zone.tz)
    line = Text(f"{local:%a} {local.isoformat(sep=' ', timespec='seconds')}   {from_us(fire.at):%Y-%m-%d %H:%M:%S}Z")
    return line.append(f"   {fire.mark}", style="yellow") if fire.mark else line


def _moment(text: str, zone: Zone) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text[:40]!r} is not an ISO 8601 time; write for example 2026-03-28T12:00"
        raise typer.BadParameter(message, param_hint="--after") from None
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone.tz)).astimezone(UTC)
    except OverflowError:
        message = "the time in UTC is outside the years 1 to 9999; give another one"
        raise typer.BadParameter(message, param_hint="--after") from None
