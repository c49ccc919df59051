"""Golden files: `pytest tests/unit --update-golden` writes them, `git diff` shows what changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent


class GoldenFile:
    """A file that holds an expected output; `is_updating`: write it instead of comparing."""

    def __init__(self, path: Path, *, is_updating: bool) -> None:
        self._path = path
        self._is_updating = is_updating

    def check(self, found: str) -> None:
        """Fail if `found` is not what the file holds."""
        __tracebackhide__ = True
        if self._is_updating:
            self._path.write_text(found, encoding="utf-8")
        assert self._path.exists(), f"{self._path} is not there; run pytest tests/unit --update-golden"
        expected = self._path.read_text(encoding="utf-8")
        assert found == expected, f"{self._path} differs; if it should, run pytest tests/unit --update-golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the expected outputs anew")


@pytest.fixture
def is_updating(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden", default=False))


@pytest.fixture
def golden(is_updating: bool) -> Callable[[str], GoldenFile]:
    """The expected output of a name: a file below tests/unit, golden/NAME unless it has a directory."""

    def open_golden(name: str) -> GoldenFile:
        return GoldenFile(HERE / (name if "/" in name else f"golden/{name}"), is_updating=is_updating)

    return open_golden
