"""The work disk: a tar that a guest unpacks at /work, with the working tree and what init is to do.

Host commands used: `git`, where the tree is a checkout.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GUEST = Path(__file__).with_name("guest")
AGENT = ".guest/agent.py"
LEFT_OUT = frozenset({".git", ".venv", ".tox", "build", "dist", "__pycache__"})
BLOCK_BYTES = 4096
"""A disk is whole sectors, also one whose sectors are large."""


def tree_files(tree: Path) -> list[Path]:
    """Return the files of a working tree, relative to it: what git tracks or would, else all but litter."""
    argv = ["git", "-c", "safe.directory=*", "-C", str(tree), "ls-files", "-z", "--cached", "--others"]
    try:
        listed = command.run([*argv, "--exclude-standard"], ok=None)
    except FileNotFoundError:
        listed = None
    if listed is not None and listed.returncode == 0:
        names = sorted(set(listed.stdout.split("\0")) - {""})
        # A file may be deleted in the tree and still known to git.
        return [Path(name) for name in names if (tree / name).is_file() or (tree / name).is_symlink()]
    found = (path.relative_to(tree) for path in sorted(tree.rglob("*")) if path.is_file())
    return [path for path in found if not LEFT_OUT.intersection(path.parts)]


def pack(
    path: Path,
    *,
    tree: Path | None = None,
    extra: Mapping[str, bytes] | None = None,
    wheels: Iterable[Path] = (),
) -> None:
    """Write the work disk.

    tree: a working tree that becomes /work. extra: further files by their path below /work. wheels:
    put into /work/.guest/wheels. The agent is always there.
    """
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        files = {AGENT: (GUEST / "agent.py").read_bytes(), **(extra or {})}
        files.update({f".guest/wheels/{wheel.name}": wheel.read_bytes() for wheel in wheels})
        for name, contents in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(contents)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(contents))
        if tree is not None:
            for path_in_tree in tree_files(tree):
                tar.add(tree / path_in_tree, arcname=path_in_tree, recursive=False, filter=_anonymous)
    with path.open("ab") as disk:
        disk.truncate(-(-disk.tell() // BLOCK_BYTES) * BLOCK_BYTES)


def pack_one(source: Path) -> bytes:
    """Return a tar of one file or tree, under its own name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(source, arcname=source.name, filter=_anonymous)
    return packed.getvalue()


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Give an entry to the guest's root: sshd and git mind who owns a file."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
