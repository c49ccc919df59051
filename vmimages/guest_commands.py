"""`boot`, `run` and `shell`: what a person does with a guest from the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmimages import accel, batch
from vmimages.build import build_image
from vmimages.errors import VmError
from vmimages.machine import Machine
from vmimages.running import GuestFailed

if TYPE_CHECKING:
    import argparse

    from vmimages.image import Image

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - the only name it has

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
FAILED = 125
"""The guest failed, not the command: as timeout(1) and containers have it."""


def add(commands: Commands) -> None:
    """Add the three commands to a parser."""
    boot = commands.add_parser("boot", help="boot to the first command and power off, as a check")
    _add_options(boot)
    boot.set_defaults(run=_boot)
    run = commands.add_parser(
        "run",
        help="run a command in a guest, with the working tree at /work; its exit status is ours",
    )
    _add_options(run)
    run.add_argument(
        "--results", type=Path, default=Path("vm-results"), metavar="DIR",
        help="for what the command leaves in $BTRSYNC_RESULTS, and the console (default: %(default)s)",
    )  # fmt: skip
    run.add_argument("--wheel", type=Path, action="append", default=[], help="put it into the guest's Python")
    run.add_argument(
        "--put", type=parse_put, action="append", default=[], metavar="NAME=FILE",
        help="a file of this host, which the command finds at /work/NAME; may be given again",
    )  # fmt: skip
    run.add_argument("--no-tree", action="store_true", help="leave the working tree out")
    run.add_argument("--timeout", type=float, default=batch.TIMEOUT_S, metavar="SECONDS")
    run.add_argument("argv", nargs="+", metavar="COMMAND", help="after --: the command and its arguments")
    run.set_defaults(run=_run)
    shell = commands.add_parser("shell", help="boot with a shell on this terminal")
    _add_options(shell)
    shell.set_defaults(run=_shell)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--backend", choices=("uml", "qemu"), help="default: uml if the image has it")
    parser.add_argument(
        "--accel", choices=accel.CHOICES, default="auto",
        help="for QEMU; by default KVM if a trial shows that the kernel boots under it, else tcg, emulation",
    )  # fmt: skip
    parser.add_argument(
        "--disk", type=parse_size, action="append", default=[], metavar="SIZE",
        help="a blank disk, such as 512M; may be given again: /dev/disk/by-id/btrsync-disk1, …",
    )  # fmt: skip
    parser.add_argument("--memory", type=parse_size, default=batch.MEMORY_MIB << 20, metavar="SIZE")


def parse_size(text: str) -> int:
    """Return the bytes that "512M" or "2G" means. Raises ValueError, as argparse wants it."""
    match = re.fullmatch(r"(\d{1,15})([KMG]?)", text)
    if match is None or int(match[1]) == 0:
        raise ValueError(text)
    return int(match[1]) * UNITS[match[2]]


def parse_put(text: str) -> tuple[str, Path]:
    """Return what "NAME=FILE" means. Raises ValueError, as argparse wants it."""
    name, equals, file = text.partition("=")
    if not equals or not name or not file or name.startswith("/") or ".." in Path(name).parts:
        raise ValueError(text)
    return name, Path(file)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise VmError(f"{file} cannot be read: {error.strerror}") from None


def _options(words: argparse.Namespace, *, tree: Path | None) -> batch.Options:
    wheels: list[Path] = getattr(words, "wheel", [])
    for wheel in wheels:
        if not wheel.is_file():
            raise VmError(f"there is no wheel {wheel}")
    return batch.Options(
        backend=words.backend,
        disks=tuple(words.disk),
        memory_mib=words.memory >> 20,
        tree=tree,
        wheels=wheels,
        extra={name: _read(file) for name, file in getattr(words, "put", [])},
        accel=words.accel,
    )


def _tree() -> Path | None:
    """Return the working tree that this package is part of, or None where it is installed."""
    tree = Path(__file__).resolve().parents[1]
    return tree if (tree / "pyproject.toml").is_file() else None


def _image(words: argparse.Namespace) -> Image:
    return build_image(words.image, backends=[words.backend] if words.backend else [])


def _boot(words: argparse.Namespace) -> int:
    options = _options(words, tree=None)
    image = _image(words)
    try:
        with Machine(
            image, backend=options.backend, disks=options.disks, memory_mib=options.memory_mib
        ) as one:
            one.accel = options.accel
            one.start()
            if one.backend == "qemu":
                chosen = accel.choose(image, options.accel)
                print(f"{image.name}: {chosen.accel}: {chosen.why}")
            print(f"{image.name}: {one.backend}, {one.succeed(['uname', '-sr']).strip()}, {one.boot_s:.1f} s")
            one.shutdown()
    except GuestFailed as error:
        return _failed(error)
    return 0


def _run(words: argparse.Namespace) -> int:
    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    options = _options(words, tree=None if words.no_tree else _tree())
    try:
        results = batch.run(
            _image(words), words.argv, words.results, options=options, timeout_s=words.timeout, show=show
        )
    except GuestFailed as error:
        return _failed(error)
    return results.status


def _shell(words: argparse.Namespace) -> int:
    try:
        return batch.shell(_image(words), options=_options(words, tree=_tree()))
    except GuestFailed as error:
        return _failed(error)


def _failed(error: GuestFailed) -> int:
    print(f"vmimages: {error}", file=sys.stderr)
    return FAILED
