"""Every assertion about machines is seen to fail once, for the reason it is there, and to hold again."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

import pytest

from tests.machines import breakers, test_both, test_server, test_workstation

if TYPE_CHECKING:
    from types import ModuleType

    from harness.scenario import TwoHosts
    from tests.machines.breakers import Breaker
    from tests.machines.inventory import Machines

pytestmark = [pytest.mark.rehearsal, pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")]

TABLES: tuple[tuple[ModuleType, dict[str, Breaker]], ...] = (
    (test_server, breakers.SERVER),
    (test_workstation, breakers.WORKSTATION),
    (test_both, breakers.BOTH),
)
CASES = [(module, name, breaker) for module, table in TABLES for name, breaker in table.items()]


def assertions(module: ModuleType) -> dict[str, Any]:
    """Return the test functions of a module."""
    return {name: value for name, value in vars(module).items() if name.startswith("test_")}


def call(assertion: Any, machines: Machines) -> None:
    """Call one test function with the machines that it asks for, as pytest does."""
    given = {"machines": machines, "workstation": machines.workstation, "server": machines.server}
    assertion(**{name: given[name] for name in inspect.signature(assertion).parameters})


@pytest.mark.parametrize(
    ("module", "name", "breaker"),
    CASES,
    ids=[f"{module.__name__.rpartition('.')[2]}-{name}" for module, name, _ in CASES],
)
def test_an_assertion_fails_where_its_reason_is_broken(
    rehearsal: TwoHosts, machines: Machines, module: ModuleType, name: str, breaker: Breaker
) -> None:
    assertion = assertions(module)[name]
    with breaker.broken(rehearsal), pytest.raises(AssertionError) as failure:
        call(assertion, machines)
    assert breaker.says in str(failure.value)
    call(assertion, machines)


@pytest.mark.parametrize(("module", "table"), TABLES, ids=[module.__name__ for module, _ in TABLES])
def test_every_assertion_has_its_breaker(module: ModuleType, table: dict[str, Breaker]) -> None:
    assert sorted(table) == sorted(assertions(module))


@pytest.mark.parametrize("module", [module for module, _ in TABLES], ids=lambda module: module.__name__)
def test_every_test_of_a_machine_makes_one_assertion(module: ModuleType) -> None:
    functions = [
        node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.FunctionDef)
    ]
    counts = {
        function.name: sum(isinstance(node, ast.Assert) for node in ast.walk(function))
        for function in functions
        if function.name.startswith("test_")
    }
    assert {name: count for name, count in counts.items() if count != 1} == {}
