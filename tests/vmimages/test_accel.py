"""The accelerator of QEMU: tried with the very kernel, remembered as long as that holds."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from harness import command, processes
from vmimages import accel, qemu
from vmimages.accel import Verdict, Verdicts
from vmimages.boot import Drive
from vmimages.errors import VmError

if TYPE_CHECKING:
    from pathlib import Path

    from vmimages.image import Image

TCG = Verdict("tcg", "found out")
BOOT_ID = "11111111-aaaa"

REAL_DEVICE = """
import json, os, sys, tempfile
from pathlib import Path
from harness import command
from vmimages import accel, qemu
from vmimages.build import build_image
from vmimages.machine import Machine
from vmimages.running import GuestFailed

image = build_image("trixie", backends=["qemu"])
if qemu.KVM.exists():
    node = Path(tempfile.mkdtemp()) / "kvm"
    command.run(["mknod", "-m", "666", node, "c", "10", str(os.minor(qemu.KVM.stat().st_rdev))])
    command.run(["mount", "--bind", node, qemu.KVM])
verdict = accel.choose(image, directory=Path(sys.argv[1]))
with Machine(image, backend="qemu") as machine:
    machine.accel = "kvm"
    try:
        machine.start(timeout_s=30)
    except GuestFailed:
        boots = False
    else:
        boots = machine.succeed("echo up") == "up\\n"
print(json.dumps([verdict.accel, verdict.why, boots]))
"""


def test_a_verdict_holds_for_one_boot_of_the_host(tmp_path: Path) -> None:
    directory = tmp_path / "accel"
    kept = Verdicts(directory, BOOT_ID)
    assert kept.get("key") is None
    assert kept.put("key", TCG) == TCG
    assert kept.get("key") == TCG
    assert kept.get("other") is None
    later = Verdicts(directory, "22222222-bbbb")
    assert later.get("key") is None
    later.put("key", Verdict("kvm", "works now"))
    assert kept.get("key") is None
    assert [file.name for file in directory.iterdir()] == ["22222222-bbbb-key.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"accel": "kvm"}', '{"accel": "xen", "why": "x"}'])
def test_a_verdict_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    kept = Verdicts(tmp_path, BOOT_ID)
    kept.put("key", TCG)
    [file] = tmp_path.iterdir()
    file.write_text(text)
    assert kept.get("key") is None


def test_a_verdict_that_cannot_be_kept_is_given_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Verdicts(tmp_path / "file" / "accel", BOOT_ID).put("key", TCG) == TCG


def test_a_verdict_is_of_one_kernel_and_one_qemu(tmp_path: Path) -> None:
    first, second, same = (tmp_path / name for name in ("first", "second", "same"))
    first.write_bytes(b"kernel 1")
    second.write_bytes(b"kernel 2")
    same.write_bytes(b"kernel 1")
    key = accel.verdict_key("QEMU 7.2", first)
    assert key == accel.verdict_key("QEMU 7.2", same)
    assert len({key, accel.verdict_key("QEMU 7.2", second), accel.verdict_key("QEMU 9.0", first)}) == 3


@pytest.mark.requires("root")
@pytest.mark.parametrize(
    ("mode", "group", "groups"),
    [(0o600, 0, None), (0o660, 0, None), (0o640, 105, None), (0o660, 105, (105,)), (0o666, 0, ())],
)
def test_a_guest_that_root_starts_opens_kvm_by_its_mode_and_never_as_roots_group(
    tmp_path: Path, mode: int, group: int, groups: tuple[int, ...] | None
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, group)
    device.chmod(mode)
    assert qemu.kvm_groups(device) == groups
    assert qemu.kvm_groups(tmp_path / "missing") is None


def trial(image: Image, *more: str) -> Verdict:
    """Boot by emulation, which always works, where a real trial boots under KVM."""
    root = Drive(image.root_disk, is_readonly=True)
    launch = qemu.trial(image.kernels["qemu"], root, "tcg", more=more)
    return accel.try_launch(launch, timeout_s=2 if more else 60)


def test_a_kernel_that_runs_a_program_passes_the_trial(image: Image) -> None:
    assert trial(image).accel == "kvm"


def test_a_kernel_that_hangs_fails_it_at_the_deadline_and_leaves_no_process(image: Image) -> None:
    assert trial(image, "-S") == Verdict("tcg", "the kernel had not booted under KVM after 2 s")
    family = processes.descendants(os.getpid())
    assert not [info.argv for info in family.values() if qemu.PROGRAM in " ".join(info.argv)]


def test_a_qemu_that_refuses_fails_it_at_once_with_its_words(image: Image) -> None:
    told = trial(image, "-machine", "nonsense")
    assert told.accel == "tcg"
    assert "unsupported machine type" in told.why


def test_a_kernel_is_tried_once(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_second_trial(*_: object) -> Verdict:
        raise AssertionError("tried again")

    monkeypatch.setattr(qemu, "kvm_groups", lambda: ())
    first = accel.choose(image, directory=tmp_path)
    monkeypatch.setattr(accel, "try_launch", no_second_trial)
    assert accel.choose(image, directory=tmp_path) == first
    with pytest.raises(AssertionError, match="tried again"):
        accel.choose(image, directory=tmp_path / "elsewhere")


def test_what_is_asked_for_is_not_tried(image: Image, tmp_path: Path) -> None:
    assert accel.choose(image, "kvm", directory=tmp_path).accel == "kvm"
    assert accel.choose(image, "tcg", directory=tmp_path).accel == "tcg"
    assert not list(tmp_path.iterdir())


@pytest.mark.requires("root")
def test_the_trial_of_this_machines_kvm_says_what_a_guest_then_does(tmp_path: Path) -> None:
    argv = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        sys.executable,
        "-c",
        REAL_DEVICE,
        str(tmp_path),
    ]
    chosen, why, boots = json.loads(command.run(argv, timeout_s=120).stdout)
    assert (chosen == "kvm") == boots, why


def test_the_command_line_overrides_and_says_what_was_chosen() -> None:
    argv = [sys.executable, "-m", "vmimages", "boot", "trixie", "--backend", "qemu", "--accel", "tcg"]
    said = command.run(argv, timeout_s=120).stdout
    assert "trixie: tcg: asked for\n" in said
    assert "trixie: qemu, Linux 6.12" in said


def test_a_machine_without_qemu_is_told_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "PROGRAM", "qemu-system-nowhere")
    with pytest.raises(VmError, match="no qemu-system-nowhere") as told:
        qemu.program()
    assert told.value.hint == "apt-get install qemu-system-x86"
