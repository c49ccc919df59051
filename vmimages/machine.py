r"""A machine: a guest that boots, does what it is told, loses its power and boots again.

    from vmimages.build import build_image
    from vmimages.link import Link
    from vmimages.machine import Machine

    image = build_image("trixie", backends=["uml"])
    with Machine(image, disks=[256 << 20, 256 << 20]) as machine:
        machine.start()
        machine.succeed(f"mkfs.btrfs -q {machine.device(1)}", ["mount", machine.device(1), "/mnt"])
        machine.succeed("echo kept > /mnt/file; btrfs filesystem sync /mnt")
        job = machine.background("cat /dev/zero > /mnt/noise")
        machine.crash()                                     # a power cut: memory gone, disks as they were
        machine.start()                                     # the same disks
        machine.succeed(["mount", machine.device(1), "/mnt"])
        assert machine.succeed("cat /mnt/file") == "kept\n"
        assert machine.host.file("/mnt/file").exists        # testinfra
        machine.shutdown()

    with Link() as link, Machine(old, name="daisy", link=link.ends[0]) as daisy, \
            Machine(new, name="workstation", link=link.ends[1], tree=Path("/src/btrsync")) as workstation:
        daisy.start(); workstation.start()                  # 10.77.0.1 and 10.77.0.2 on eth0
        workstation.wait_until_succeeds("ssh-keyscan 10.77.0.1 | grep ssh", timeout_s=10)
        daisy.block()                                       # the cable is cut: silence
        daisy.unblock()

A command is a line for the guest's `sh`, or a list of words that no shell sees. Every call has a
deadline. A kernel that panics, a guest that ends or hangs is raised at once by whatever call is
under way, as GuestPanicked, GuestEnded or GuestHung (vmimages.running) with the end of the console.
Names in the style of the NixOS test driver.
"""

from __future__ import annotations

import contextlib
import io
import time
from typing import TYPE_CHECKING, Self, TypeVar

from harness import wait
from harness.command import CommandFailed, Completed
from vmimages import results, work
from vmimages.control import Answer, Channel, ChannelDeaf, ChannelEnded
from vmimages.disks import Disks
from vmimages.running import GuestEnded, GuestHung, Running, choose_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from testinfra.host import Host

    from vmimages.accel import Choice
    from vmimages.image import BackendName, Image
    from vmimages.link import End, Link

    Command = str | Sequence[str]

Value = TypeVar("Value")

TIMEOUT_S = 60.0
BOOT_S = {"uml": 60.0, "qemu": 120.0}
"""Deadlines, for a busy machine: it takes a tenth of them."""
GRACE_S = 15.0
"""How much longer than the guest's own deadline its answer may take."""
TICK_S = 0.05
MEMORY_MIB = 512


def words(command: Command) -> list[str]:
    """Return the words that run a command: a text is a line for the guest's shell."""
    return ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]


class Job:
    """A command that runs in the guest while the test goes on."""

    def __init__(self, machine: Machine, request: int, argv: Sequence[str]) -> None:
        self._machine = machine
        self._request = request
        self._argv = tuple(argv)

    def wait(self, timeout_s: float = TIMEOUT_S) -> Completed:
        """Wait for its end and return what it said, whatever its status."""
        return self._machine.answer(self._request, self._argv, timeout_s)

    def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        self._machine.send_signal(self._request, number)


