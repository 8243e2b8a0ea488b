"""The campaigns that `tests/conftest.py` names are tests that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import CAMPAIGNS, TWINS

TESTS = Path(__file__).parent
SOURCE = "".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))


@pytest.mark.parametrize("name", sorted({campaign.partition("[")[0] for campaign in CAMPAIGNS}))
def test_a_campaign_is_a_test(name: str) -> None:
    assert f"def {name}(" in SOURCE, f"no test is called {name}; correct CAMPAIGNS in tests/conftest.py"


@pytest.mark.parametrize("kind", TWINS)
def test_the_tests_that_a_server_repeats_are_there(kind: str) -> None:
    for place, kept in TWINS[kind].items():
        assert (TESTS / place).exists(), f"{place}: correct TWINS in tests/conftest.py"
        for name in kept:
            assert (TESTS / place / name).is_file(), f"{place}/{name}: correct TWINS in tests/conftest.py"
