"""Seeded trees with every kind of node, and the mutations that turn one state into the next."""

from harness.tree.generator import SIZES, generate
from harness.tree.mutation import Mutation, NotExercised
from harness.tree.mutations import MUTATIONS, Replay, format_replay, mutate, mutate_by_steps, parse_replay
from harness.tree.root import NotBtrfsError

__all__ = [
    "MUTATIONS",
    "SIZES",
    "Mutation",
    "NotBtrfsError",
    "NotExercised",
    "Replay",
    "format_replay",
    "generate",
    "mutate",
    "mutate_by_steps",
    "parse_replay",
]
