"""mypy is strict on code and tests alike: planted offences are seen in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.house.conftest import Checkout


@pytest.mark.parametrize(
    ("path", "text", "code"),
    [
        pytest.param(
            "btrsync/errors.py", "def planted(x): return x", "no-untyped-def", id="an untyped function"
        ),
        pytest.param(
            "harness/wait.py", 'PLANTED: int = "text"', "assignment", id="a wrong type in the harness"
        ),
        pytest.param(
            "tests/unit/test_x.py", "def test_planted(): pass", "no-untyped-def", id="an untyped test"
        ),
    ],
)
def test_a_wrong_type_is_seen(checkout: Checkout, path: str, text: str, code: str) -> None:
    (checkout.root / path).parent.mkdir(parents=True, exist_ok=True)
    checkout.plant(path, text)
    done = checkout.run("mypy", "--cache-dir", str(checkout.root / ".mypy_cache"), path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"[{code}]" in done.stdout
