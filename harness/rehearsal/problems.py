"""What keeps a rehearsal from being held, or a step from passing, as types that carry their evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

USAGE = 2
UNFIT = 3


class CannotRehearse(Exception):
    """The rehearsal cannot begin: one sentence for each problem, a hint, an exit status.

    2: the command line asks for what is not there; 3: the configuration or this machine will not do.
    """

    def __init__(self, *problems: str, exit_status: int = USAGE, hint: str | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.exit_status = exit_status
        self.hint = hint


class StepFailed(Exception):
    """A step did not show what it is there to show."""

    def __init__(self, problem: str, evidence: Iterable[str] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.evidence = tuple(evidence)


class NotExercised(StepFailed):
    """The fault of a step came too late or not at all, so that nothing was shown: never a pass."""

    def __init__(self, problem: str, evidence: Iterable[str] = ()) -> None:
        super().__init__(f"not exercised: {problem}", evidence)
