"""The page on threats names each hostile stream that is tried, and what was measured of it."""

from __future__ import annotations

from pathlib import Path

from tests.kernel.hostile_streams import table

PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"


def test_the_table_of_hostile_streams_is_what_the_tests_try() -> None:
    # Made by: .venv/bin/python -c 'from tests.kernel.hostile_streams import table; print(table())'
    assert f"\n\n{table()}\n" in PAGE.read_text()
