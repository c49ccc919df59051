"""The words for `btrfs send`, and those that come before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from btrsync.system.btrfs import send_argv
from btrsync.system.priority import priority_argv

SNAPSHOT = Path("/s/-one")


def test_version_1_is_sent_by_a_btrfs_that_knows_no_other() -> None:
    assert send_argv(SNAPSHOT) == ["btrfs", "send", "--quiet", "--", "/s/-one"]


def test_every_form_has_its_words() -> None:
    argv = send_argv(
        SNAPSHOT, send_parent=Path("/s/p"), clone_sources=[Path("/s/a"), Path("/s/b")],
        stream_version=2, is_compressed=True, is_without_data=True,
    )  # fmt: skip
    words = "--proto 2 --compressed-data --no-data -p /s/p -c /s/a -c /s/b -- /s/-one"
    assert argv == ["btrfs", "send", "--quiet", *words.split()]


@pytest.mark.parametrize(("version", "is_compressed"), [(0, False), (3, False), (3, True), (1, True)])
def test_a_version_that_may_not_be_sent_is_an_error(version: int, is_compressed: bool) -> None:
    with pytest.raises(ValueError, match=f"no stream of version {version}"):
        send_argv(SNAPSHOT, stream_version=version, is_compressed=is_compressed)


def test_what_is_usual_needs_no_words() -> None:
    assert priority_argv() == []
    assert priority_argv(5) == ["nice", "-n", "5"]
    assert priority_argv(19, "idle") == ["nice", "-n", "19", "ionice", "-t", "-c", "3"]
    assert priority_argv(0, "best-effort") == ["ionice", "-t", "-c", "2"]


@pytest.mark.parametrize(("nice", "io_class"), [(-1, None), (20, None), (0, "realtime"), (0, "")])
def test_a_priority_above_ours_is_an_error(nice: int, io_class: str | None) -> None:
    with pytest.raises(ValueError, match="not one of"):
        priority_argv(nice, io_class)
