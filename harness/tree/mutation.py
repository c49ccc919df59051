"""What a mutation is: a named change of a tree, one for each scenario that a test can name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from random import Random

    from harness.tree.root import Root


class NotExercised(Exception):
    """The tree had nothing this mutation could work on: an outcome of its own, never a pass."""


class Apply(Protocol):
    """Changes a tree, taking every choice from `rng`. Raises NotExercised before it changed anything."""

    def __call__(self, root: Root, rng: Random) -> None: ...


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change between two snapshots.

    number: the scenario it stands for, as in a replay string. tags: what it touches. needs_remount:
    it works only where the filesystem can be unmounted and mounted half-way.
    """

    number: int
    name: str
    tags: frozenset[str]
    apply: Apply
    needs_remount: bool = False

    @property
    def summary(self) -> str:
        """The first line of what `apply` says of itself."""
        return (self.apply.__doc__ or "").strip().splitlines()[0]
