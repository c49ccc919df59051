"""The command line of the tree: generate, mutate, replay; manifest and diff."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import ioctls, manifest, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(words: Sequence[str] | None = None) -> int:
    """Run one subcommand; return 0, 1 when two trees differ, or 2 for what cannot be done."""
    arguments = _parser().parse_args(words)
    action: Callable[[argparse.Namespace], int] = arguments.action
    try:
        return action(arguments)
    except (OSError, ValueError, tree.NotBtrfsError) as error:
        print(f"python -m harness.tree: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.tree", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text)
        parser.set_defaults(action=action)
        return parser

    generate = command("generate", _generate, "fill an empty directory or subvolume on btrfs")
    generate.add_argument("root", type=Path)
    mutate = command("mutate", _mutate, "change a tree by all mutations, or by those named")
    mutate.add_argument("root", type=Path)
    mutate.add_argument("names", nargs="*", metavar="MUTATION", help="a name, or the number of its scenario")
    for each in (generate, mutate):
        each.add_argument("--seed", type=int, default=1)
    replay = command("replay", _replay, "generate a tree and apply a list of mutations, as 7:1,5,12")
    replay.add_argument("root", type=Path)
    replay.add_argument("replay", type=tree.parse_replay, metavar="SEED:LIST")
    replay.add_argument(
        "--snapshots", type=Path, metavar="DIR", help="a read-only one after each step, numbered"
    )
    for each in (generate, replay):
        each.add_argument("--size", choices=tree.SIZES, default="small")
    for each in (mutate, replay):
        each.add_argument(
            "--remount", metavar="MOUNTPOINT", type=Path, help="may be unmounted and mounted half-way"
        )
    read = command("manifest", _manifest, "write the manifest of a tree as JSON lines")
    read.add_argument("root", type=Path)
    diff = command("diff", _diff, "compare two trees, or manifests written by the command above")
    diff.add_argument("a", type=Path)
    diff.add_argument("b", type=Path)
    diff.add_argument("--limit", type=int, default=manifest.DEFAULT_LIMIT, help="lines shown; 0 for all")
    for each in (read, diff):
        each.add_argument("--holes", action="store_true", help="compare holes too")
    command("mutations", _list, "list the mutations")
    return parser


def _generate(arguments: argparse.Namespace) -> int:
    tree.generate(arguments.root, arguments.seed, arguments.size)
    return 0


def _mutate(arguments: argparse.Namespace) -> int:
    names = tree.parse_replay(f"{arguments.seed}:{','.join(arguments.names)}").names or None
    applied = tree.mutate(arguments.root, arguments.seed, names, remount=_remount(arguments.remount))
    print(tree.format_replay(arguments.seed, applied))
    return _missing(names or (), applied)


def _replay(arguments: argparse.Namespace) -> int:
    replay: tree.Replay = arguments.replay
    tree.generate(arguments.root, replay.seed, arguments.size)
    steps = tree.mutate_by_steps(
        arguments.root, replay.seed, replay.names, remount=_remount(arguments.remount)
    )
    applied: list[str] = []
    _snapshot(arguments, 0)
    for number, (name, has_applied) in enumerate(steps, 1):
        print(f"{number} {name}{'' if has_applied else ': found nothing to work on'}")
        if has_applied:
            applied.append(name)
        _snapshot(arguments, number)
    return _missing(replay.names, applied)


def _missing(names: Sequence[str], applied: Sequence[str]) -> int:
    if len(applied) < len(names):
        print(f"{len(names) - len(applied)} of {len(names)} found nothing to work on", file=sys.stderr)
        return 1
    return 0


def _snapshot(arguments: argparse.Namespace, number: int) -> None:
    if arguments.snapshots is None:
        return
    source = os.open(arguments.root, os.O_RDONLY | os.O_DIRECTORY)
    directory = os.open(arguments.snapshots, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ioctls.create_snapshot(source, directory, b"%03d" % number)
    finally:
        os.close(source)
        os.close(directory)


def _remount(mount_point: Path | None) -> Callable[[], None] | None:
    if mount_point is None:
        return None
    from harness.tree.drivers import remount

    return lambda: remount(mount_point)


def _read(path: Path, *, holes: bool) -> manifest.Manifest:
    if path.is_dir():
        return manifest.read(path, with_holes=holes)
    with path.open() as lines:
        return manifest.parse_lines(lines)


def _manifest(arguments: argparse.Namespace) -> int:
    for line in manifest.format_lines(_read(arguments.root, holes=arguments.holes)):
        print(line)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    a, b = (_read(path, holes=arguments.holes) for path in (arguments.a, arguments.b))
    lines = manifest.difference(a, b, limit=arguments.limit or None)
    print("\n".join(lines) or f"equal: {len(a.entries)} entries")
    return 1 if lines else 0


def _list(_: argparse.Namespace) -> int:
    for mutation in tree.MUTATIONS.values():
        remark = " (remount)" if mutation.needs_remount else ""
        print(f"{mutation.number:2} {mutation.name:24} {mutation.summary}{remark}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
