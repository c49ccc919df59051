"""The probes: each by doing it, once."""

from __future__ import annotations

import os

import pytest

from harness import requires
from harness.command import CommandFailed, Completed


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts with no verdict, and leaves those of the session as they were."""
    fresh = requires.reason.__wrapped__
    monkeypatch.setattr(requires, "reason", fresh)


def test_what_is_there_has_no_reason_and_what_is_not_has_one() -> None:
    assert requires.missing("program:sh") == []
    assert requires.missing("program:sh", "program:no-such") == ["program:no-such (no no-such on PATH)"]


def test_a_name_that_nobody_knows_is_a_mistake() -> None:
    with pytest.raises(LookupError, match="no such name: btrsf; there are root, loop, btrfs"):
        requires.missing("btrsf")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
@pytest.mark.parametrize("name", requires.REQUIREMENTS)
def test_every_probe_comes_to_a_verdict(name: str) -> None:
    why = requires.reason(name)
    assert why is None or (len(why) > 3 and "\n" not in why)


def test_a_probe_whose_command_fails_gives_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise CommandFailed(Completed(("mkfs.btrfs", "x"), 1, "", "first\nno such device\n"), "exit status 1")

    monkeypatch.setitem(requires.REQUIREMENTS, "planted", fails)
    assert requires.missing("planted") == ["planted (mkfs.btrfs: no such device)"]


def test_who_is_not_root_is_told_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert requires.missing("btrfs", "host") == ["btrfs (not root)", "host (not root)"]
