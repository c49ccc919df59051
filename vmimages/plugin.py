"""The pytest plugin for tests that only a guest can meet: `pytest -m vm --vm-image IMAGE`.

They are collected here and run in one boot of each image; their reports are ours, as they come.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from vmimages.disks import Disks
    from vmimages.image import BackendName, Image

    Outcome = Literal["passed", "failed", "skipped"]
    When = Literal["setup", "call", "teardown"]

MARKER = "vm"
DEFAULT_IMAGE = "trixie"
GUEST_VARIABLE = "BTRSYNC_VM"
NODES = ".guest/nodes"
JOURNAL_BYTES = 64 << 20
MEMORY_MIB = 2048
TIMEOUT_S = 1500.0
READ_BYTES = 4 << 20


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose a guest."""
    group = parser.getgroup("btrsync guests")
    group.addoption(
        "--vm-image",
        action="append",
        metavar="IMAGE",
        help=f"run the tests marked vm in this image; may be given again; -m vm alone means {DEFAULT_IMAGE}",
    )
    group.addoption("--vm-backend", choices=("uml", "qemu"), help="by default what the image has and works")
    group.addoption("--vm-accel", choices=("auto", "kvm", "tcg"), default="auto", help="for QEMU")
    group.addoption("--vm-results", type=Path, default=Path("vm-results"), metavar="DIR")
    group.addoption("--vm-timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="for one boot")


def _images(config: pytest.Config) -> list[str]:
    """Return the images wanted; none in an ordinary run, and none in a guest."""
    if os.environ.get(GUEST_VARIABLE):
        return []
    asked: list[str] = config.option.vm_image or []
    return asked or ([DEFAULT_IMAGE] if config.option.markexpr.strip() == MARKER else [])


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tell the harness that the tests marked vm have a guest to run in."""
    if _images(config):
        config.option.markexpr = config.option.markexpr or MARKER
        config.option.has_guests = True


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run all that was collected in guests, if that is what was asked for."""
    images = _images(session.config)
    if not images or session.config.option.collectonly:
        return None
    if session.testsfailed and not session.config.option.continue_on_collection_errors:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    for name in images if session.items else ():
        GuestRun(session, name, is_only=len(images) == 1).run()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
    return True


class GuestRun:
    """One boot of one image that runs all tests of a session.

    is_only: the reports keep their node ids; otherwise the image is part of them.
    """

    def __init__(self, session: pytest.Session, name: str, *, is_only: bool) -> None:
        self._session = session
        self._config = session.config
        self._name = name
        self._suffix = "" if is_only else f"@{name}"
        self._waiting = {item.nodeid: item for item in session.items}
        self._read_bytes = 0
        self._running: str | None = None
        self._properties: list[tuple[str, object]] = []
        self._problems: list[str] = []

    def run(self) -> None:
        """Boot, report each test as it ends, and say of those that did not why not."""
        from vmimages.build import build_image
        from vmimages.errors import VmError
        from vmimages.running import GuestFailed

        try:
            backend: BackendName | None = self._config.option.vm_backend
            image = build_image(self._name, backends=[backend] if backend else [])
        except VmError as error:
            self._without_guest("; ".join(filter(None, [f"no guest of {self._name}: {error}", error.hint])))
            return
        try:
            status = self._boot(image)
        except GuestFailed as error:
            self._after_crash(str(error))
            return
        words = "\n".join([f"the session in the guest ended with status {status} before it", *self._problems])
        self._fail_rest(words)

    def _boot(self, image: Image) -> int:
        from vmimages import batch

        self._properties = [("vm_image", image.name), ("vm_key", image.key), ("progs", image.progs)]
        argv = [
            "env", "BTRSYNC_JOURNAL=/dev/disk/by-id/btrsync-disk1",
            *([f"CI={os.environ['CI']}"] if os.environ.get("CI") else []),
            "python3", "-m", "pytest", "-p", "vmimages.guest_reports", "-p", "no:cacheprovider",
            "--no-isolate", "--quiet", "--junitxml=/run/btrsync/results/junit.xml", f"@/work/{NODES}",
        ]  # fmt: skip
        options = batch.Options(
            backend=self._config.option.vm_backend,
            disks=(JOURNAL_BYTES,),
            memory_mib=MEMORY_MIB,
            tree=self._config.rootpath,
            accel=self._config.option.vm_accel,
            extra={NODES: "".join(f"{nodeid}\n" for nodeid in self._waiting).encode()},
        )
        directory = self._config.option.vm_results / self._name
        timeout_s = self._config.option.vm_timeout
        return batch.run(
            image, argv, directory, options=options, timeout_s=timeout_s, watch=self._watch
        ).status

    def _watch(self, disks: Disks) -> None:
        """Take what is new in the journal."""
        with disks.blank[0].open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read(READ_BYTES)
        # Blocks of one line may come in any order: up to the first that is still empty all is whole.
        new = new.partition(b"\0")[0]
        lines = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(lines)
        for line in lines.splitlines():
            self._take(json.loads(line))

    def _take(self, entry: dict[str, object]) -> None:
        if "start" in entry:
            self._running = str(entry["start"])
            self._start(self._running)
        elif "report" in entry:
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=entry["report"]
            )
            if isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)  # of a skipped test: JSON knows no tuple
            if isinstance(report, pytest.TestReport):
                self._log(report)
            else:
                self._problems.append(report.longreprtext)

    def _start(self, nodeid: str) -> None:
        item = self._waiting.get(nodeid)
        if item is not None:
            item.ihook.pytest_runtest_logstart(nodeid=nodeid + self._suffix, location=item.location)

    def _log(self, report: pytest.TestReport) -> None:
        nodeid = report.nodeid
        item = self._waiting.get(nodeid)
        if item is None:
            return
        report.nodeid += self._suffix
        report.user_properties += self._properties
        item.ihook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            item.ihook.pytest_runtest_logfinish(nodeid=report.nodeid, location=item.location)
            del self._waiting[nodeid]
            self._running = None

    def _after_crash(self, words: str) -> None:
        """The test that ran has failed, the rest could not be tried."""
        running = self._running
        if running is not None and running in self._waiting:
            self._report(running, "call", "failed", words)
            self._report(running, "teardown", "passed", "")
        why = f"not run: the guest failed during {running}" if running else words
        self._fail_rest(why)

    def _fail_rest(self, words: str) -> None:
        self._end_rest("failed", words)

    def _without_guest(self, words: str) -> None:
        """Skip on a laptop, fail in CI, as harness.requires has it."""
        self._end_rest("failed" if os.environ.get("CI") else "skipped", words)

    def _end_rest(self, outcome: Outcome, words: str) -> None:
        for nodeid in list(self._waiting):
            self._start(nodeid)
            self._report(nodeid, "setup", outcome, words)
            self._report(nodeid, "teardown", "passed", "")

    def _report(self, nodeid: str, when: When, outcome: Outcome, words: str) -> None:
        item = self._waiting[nodeid]
        path, line, _ = item.location
        longrepr: tuple[str, int, str] | str | None = None
        if outcome == "skipped":
            longrepr = (path, line or 0, words)
        elif outcome == "failed":
            longrepr = words
        self._log(
            pytest.TestReport(
                nodeid,
                item.location,
                dict.fromkeys(item.keywords, 1),
                outcome,
                longrepr,
                when,
            )
        )
