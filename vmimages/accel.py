"""The accelerator of QEMU, found out by trial: the very kernel is booted under KVM to its first program.

That /dev/kvm is there, or can be opened, says little: where the host is itself a guest without nested
virtualization QEMU takes it, even runs its firmware, and a kernel hangs without a word (measured). The
verdict holds for one boot of the host, one version of QEMU and one kernel, and is kept that long.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from harness import command
from vmimages import cache as caches
from vmimages import keeper, qemu
from vmimages.boot import AccelName, Drive

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmimages.boot import Launch
    from vmimages.image import Image

Choice = Literal["auto", "kvm", "tcg"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
TRIAL_S = 10.0
"""For a busy host: a KVM that works takes a second."""
TICK_S = 0.05
WHY_CHARACTERS = 300
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ACCELS = get_args(AccelName)


class Verdict(NamedTuple):
    """Which accelerator, and why that one."""

    accel: AccelName
    why: str


def choose(image: Image, wanted: Choice = "auto", *, directory: Path | None = None) -> Verdict:
    """Return the accelerator for an image's kernel of QEMU: the one wanted, else KVM if it boots, else TCG.

    directory: where verdicts are kept, by default in the cache of images. Raises VmError without QEMU.
    """
    if wanted != "auto":
        return Verdict(wanted, "asked for")
    if qemu.kvm_groups() is None:
        user = "this user" if keeper.unprivileged() is None else keeper.UNPRIVILEGED
        return Verdict("tcg", f"{qemu.KVM} is not there, or not open to {user}")
    kernel = image.kernels["qemu"]
    boot_id = BOOT_ID.read_text().strip()
    version = command.run([qemu.program(), "--version"]).stdout.partition("\n")[0]
    kept = Verdicts(directory or caches.default() / "accel", boot_id)
    key = verdict_key(version, kernel.path)
    launch = qemu.trial(kernel, Drive(image.root_disk, is_readonly=True), "kvm")
    return kept.get(key) or kept.put(key, try_launch(launch))


def verdict_key(version: str, kernel: Path) -> str:
    """Return what else a verdict depends on besides the boot of the host, as a hash."""
    words = [version, hashlib.sha256(kernel.read_bytes()).hexdigest()]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]


class Verdicts:
    """The verdicts of one boot of the host, a file each; those of earlier boots go when one is added."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        self._directory = directory
        self._boot_id = boot_id

    def get(self, key: str) -> Verdict | None:
        """Return a verdict if there is one that can be read."""
        try:
            said = json.loads(self._path(key).read_text())
            return Verdict(said["accel"], said["why"]) if said["accel"] in ACCELS else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, verdict: Verdict) -> Verdict:
        """Keep a verdict if that can be, whole or not at all, and return it."""
        with contextlib.suppress(OSError):  # another's cache may be read: then each run tries anew
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", prefix=f"{self._boot_id}-aside-", dir=self._directory, delete=False
            ) as aside:
                json.dump(verdict._asdict(), aside)
            Path(aside.name).chmod(0o644)
            Path(aside.name).replace(self._path(key))
            for old in self._directory.iterdir():
                if not old.name.startswith(self._boot_id):
                    old.unlink()
        return verdict

    def _path(self, key: str) -> Path:
        return self._directory / f"{self._boot_id}-{key}.json"


def try_launch(launch: Launch, timeout_s: float = TRIAL_S) -> Verdict:
    """Run a trial (qemu.trial) and say what came of it; no process is left."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    began = time.monotonic()
    try:
        process = command.Process(
            keeper.keeper_argv(launch, reading, own_session=True), pass_fds=[reading], cwd="/"
        )
    finally:
        os.close(reading)
    try:
        return _watch(process, lambda: time.monotonic() - began, timeout_s)
    finally:
        os.close(writing)  # the keeper ends the guest, and itself
        process.end()
        process.close()


def _watch(process: command.Process, elapsed_s: Callable[[], float], timeout_s: float) -> Verdict:
    while True:
        status = process.poll()
        if re.search(rf"^{qemu.READY}\s*$", process.stdout, re.MULTILINE):
            return Verdict("kvm", f"the kernel booted under KVM in {elapsed_s():.1f} s")
        if status is not None:
            words = "; ".join(process.stderr.split("\n")).strip("; ") or f"status {status}"
            return Verdict("tcg", f"the kernel does not boot under KVM: {words[:WHY_CHARACTERS]}")
        if elapsed_s() > timeout_s:
            return Verdict("tcg", f"the kernel had not booted under KVM after {timeout_s:g} s")
        time.sleep(TICK_S)
