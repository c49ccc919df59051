"""Hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.host import Host

pytestmark = pytest.mark.requires("host")


def test_a_host_has_its_own_name(workstation: Host, daisy: Host) -> None:
    assert workstation.run(["hostname"]).stdout == "workstation\n"
    assert daisy.run(["hostname"]).stdout == "daisy\n"
