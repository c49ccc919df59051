"""Which machines the tests look at: `--target rehearsal` makes two hosts, the others name real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.scenario import TwoHosts
from tests.machines import inventory
from tests.machines.inventory import Machines

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKERS = (
    "readonly: looks at a machine's state and changes nothing; all that is run on production",
    "rehearsal: breaks machines, or is about the rehearsal itself; never run on real ones",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --target, --server and --workstation."""
    group = parser.getgroup("btrsync machines")
    group.addoption(
        "--target",
        choices=inventory.TARGETS,
        default="rehearsal",
        help="the machines to look at: hosts made for it (default), virtual machines, the real ones",
    )
    group.addoption(
        "--server", metavar="SPEC", help="the server's name or testinfra spec, if it is a real one"
    )
    group.addoption(
        "--workstation", metavar="SPEC", help="the same for the workstation; local:// is this one"
    )


def _chosen(config: pytest.Config) -> tuple[str, str | None, str | None]:
    # With defaults: when the whole of tests/ is run this file is read after the command line.
    return (
        config.getoption("--target", "rehearsal"),
        config.getoption("--server", None),
        config.getoption("--workstation", None),
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known; refuse a target without its machines."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if (words := inventory.problem(*_chosen(config))) is not None:
        raise pytest.UsageError(words)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On real machines deselect what belongs to the rehearsal; on production all that is not readonly."""
    target = _chosen(config)[0]
    kept = [item for item in items if is_kept(item, target)]
    away = [item for item in items if not is_kept(item, target)]
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = kept


def is_kept(item: pytest.Item, target: str) -> bool:
    """Return whether a test may run on a target."""
    if target == "production":
        return item.get_closest_marker("readonly") is not None
    return target == "rehearsal" or item.get_closest_marker("rehearsal") is None


@pytest.fixture(scope="session")
def rehearsal() -> Iterator[TwoHosts]:
    """A workstation and daisy with four disks, set up as they should be."""
    with TwoHosts() as both:
        yield both


@pytest.fixture(scope="session")
def machines(request: pytest.FixtureRequest) -> Machines:
    """The machines of the chosen target."""
    target, server, workstation = _chosen(request.config)
    if target == "rehearsal":
        return Machines.of_rehearsal(request.getfixturevalue("rehearsal"))
    return Machines.of_command_line(target, str(server), str(workstation))


@pytest.fixture(scope="session")
def workstation(machines: Machines) -> Any:
    """The workstation, as testinfra sees it."""
    return machines.workstation


@pytest.fixture(scope="session")
def server(machines: Machines) -> Any:
    """The server, as testinfra sees it."""
    return machines.server
