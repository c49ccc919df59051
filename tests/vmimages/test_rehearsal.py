"""The rehearsal in a guest, as root and as a user: the array on dm-crypt, and what comes out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from harness import command

REHEARSE = Path(sys.executable).with_name("btrsync-rehearse")


def test_the_array_is_made_and_opened_in_a_guest_and_a_sync_reaches_it() -> None:
    argv: list[str | Path] = [
        REHEARSE,
        "--vm",
        "trixie",
        "--size",
        "small",
        "--steps",
        "first full sync",
        "--json",
    ]
    said = command.run(argv, timeout_s=200, env=dict(os.environ))
    assert said.stdout.count("\n") == 1, "the words went to standard error"
    report = json.loads(said.stdout)
    assert report["ok"] is True
    assert [step["name"] for step in report["steps"]] == ["array created and opened", "first full sync"]
    assert report["kernel"] != os.uname().release
    assert "twofish-xts-plain" in report["steps"][0]["detail"]
    assert "all 2 steps hold" in said.stderr


def test_an_image_that_is_not_there_is_no_failed_step() -> None:
    said = command.run([REHEARSE, "--vm", "potato"], ok=(3,), env=dict(os.environ))
    assert "vmimages: " in said.stderr and "potato" in said.stderr
    assert said.stdout == ""
