"""Run inside a guest by test_plugin.py: each test ends in another way, and the last but one ends the guest."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm


def test_passes() -> None:
    assert os.uname().nodename == "trixie"
    assert Path("/work/.guest/nodes").exists()


def test_fails() -> None:
    words = "said by the guest"
    assert words == os.uname().release


@pytest.fixture
def broken() -> None:
    raise ValueError("a broken fixture")


def test_errs(broken: None) -> None:
    raise AssertionError("not reached")


@pytest.mark.requires("program:nowhere")
def test_skips() -> None:
    raise AssertionError("not reached")


def test_panics() -> None:
    Path("/proc/sysrq-trigger").write_text("c")
    time.sleep(60)


def test_is_never_reached() -> None:
    raise AssertionError("not reached")
