"""An ext4 image of a root tree, in which everything belongs to root whoever made it.

Host commands used: `mke2fs`, `debugfs`, `cp`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command
from vmimages.bound import bound
from vmimages.errors import VmError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BLOCK_BYTES = 4096
SLACK_BYTES = 32 << 20
SPARE_INODES = 512
TIMEOUT_S = 300
FEATURES = "^has_journal,^resize_inode"
"""Guests mount it read-only: nothing to replay, nothing to grow."""


def make(root: Path, image: Path) -> None:
    """Write the tree `root` to a new sparse ext4 image, owned by uid 0 and gid 0."""
    paths = list(_walk(root))
    size_bytes = sum(-(-os.lstat(path).st_size // BLOCK_BYTES) * BLOCK_BYTES for path in paths)
    blocks = (size_bytes + size_bytes // 16 + SLACK_BYTES) // BLOCK_BYTES
    # fmt: off
    command.run(
        bound(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-b", str(BLOCK_BYTES), "-O", FEATURES, "-m", "0",
         "-N", str(len(paths) + SPARE_INODES), "-d", root, image, str(blocks)]),
        timeout_s=TIMEOUT_S,
    )
    # fmt: on
    if os.geteuid() != 0 or os.getegid() != 0:
        _own_by_root(root, paths, image)


def add(image: Path, folder: str, files: Mapping[str, Path]) -> None:
    """Write files into an existing folder of an unmounted image, owned by root; scripts are executable."""
    lines = [f"cd /{folder}"]
    for name, file in sorted(files.items()):
        lines.append(f"write {_quoted(file)} {name}")
        mode = "0100755" if file.read_bytes().startswith(b"#!") else "0100644"
        lines.append(f"sif {name} mode {mode}")
        lines += [f"sif {name} {field} 0" for field in ("uid", "gid")]
    _debugfs(image, lines)


def copy(source: Path, target: Path) -> None:
    """Copy an image, sharing its blocks where the filesystem can."""
    command.run(bound(["cp", "--reflink=auto", "--sparse=always", source, target]), timeout_s=TIMEOUT_S)


def _own_by_root(root: Path, paths: list[Path], image: Path) -> None:
    """Give every inode to root: mke2fs -d copies the builder's, and user namespaces are not everywhere."""
    lines = []
    for path in paths:
        inside = _quoted(Path("/") / path.relative_to(root))
        lines += [f"sif {inside} uid 0", f"sif {inside} gid 0"]
    _debugfs(image, lines)


def _walk(root: Path) -> Iterator[Path]:
    yield root
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield Path(folder) / name


def _quoted(path: Path) -> str:
    if '"' in str(path):
        raise VmError(f"debugfs cannot be told of a name with a quotation mark: {path}")
    return f'"{path}"'


def _debugfs(image: Path, lines: list[str]) -> None:
    """Let debugfs do what it is told; raises VmError with its words, for its exit status is always 0."""
    script = "".join(f"{line}\n" for line in lines)
    done = command.run(bound(["debugfs", "-w", "-f", "-", image]), input=script, timeout_s=TIMEOUT_S)
    said = [line for line in done.stderr.splitlines() if line and not line.startswith("debugfs 1.")]
    if said:
        raise VmError(f"debugfs could not write to {image}: {'; '.join(said[:3])}")
