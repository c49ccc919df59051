"""The table of mutations, and the way a list of them is applied and named for a replay.

Numbers are those of the twenty scenarios; 17 to 19 are no changes of a tree but things that happen
around one, and live in `harness.tree.drivers`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from harness.tree import churn, extents, metadata, structure
from harness.tree.mutation import Apply, Mutation, NotExercised
from harness.tree.root import Root, settled_times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


def _mutation(number: int, name: str, tags: str, apply: Apply, *, needs_remount: bool = False) -> Mutation:
    return Mutation(number, name, frozenset(tags.split()), apply, needs_remount)


_TABLE = (
    _mutation(1, "inversion", "structure", structure.invert),
    _mutation(2, "name-rotation", "structure", structure.rotate_names),
    _mutation(3, "directory-names-taken", "structure links", structure.take_directory_names),
    _mutation(4, "link-fan", "structure links", structure.spread_links),
    _mutation(5, "same-inode-again", "structure", structure.make_same_inode_again, needs_remount=True),
    _mutation(6, "emptied-directories", "structure", structure.empty_and_remove),
    _mutation(7, "changed-and-moved", "metadata structure capabilities", metadata.change_and_move),
    _mutation(8, "odd-names", "structure names", structure.give_odd_names),
    _mutation(9, "xattrs", "metadata capabilities acls", metadata.change_xattrs),
    _mutation(10, "holes", "extents holes", extents.change_holes),
    _mutation(11, "reflinks-within", "extents reflinks", extents.reflink_within),
    _mutation(12, "reflinks-between", "extents reflinks", extents.reflink_between),
    _mutation(13, "dedupe", "extents reflinks", extents.dedupe),
    _mutation(14, "compression", "extents metadata", extents.change_compression),
    _mutation(15, "nested-subvolume", "structure subvolumes", churn.nest_subvolume),
    _mutation(16, "flags", "metadata flags", metadata.change_flags),
    _mutation(20, "churn", "structure extents", churn.churn),
)

MUTATIONS: Mapping[str, Mutation] = {mutation.name: mutation for mutation in _TABLE}
"""All mutations by name, in the order of their numbers."""

_BY_NUMBER = {mutation.number: mutation for mutation in _TABLE}


def mutate(
    root: Path,
    seed: int,
    names: Sequence[str] | None = None,
    *,
    remount: Callable[[], None] | None = None,
) -> list[str]:
    """Apply mutations to the tree at `root`, in the order given; return the names of those applied.

    names: None means each that can be applied, once, in an order drawn from the seed. A name may come
    twice. remount: unmounts and mounts the filesystem at the same place; without it mutations that
    need it are left out of None, and refused by ValueError when named. One that found nothing to work
    on is missing from the answer. Whatever goes wrong carries a note that says how to replay it.
    Raises KeyError for an unknown name.
    """
    if names is None:
        possible = [name for name in MUTATIONS if remount is not None or not MUTATIONS[name].needs_remount]
        names = Random(f"order:{seed}").sample(possible, len(possible))
    steps = mutate_by_steps(root, seed, names, remount=remount)
    return [name for name, has_applied in steps if has_applied]


def mutate_by_steps(
    root: Path, seed: int, names: Sequence[str], *, remount: Callable[[], None] | None = None
) -> Iterator[tuple[str, bool]]:
    """Like `mutate`, but pause after each: yields its name, and whether it found something to work on."""
    chosen = [MUTATIONS[name] for name in names]
    if remount is None and (stuck := [mutation.name for mutation in chosen if mutation.needs_remount]):
        raise ValueError(f"{', '.join(stuck)}: this needs a way to remount, and none was given")
    counts: Counter[str] = Counter()
    for number, mutation in enumerate(chosen, 1):
        counts[mutation.name] += 1
        # By name and count, not by place: the rest of a list does the same when one is dropped.
        salt = f"{seed}:{mutation.name}:{counts[mutation.name]}"
        has_applied = True
        try:
            # Open for one step only: between two the caller may unmount.
            with Root(root, remount=remount) as tree, settled_times(tree, salt):
                mutation.apply(tree, Random(salt))
        except NotExercised:
            has_applied = False
        except Exception as error:
            error.add_note(f"{mutation.name} failed; replay: {format_replay(seed, names[:number])}")
            raise
        yield mutation.name, has_applied


@dataclass(frozen=True, slots=True)
class Replay:
    """The seed of a tree and of its mutations, and their names in order."""

    seed: int
    names: tuple[str, ...]


def format_replay(seed: int, names: Sequence[str]) -> str:
    """Return the string that `parse_replay` reads: the seed and the numbers, as `7:1,5,12`."""
    return f"{seed}:" + ",".join(str(MUTATIONS[name].number) for name in names)


def parse_replay(text: str) -> Replay:
    """Return what `7:1,5,12` says; names may stand for numbers. Raises ValueError with the reason."""
    seed, colon, items = text.partition(":")
    try:
        number = int(seed)
    except ValueError:
        colon = ""
        number = 0
    if not colon:
        raise ValueError(f"{text}: a replay is a seed, a colon and a list of mutations, as 7:1,5,12")
    return Replay(number, tuple(_named(item.strip()) for item in items.split(",") if item.strip()))


def _named(item: str) -> str:
    if item in MUTATIONS:
        return item
    if item.isascii() and item.isdigit() and int(item) in _BY_NUMBER:
        return _BY_NUMBER[int(item)].name
    known = ", ".join(f"{mutation.number} {mutation.name}" for mutation in _TABLE)
    raise ValueError(f"{item}: no such mutation; there are {known}")
