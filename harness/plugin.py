"""The pytest plugin: contains the session, states what the machine has, and fails on what is left behind."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from harness import containment, enter, host, kernel_log, leaks, requires
from harness.fixtures import *  # noqa: F403 - pytest finds fixtures by their being here

if TYPE_CHECKING:
    from collections.abc import Generator

KEEP_VARIABLE = "BTRSYNC_KEEP"
VM_VARIABLE = "BTRSYNC_VM"
PURE = ("tests/unit", "tests/house")
MARKERS = (
    "requires(*names): of harness.requires.REQUIREMENTS, or program:NAME; skips on a laptop, fails in CI",
    "vm: only a guest can meet it; deselected on the host",
    "kernel_errors_expected: provokes I/O errors, so the kernel log is not held against it",
)


@dataclass(slots=True)
class Session:
    """What the plugin remembers from the start of the session to its end."""

    before: leaks.Holdings
    verdict: leaks.Verdict = field(default_factory=lambda: leaks.Verdict((), ()))
    log: kernel_log.Watch | None = None
    rumours: list[str] = field(default_factory=list)


SESSION = pytest.StashKey[Session]()
HAS_BEGUN = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --no-isolate and --keep."""
    group = parser.getgroup("btrsync harness")
    group.addoption(
        "--no-isolate",
        action="store_true",
        help="run outside the containment, for a debugger; after a SIGKILL: python -m harness sweep",
    )
    group.addoption(
        "--keep",
        action="store_true",
        default=bool(os.environ.get(KEEP_VARIABLE)),
        help="stop at a failure with its hosts up and print how to enter them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def _wants_containment(config: pytest.Config) -> bool:
    option = config.option
    if containment.is_contained() or option.no_isolate or hasattr(config, "workerinput"):
        return False
    if option.collectonly or getattr(option, "help", False) or getattr(option, "version", 0):
        return False
    return not _is_pure(config)


def _is_pure(config: pytest.Config) -> bool:
    """Whether only tests are asked for that touch nothing: they start faster without it."""
    places = [(config.invocation_params.dir / word.partition("::")[0]).resolve() for word in config.args]
    pure = [config.rootpath / word for word in PURE]
    return bool(places) and all(any(place.is_relative_to(one) for one in pure) for place in places)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run the whole of pytest once more inside the containment, and pass its status on."""
    if not _wants_containment(config) or containment.problem() is not None:
        return None
    argv = [sys.executable, "-m", "pytest", *config.invocation_params.args]
    return containment.run(argv, cwd=config.invocation_params.dir)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say whether the session is contained, and whether the kernel log can be read."""
    if containment.is_contained():
        words = "yes"
    else:
        why = "--no-isolate" if config.option.no_isolate else containment.problem() or "not needed"
        words = f"no: {why}"
    problem = kernel_log.problem()
    log = f"not read ({problem})" if problem else "read after every test that uses a loop device"
    return [f"harness: contained: {words}; kernel log: {log}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only a guest can meet, unless this is one."""
    if os.environ.get(VM_VARIABLE) or _has_guests(config):
        return
    away = [item for item in items if item.get_closest_marker("vm")]
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if not item.get_closest_marker("vm")]


def _has_guests(config: pytest.Config) -> bool:
    """Whether another plugin runs all tests in guests, which have what they have."""
    return bool(getattr(config.option, "has_guests", False))


def _required(item: pytest.Item) -> list[str]:
    names = [str(name) for marker in item.iter_markers("requires") for name in marker.args]
    return list(dict.fromkeys(names))


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Say what of all that these tests require is on and what is off."""
    names = list(dict.fromkeys(name for item in items for name in _required(item)))
    if config.option.collectonly or not names or _has_guests(config):
        return []
    off = {name: why for name in names if (why := requires.reason(name)) is not None}
    on = [name for name in names if name not in off]
    lines = [f"harness: on: {', '.join(on) or 'nothing'}"]
    return lines + [f"harness: off: {name} ({why})" for name, why in off.items()]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail in CI, what the machine cannot do; put a marker into the kernel log."""
    missing = requires.missing(*_required(item))
    if missing:
        words = "missing: " + "; ".join(missing)
        if os.environ.get("CI"):
            pytest.fail(words, pytrace=False)
        pytest.skip(words)
    log = item.config.stash[SESSION].log
    if log is not None:
        log.begin()
    item.stash[HAS_BEGUN] = True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """After all fixtures are gone, hold what the kernel said against the test."""
    yield
    log = item.config.stash[SESSION].log
    if HAS_BEGUN not in item.stash or log is None:
        return
    alarms, rumours = log.end()
    if item.get_closest_marker("kernel_errors_expected"):
        return
    item.config.stash[SESSION].rumours += rumours
    if alarms:
        pytest.fail("the kernel said during this test:\n" + "\n".join(alarms), pytrace=False)


def pytest_exception_interact(node: pytest.Item | pytest.Collector, report: pytest.CollectReport) -> None:
    """With --keep, stop before anything is undone and say how to enter the wreck."""
    if not node.config.option.keep or not isinstance(node, pytest.Item) or not host.up:
        return
    capture = node.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{report.longreprtext}\n\n{node.nodeid} failed. Its hosts are still up; to enter them:")
        print(enter.hint(one.name for one in host.up))
        print("Enter, or Ctrl-D, goes on and takes them down.", flush=True)
        if sys.__stdin__ is not None:
            sys.__stdin__.readline()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Read what is held before the first test."""
    log = kernel_log.Watch(is_alone=leaks.is_alone()).__enter__() if kernel_log.problem() is None else None
    session.config.stash[SESSION] = Session(leaks.read(), log=log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if it left something behind; after the last fixture, before the summary."""
    remembered = session.config.stash.get(SESSION, None)
    if remembered is None:
        return
    remembered.verdict = leaks.since(remembered.before)
    if remembered.log is not None:
        remembered.log.__exit__()
    if remembered.verdict.leaks and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List what was left behind."""
    remembered = config.stash.get(SESSION, None)
    if remembered is None:
        return
    if remembered.verdict.leaks:
        terminalreporter.section("left behind by this session", red=True)
        for words in remembered.verdict.leaks:
            terminalreporter.line(words)
    for words in remembered.rumours:
        terminalreporter.line(f"harness: the kernel said, of us or of a neighbour: {words}")
    for words in remembered.verdict.foreign:
        terminalreporter.line(f"harness: appeared meanwhile, not ours: {words}")
