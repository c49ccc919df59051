"""How testinfra enters a machine: through its control channel."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import testinfra
from testinfra import backend
from testinfra.backend.base import BaseBackend, CommandResult

if TYPE_CHECKING:
    from testinfra.host import Host

    from vmimages.machine import Machine

NAME = "machine"
TIMEOUT_S = 60.0

# testinfra keeps what it made by its specification, for the life of the process: none is used twice.
_numbers = itertools.count(1)
_machines: weakref.WeakValueDictionary[str, Machine] = weakref.WeakValueDictionary()
_specifications: weakref.WeakKeyDictionary[Machine, str] = weakref.WeakKeyDictionary()


class MachineBackend(BaseBackend):  # type: ignore[misc] # testinfra has no types
    """Runs lines of shell in a machine."""

    NAME = NAME

    def __init__(self, number: str, *args: object, **kwargs: object) -> None:
        self._machine = _machines[number]
        super().__init__(number, *args, **kwargs)

    def get_encoding(self) -> str:
        """Return the encoding of a guest's answers: init sets LANG to C.UTF-8."""
        return "UTF-8"

    def run(self, command: str, *args: str, **_: object) -> CommandResult:
        """Run a line of shell, with `args` quoted into it, and return what came of it."""
        line = self.get_command(command, *args)
        said = self._machine.execute(line, timeout_s=TIMEOUT_S)
        stdout, stderr = (text.encode("utf-8", "surrogateescape") for text in (said.stdout, said.stderr))
        return self.result(said.returncode, line.encode("utf-8", "surrogateescape"), stdout, stderr)


def host(machine: Machine) -> Host:
    """Return testinfra's view of a machine, which must run when it is asked something."""
    backend.BACKENDS[NAME] = f"{__name__}.{MachineBackend.__name__}"
    if machine not in _specifications:
        number = str(next(_numbers))
        _machines[number] = machine
        _specifications[machine] = number
    return testinfra.get_host(f"{NAME}://{_specifications[machine]}")
