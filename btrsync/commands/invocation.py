"""What the options of any command say about the whole run of the program, for `cli` to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Invocation:
    """Filled in while the command line is read; verbosity: how many -v there were."""

    shows_traceback: bool = False
    verbosity: int = 0
