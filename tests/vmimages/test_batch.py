"""One command in one boot: its status, its words and its files come out, and a crash is no result."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from harness import command
from vmimages import batch, guest_commands, results
from vmimages.running import GuestEnded, GuestHung, GuestPanicked

if TYPE_CHECKING:
    from pathlib import Path

    from vmimages.image import BackendName, Image

OPTIONS = batch.Options(backend="uml")
BOTH = pytest.mark.parametrize("backend", ["uml", "qemu"])
ROOT_DEVICES = {"uml": "/dev/ubda", "qemu": "/dev/nvme0n1"}


@BOTH
def test_status_words_and_files_come_out(image: Image, backend: BackendName, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("from the tree\n")
    shown: list[str] = []
    options = batch.Options(backend=backend, disks=(1 << 20,), tree=tree, extra={"more": b"extra\n"})
    line = (
        "echo out; echo err >&2; cat sub/file more; stat -c %U sub/file;"
        " blockdev --getsize64 /dev/disk/by-id/btrsync-disk1; echo kept > $BTRSYNC_RESULTS/artefact; exit 7"
    )
    got = batch.run(image, ["sh", "-c", line], tmp_path / "out", options=options, show=shown.append)
    assert got.status == 7
    assert "".join(shown) == "out\nerr\nfrom the tree\nextra\nroot\n1048576\n"
    assert (tmp_path / "out" / "artefact").read_text() == "kept\n"
    assert "Linux version" in (tmp_path / "out" / "kernel.log").read_text()
    assert "out\n" in (tmp_path / "out" / batch.CONSOLE).read_text().replace("\r", "")


@BOTH
def test_a_guest_gets_no_byte_into_its_image(image: Image, backend: BackendName, tmp_path: Path) -> None:
    said: list[str] = []
    line = (
        "echo changed > /etc/debian_version && rm -rf /usr/share/doc /boot;"
        f" dd if=/dev/zero of={ROOT_DEVICES[backend]} count=1 oflag=direct"
    )
    before = image.root_disk.stat()
    batch.run(image, ["sh", "-c", line], tmp_path, options=batch.Options(backend=backend), show=said.append)
    assert any(word in "".join(said) for word in ("Read-only", "not permitted", "Input/output error")), said
    assert image.root_disk.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("echo c > /proc/sysrq-trigger; sleep 60", GuestPanicked, "sysrq triggered crash"),
        ("echo o > /proc/sysrq-trigger; sleep 60", GuestEnded, "holds no end"),
        ("echo asleep; sleep 600", GuestHung, "had not ended after 5 s"),
    ],
)
def test_a_crash_is_no_result_and_leaves_the_console(
    image: Image, tmp_path: Path, line: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        batch.run(image, ["sh", "-c", line], tmp_path, options=OPTIONS, timeout_s=5)
    assert batch.BEGINS in (tmp_path / batch.CONSOLE).read_text().replace("\r", "")


def test_a_wheel_gets_into_the_guests_python(image: Image, tmp_path: Path) -> None:
    wheel = tmp_path / "made-1-py3-none-any.whl"
    command.run(
        [
            "python3",
            "-c",
            f"import zipfile; zipfile.ZipFile({str(wheel)!r}, 'w').writestr('made.py', 'x = 42')",
        ]
    )
    shown: list[str] = []
    options = batch.Options(backend="uml", wheels=(wheel,))
    got = batch.run(
        image,
        ["python3", "-c", "import made; print(made.x)"],
        tmp_path / "out",
        options=options,
        show=shown.append,
    )
    assert (got.status, shown) == (0, ["42\n"])


def disk_of(path: Path, entries: dict[str, bytes | str], *, cut_bytes: int = 0) -> Path:
    """Write a results disk; a text is the target of a symbolic link."""
    with tarfile.open(path, "w") as tar:
        for name, contents in entries.items():
            entry = tarfile.TarInfo(name)
            if isinstance(contents, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, contents
                tar.addfile(entry)
            else:
                entry.size = len(contents)
                tar.addfile(entry, io.BytesIO(contents))
    with path.open("r+b") as disk:
        if cut_bytes:
            disk.truncate(cut_bytes)
        disk.truncate(1 << 20)
    return path


def test_results_stay_in_their_directory(tmp_path: Path) -> None:
    disk = disk_of(
        tmp_path / "disk",
        {
            "./exit-status": b"3\n",
            "../escaped": b"x",
            "/escaped": b"x",
            "link": str(tmp_path),
            "link/through": b"x",
            "sub/file": b"kept",
            "trailer": b"complete\n",
        },
    )
    got = results.read(disk, tmp_path / "out")
    assert got.status == 3
    assert (tmp_path / "out" / "sub" / "file").read_bytes() == b"kept"
    assert not list(tmp_path.glob("escaped")) and not (tmp_path / "through").exists()


@pytest.mark.parametrize("entries", [{}, {"./exit-status": b"0\n"}, {"trailer": b"complete\n"}])
def test_results_without_status_or_trailer_are_none(tmp_path: Path, entries: dict[str, bytes | str]) -> None:
    with pytest.raises(results.NoResults):
        results.read(disk_of(tmp_path / "disk", entries), tmp_path / "out")


def test_results_cut_anywhere_are_none(tmp_path: Path) -> None:
    entries: dict[str, bytes | str] = {"./exit-status": b"0\n", "file": b"x" * 3000, "trailer": b"complete\n"}
    for cut_bytes in (100, 512, 1024, 1536, 4000, 4608, 5000):
        disk = disk_of(tmp_path / "disk", entries, cut_bytes=cut_bytes)
        with pytest.raises(results.NoResults):
            results.read(disk, tmp_path / f"out{cut_bytes}")


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("512M", 512 << 20), ("2G", 2 << 30), ("3K", 3072)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert guest_commands.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1T", "1.5G", "M", "1 G"])
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError) as told:  # noqa: PT011 - argparse makes the sentence of it
        guest_commands.parse_size(text)
    assert str(told.value) == text
