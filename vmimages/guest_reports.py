"""The pytest plugin of a session inside a guest: each report to the journal disk as soon as it is made.

A power cut or a panic loses the guest's memory, the journal stays: JSON lines, then zeros. `python -m
pytest -p vmimages.guest_reports`, with BTRSYNC_JOURNAL naming the disk.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

VARIABLE = "BTRSYNC_JOURNAL"
_written = 0


def _write(entry: object) -> None:
    """Append one line, and have it on the disk before going on."""
    global _written  # noqa: PLW0603 - pytest's hooks are functions of a module
    line = json.dumps(entry).encode() + b"\n"
    fd = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, line, _written)
        os.fsync(fd)
    finally:
        os.close(fd)
    _written += len(line)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Say which test runs."""
    _write({"start": nodeid})


class _Reporter:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        _write({"report": self._data(report)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            _write({"report": self._data(report)})

    def _data(self, report: pytest.CollectReport | pytest.TestReport) -> object:
        return self._config.hook.pytest_report_to_serializable(config=self._config, report=report)


def pytest_configure(config: pytest.Config) -> None:
    """Follow the reports."""
    config.pluginmanager.register(_Reporter(config), "btrsync-guest-reporter")


def pytest_sessionfinish(exitstatus: int) -> None:
    """Say that the session came to its end."""
    _write({"finish": int(exitstatus)})
