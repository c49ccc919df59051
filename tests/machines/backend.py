"""How testinfra enters a rehearsal host: `get_host("rehearsal://PID")`.

Host commands used: `nsenter`, and in the host `/bin/sh`.
"""

from __future__ import annotations

from typing import Any

from testinfra import backend
from testinfra.backend.base import BaseBackend, CommandResult

from harness import command

TIMEOUT_S = 30.0
NAME = "rehearsal"


class RehearsalBackend(BaseBackend):  # type: ignore[misc] # testinfra has no types
    """Runs commands in the namespaces of one host.

    pid: that of the host's first process, as text. No shell of this machine sees a command, only that
    of the host, which testinfra quotes for.
    """

    NAME = NAME

    def __init__(self, pid: str, *args: Any, **kwargs: Any) -> None:
        """Only remember the pid. Raises ValueError if it is none."""
        if not (pid.isascii() and pid.isdecimal()):
            raise ValueError(f"rehearsal://PID takes the pid of a host's first process, not {pid!r}")
        super().__init__(pid, *args, **kwargs)

    def get_encoding(self) -> str:
        """Return the encoding of a host's answers: `harness.command` sets LANG to C.UTF-8."""
        return "UTF-8"

    def run(self, command_line: str, *args: str, **_: Any) -> CommandResult:
        """Run a line of shell in the host, with `args` quoted into it, and return what came of it.

        Raises CommandFailed after TIMEOUT_S: testinfra itself would wait for ever.
        """
        line = self.get_command(command_line, *args)
        said = command.run(
            ["nsenter", "-t", self.hostname, "-n", "-m", "-p", "-u", "-i", "--", "/bin/sh", "-c", line],
            ok=None,
            timeout_s=TIMEOUT_S,
            env={"HOME": "/root"},
            path=command.SYSTEM_PATH,
        )
        texts = (said.stdout, said.stderr)
        stdout, stderr = (text.encode("utf-8", "surrogateescape") for text in texts)
        return self.result(said.returncode, line.encode("utf-8", "surrogateescape"), stdout, stderr)


def register() -> None:
    """Make the backend known to testinfra, which has a plain dict for it and no entry point."""
    backend.BACKENDS[NAME] = f"{__name__}.{RehearsalBackend.__name__}"