class Machine:
    """One machine with an image's root, disks of its own, and perhaps an end of a link.

    image: what it boots. name: its host name. backend: "uml" or "qemu", by default the first of
    these that the image has a kernel for. disks: sizes in bytes of its blank disks, which keep what
    is written to them until the machine is left. tree: a working tree that the guest finds at /work;
    extra: further files by their path below /work. words: more words for
    the kernel's command line; "btrsync.modules=A,B" loads at boot what is not loaded when it is wanted.
    directory: where disks and console are kept, for good; by default a temporary one.
    """

    def __init__(
        self,
        image: Image,
        *,
        name: str = "machine",
        backend: BackendName | None = None,
        disks: Sequence[int] = (),
        memory_mib: int = MEMORY_MIB,
        tree: Path | None = None,
        extra: Mapping[str, bytes] | None = None,
        link: End | None = None,
        words: Sequence[str] = (),
        directory: Path | None = None,
    ) -> None:
        """Only remember; entering makes the disks, `start` boots. Raises VmError for a missing kernel."""
        self.image = image
        self.name = name
        self.backend = choose_backend(image, backend)
        self.memory_mib = memory_mib
        self.link = link
        self.accel: Choice = "auto"
        """For QEMU, from the next start on: see accel.choose."""
        self._words = (f"btrsync.host={name}", *words)
        self._disks = Disks(disks, tree=tree, extra=extra, kept=directory)
        self._running: Running | None = None
        self._channel: Channel | None = None
        self.boot_s = 0.0
        """What the last start took, from the kernel's first instruction to the first command taken."""

    def __enter__(self) -> Self:
        """Make the disks."""
        self._disks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut its power if it runs; remove its disks unless a directory was given for them."""
        try:
            self._stop()
        finally:
            self._disks.__exit__()

    @property
    def directory(self) -> Path:
        """Where its disks and its console lie on the host."""
        return self._disks.path

    @property
    def console(self) -> Path:
        """The file with all that was said on the console, over all boots."""
        return self._disks.console

    @property
    def disks(self) -> tuple[Path, ...]:
        """The files of the blank disks, on the host."""
        return self._disks.blank

    def device(self, number: int) -> str:
        """Return the path in the guest of its blank disk `number`, counted from 1."""
        count = len(self._disks.sizes)
        if not 1 <= number <= count:
            raise ValueError(f"there is no disk {number}: {self.name} has {count}")
        return f"/dev/disk/by-id/btrsync-disk{number}"

    @property
    def is_up(self) -> bool:
        """Whether it was started and has not ended since."""
        return self._running is not None and self._running.status() is None

    @property
    def pid(self) -> int:
        """The pid on the host of the process that all of the machine's descend from."""
        return self._guest()[0].pid

    # ------------------------------------------------------------------------------------ power

    def start(self, timeout_s: float | None = None) -> None:
        """Boot, with the disks as they are, until the guest takes commands.

        timeout_s: by default BOOT_S. Raises GuestPanicked, GuestEnded, GuestHung.
        """
        if self.is_up:
            raise ValueError(f"{self.name} runs already")
        self._stop()
        limit_s = BOOT_S[self.backend] if timeout_s is None else timeout_s
        channel = Channel()
        try:
            boot = self._disks.boot(
                self.image,
                self.backend,
                words=("btrsync.mode=agent", *self._words),
                control_fd=channel.guest.fileno(),
                memory_mib=self.memory_mib,
                link=self.link,
                wanted_accel=self.accel,
            )
            running = Running(boot, self.backend, self.console)
        except BaseException:
            channel.close()
            raise
        self._running, self._channel = running, channel
        try:
            channel.guest.close()
            began = time.monotonic()
            deadline = began + limit_s
            while not self._pump(lambda: channel.has_greeted(TICK_S)):
                if time.monotonic() > deadline:
                    raise GuestHung(f"{self.name} had not booted after {limit_s:g} s", running.text())
            self.boot_s = time.monotonic() - began
        except BaseException:
            self._stop()
            raise

    def crash(self) -> None:
        """Cut the power: all its processes die at once. What the guest had not written is lost."""
        self._guest()
        self._stop()

    def shutdown(self, timeout_s: float = TIMEOUT_S) -> None:
        """End it in order: processes asked to end, filesystems unmounted, power off.

        Raises GuestPanicked, GuestHung; GuestEnded if it ended with an error.
        """
        running, channel = self._guest()
        try:
            self._pump(channel.end)
            status = running.wait(timeout_s)
            if status != 0:
                raise GuestEnded(f"{self.name} powered off with status {status}", running.text())
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
        if self._channel is not None:
            self._channel.close()
        self._running = self._channel = None

    # ------------------------------------------------------------------------------------- link

    def block(self) -> None:
        """Cut its link: frames vanish in both directions, nobody is told."""
        self._link().block()

    def unblock(self) -> None:
        """Mend its link."""
        self._link().unblock()

    def _link(self) -> Link:
        if self.link is None:
            raise ValueError(f"{self.name} has no link")
        return self.link.link

    # --------------------------------------------------------------------------------- commands

    def execute(
        self,
        command: Command,
        *,
        timeout_s: float = TIMEOUT_S,
        input: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Completed:
        """Run a command in the guest and return what it said, whatever its status.

        timeout_s: after so many seconds it is killed with its process group, and CommandFailed raised.
        """
        return self.background(command, timeout_s=timeout_s, input=input, env=env, cwd=cwd).wait(timeout_s)

    def background(
        self,
        command: Command,
        *,
        timeout_s: float = 3600,
        input: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Job:
        """Start a command in the guest and return it as a Job."""
        argv = words(command)
        data = input.encode("utf-8", "surrogateescape") if isinstance(input, str) else input
        _, channel = self._guest()
        asked = self._pump(lambda: channel.run(argv, timeout_s=timeout_s, input=data, env=env, cwd=cwd))
        return Job(self, asked, argv)

    def succeed(self, *commands: Command, timeout_s: float = TIMEOUT_S) -> str:
        """Run commands that must succeed, one after another; return what they wrote to standard output.

        Raises CommandFailed with command, status, stdout and stderr at the first that does not.
        """
        said = []
        for command in commands:
            completed = self.execute(command, timeout_s=timeout_s)
            if completed.returncode != 0:
                raise CommandFailed(completed, f"on {self.name}: exit status {completed.returncode}, not 0")
            said.append(completed.stdout)
        return "".join(said)

    def fail(self, *commands: Command, timeout_s: float = TIMEOUT_S) -> str:
        """Run commands that must fail, one after another; return all that they wrote.

        Raises CommandFailed at the first that succeeds.
        """
        said = []
        for command in commands:
            completed = self.execute(command, timeout_s=timeout_s)
            if completed.returncode == 0:
                raise CommandFailed(completed, f"on {self.name}: succeeded, and should have failed")
            said += [completed.stdout, completed.stderr]
        return "".join(said)

    def wait_until_succeeds(self, command: Command, *, timeout_s: float = TIMEOUT_S) -> str:
        """Run a command again and again until it succeeds; return what it then wrote to standard output.

        Raises harness.wait.NeverCame, with what it said last.
        """

        def attempt() -> Completed | None:
            tried.append(self.execute(command, timeout_s=timeout_s))
            return tried[-1] if tried[-1].returncode == 0 else None

        tried: list[Completed] = []
        try:
            return wait.until(attempt, timeout_s=timeout_s, what=str(command), interval_s=0.1).stdout
        except wait.NeverCame as error:
            last = tried[-1]
            raise wait.NeverCame(f"on {self.name}: {error}\n{last.stdout}{last.stderr}") from None

    def answer(self, request: int, argv: Sequence[str], timeout_s: float) -> Completed:
        """Wait for what comes of a command that was started; for Job."""
        running, channel = self._guest()
        deadline = time.monotonic() + timeout_s + GRACE_S
        while (answer := self._pump(lambda: channel.answer(request, TICK_S))) is None:
            if time.monotonic() > deadline:
                raise GuestHung(f"{self.name} gave no answer in {timeout_s:g} s: {argv}", running.text())
        return _completed(self.name, argv, answer, timeout_s)

    def send_signal(self, request: int, number: int) -> None:
        """Send a signal to a command that was started; for Job."""
        _, channel = self._guest()
        self._pump(lambda: channel.signal(request, number))

    def _guest(self) -> tuple[Running, Channel]:
        if self._running is None or self._channel is None:
            raise ValueError(f"{self.name} is not running")
        return self._running, self._channel

    def _pump(self, step: Callable[[], Value]) -> Value:
        """Take one step on the channel; raise at once what the console or the guest's end says."""
        running, _ = self._guest()
        try:
            value = step()
        except ChannelDeaf:
            raise GuestHung(f"{self.name} takes no more commands", running.text()) from None
        except ChannelEnded:
            # The end of the channel comes before the guest's: its last words are worth a moment.
            with contextlib.suppress(GuestHung):
                running.wait(GRACE_S)
            running.check()
            raise GuestEnded(f"{self.name} closed its control channel", running.text()) from None
        running.check()
        return value

    # ---------------------------------------------------------------------------------- in, out

    def copy_in(self, source: Path, directory: str) -> None:
        """Copy a file or a tree of the host into a directory of the guest, which is made; root owns it."""
        self.succeed(["mkdir", "-p", directory])
        said = self.execute(["tar", "-x", "-C", directory], input=work.pack_one(source))
        if said.returncode != 0:
            raise CommandFailed(said, f"{source} does not get into {self.name}:{directory}")

    def copy_out(self, path: str, directory: Path) -> Path:
        """Copy a file or a tree of the guest into a directory of the host; return the path there.

        Only plain files and directories; the caller owns them.
        """
        parent, _, name = path.rpartition("/")
        argv = ["tar", "-c", "-C", parent or "/", "--", name]
        said = self.execute(argv)
        if said.returncode != 0:
            raise CommandFailed(said, f"{path} does not get out of {self.name}")
        results.unpack(io.BytesIO(said.stdout.encode("utf-8", "surrogateescape")), directory)
        return directory / name

    # -------------------------------------------------------------------------------- testinfra

    @property
    def host(self) -> Host:
        """The machine as testinfra sees it; for as long as this object lives."""
        from vmimages import testinfra_backend

        return testinfra_backend.host(self)


def _completed(name: str, argv: Sequence[str], answer: Answer, timeout_s: float) -> Completed:
    texts = [data.decode("utf-8", "surrogateescape") for data in (answer.stdout, answer.stderr)]
    completed = Completed(tuple(argv), answer.status, *texts)
    if answer.error is not None:
        raise CommandFailed(completed, f"on {name}: {answer.error}")
    if answer.timed_out:
        raise CommandFailed(completed, f"on {name}: still ran after {timeout_s:g} s, killed")
    return completed
