"""What the options of any command say about the whole run of the program, for `cli` to read."""

from __future__ import annotations


class Invocation:
    """Filled in while the command line is read; verbosity: how many -v there were."""

    def __init__(self, *, shows_traceback: bool = False) -> None:
        self.shows_traceback = shows_traceback
        self.verbosity = 0
