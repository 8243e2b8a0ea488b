"""For tests of applications: a scheduler in virtual time, and contract suites; loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onebeat.testing.kit import SyncTestScheduler as SyncTestScheduler, TestScheduler as TestScheduler

__all__ = ["SyncTestScheduler", "TestScheduler"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from onebeat.testing import kit

        return getattr(kit, name)
    raise AttributeError(f"module 'onebeat.testing' has no attribute {name!r}")
