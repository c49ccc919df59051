"""A machine of either backend: commands, power, panics, and that nothing of it outlives us."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from harness import command, processes, wait
from vmimages import machine as machines
from vmimages.build import build_image
from vmimages.errors import VmError
from vmimages.link import Link
from vmimages.machine import Machine
from vmimages.running import GuestEnded, GuestHung, GuestPanicked

if TYPE_CHECKING:
    from pathlib import Path

    from vmimages.image import BackendName, Image

PARENT = """
import sys, time
from vmimages import keeper
from vmimages.build import build_image
from vmimages.machine import Machine

if sys.argv[1] == "adopting":
    keeper.namespace_argv = lambda: ()
with Machine(build_image("trixie"), backend=sys.argv[2]) as machine:
    machine.start()
    machine.background("while :; do :; done | cat")
    machine.succeed("true")
    print("ready", flush=True)
    time.sleep(600)
"""
PROGRAMS = {"uml": "linux.uml", "qemu": "qemu-system-x86_64"}


@pytest.fixture(scope="module", params=PROGRAMS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    chosen: BackendName = request.param
    return chosen


def test_a_command_answers_with_its_status_and_both_outputs(machine: Machine) -> None:
    said = machine.execute("echo out; echo err >&2; exit 3")
    assert (said.returncode, said.stdout, said.stderr) == (3, "out\n", "err\n")
    assert machine.succeed(["printf", "%s", "a b;c"], "cat", "echo two") == "a b;ctwo\n"
    assert machine.execute("cat", input=b"\xff\0x").stdout.encode(errors="surrogateescape") == b"\xff\0x"
    assert "no such file" in machine.fail("cat /nowhere").lower()
    with pytest.raises(command.CommandFailed, match="on machine: exit status 3, not 0"):
        machine.succeed("exit 3")
    with pytest.raises(command.CommandFailed, match="should have failed"):
        machine.fail("true")
    with pytest.raises(command.CommandFailed, match="FileNotFoundError"):
        machine.execute(["no-such-program"])


def test_input_longer_than_the_guests_serial_line_arrives_whole(machine: Machine) -> None:
    sent = bytes(range(256)) * 400
    for _ in range(3):
        assert machine.execute(["cksum"], input=sent).stdout == command.run(["cksum"], input=sent).stdout


def test_a_command_that_takes_too_long_is_killed_in_the_guest(machine: Machine) -> None:
    with pytest.raises(command.CommandFailed, match=r"still ran after 0\.5 s, killed"):
        machine.execute("sleep 777 & sleep 778", timeout_s=0.5)
    machine.fail(["pgrep", "-f", "sleep 77[78]"])


def test_a_job_runs_beside_other_commands_and_takes_signals(machine: Machine) -> None:
    job = machine.background("echo begun; touch /tmp/begun; sleep 600")
    machine.wait_until_succeeds("test -e /tmp/begun")
    job.signal(signal.SIGTERM)
    ended = job.wait(20)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "begun\n")


def test_waiting_ends_with_the_condition_or_says_what_was_seen_last(machine: Machine) -> None:
    job = machine.background("sleep 0.5; echo here > /tmp/awaited")
    assert machine.wait_until_succeeds("grep here /tmp/awaited", timeout_s=20) == "here\n"
    job.wait()
    with pytest.raises(wait.NeverCame, match="nothing yet"):
        machine.wait_until_succeeds("echo nothing yet; false", timeout_s=0.3)


def test_files_get_in_and_out(machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "日本").write_bytes(bytes(range(256)) * 40)
    machine.copy_in(source, "/srv/in")
    assert machine.succeed("stat -c %U:%s /srv/in/tree/sub/*") == "root:10240\n"
    machine.succeed("ln -s /etc/shadow /srv/in/tree/link")
    got = machine.copy_out("/srv/in/tree", tmp_path / "out")
    assert (got / "sub" / "日本").read_bytes() == (source / "sub" / "日本").read_bytes()
    assert not (got / "link").is_symlink()


def test_testinfra_sees_the_guest_and_not_this_machine(machine: Machine) -> None:
    assert machine.host.check_output("hostname") == "machine"
    assert machine.host.file("/work/.guest/agent.py").is_file
    assert machine.host.mount_point("/").filesystem == "overlay"


def test_dm_crypt_and_btrfs_work_in_the_guest(machine: Machine) -> None:
    machine.succeed(
        "head -c 64 /dev/urandom > /tmp/key",
        f"cryptsetup open --type plain --cipher twofish-xts-plain --key-size 512 --key-file /tmp/key {machine.device(1)} dm1",
        "mkfs.btrfs -q -f /dev/mapper/dm1 && mount /dev/mapper/dm1 /mnt",
    )
    assert machine.host.mount_point("/mnt").filesystem == "btrfs"
    machine.succeed("umount /mnt && cryptsetup close dm1")


def test_no_process_of_a_guest_is_of_uid_0(machine: Machine, backend: BackendName) -> None:
    family = processes.descendants(machine.pid)
    guests = [pid for pid, info in family.items() if info.argv[0].endswith(PROGRAMS[backend])]
    assert guests
    uids = {os.stat(f"/proc/{pid}").st_uid for pid in guests}
    assert 0 not in uids


def test_a_power_cut_loses_memory_and_keeps_the_disks(machine: Machine) -> None:
    disk = machine.device(1)
    machine.succeed(f"mkfs.btrfs -q -f {disk} && mount {disk} /mnt")
    machine.succeed("echo kept > /mnt/kept; btrfs filesystem sync /mnt; echo lost > /mnt/lost")
    machine.crash()
    assert not machine.is_up
    machine.start()
    machine.succeed(f"mount {disk} /mnt")
    assert machine.succeed("cat /mnt/kept") == "kept\n"
    machine.fail("cat /mnt/lost")
    machine.shutdown()
    machine.start()
    machine.succeed(f"mount -o ro {disk} /mnt")


def test_a_panic_is_raised_at_once_with_the_console(machine: Machine) -> None:
    began = time.monotonic()
    with pytest.raises(GuestPanicked, match=r"(?s)sysrq triggered crash.*console"):
        machine.execute("echo c > /proc/sysrq-trigger; sleep 600", timeout_s=600)
    assert time.monotonic() - began < 30
    machine.crash()
    machine.start()


def test_a_guest_that_ends_by_itself_is_told_from_one_that_was_shut_down(machine: Machine) -> None:
    with pytest.raises(GuestEnded):
        machine.execute("echo o > /proc/sysrq-trigger; sleep 600")
    machine.start()
    machine.shutdown()
    with pytest.raises(ValueError, match="not running"):
        machine.succeed("true")
    machine.start()


def test_a_guest_that_hangs_is_raised_after_the_deadline(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "GRACE_S", 0.5)
    with pytest.raises(GuestHung, match="no answer in 3 s"):
        machine.execute("pkill -STOP -f agent.py; sleep 600", timeout_s=3)
    machine.crash()
    machine.start()


def test_a_boot_has_a_deadline(image: Image, backend: BackendName) -> None:
    with Machine(image, backend=backend) as slow:
        with pytest.raises(GuestHung, match=r"had not booted after 0\.1 s"):
            slow.start(timeout_s=0.1)
        assert not slow.is_up


@pytest.mark.requires("root")
def test_a_directory_that_the_guests_user_cannot_enter_is_told(
    image: Image, backend: BackendName, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    with Machine(image, backend=backend, directory=tmp_path / "kept") as one:
        with pytest.raises(VmError, match="is closed") as told:
            one.start()
    assert "chmod o+x" in str(told.value.hint)


@pytest.mark.parametrize("way", ["namespace", "adopting"])
def test_a_killed_parent_leaves_no_process(image: Image, backend: BackendName, way: str) -> None:
    with command.spawn([sys.executable, "-c", PARENT, way, backend]) as parent:
        wait.until(lambda: "ready" in parent.stdout or parent.poll(), timeout_s=60, what="the guest")
        family = processes.descendants(parent.pid)
        names = [info.argv[0].rpartition("/")[2] for info in family.values() if info.argv]
        # A guest of User Mode Linux is many processes.
        assert names.count(PROGRAMS[backend]) > (3 if backend == "uml" else 0), parent.stderr
        assert ("unshare" in names) == (way == "namespace")
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)

        def left() -> bool:
            return any(processes.read(pid) == info for pid, info in family.items())

        wait.until(lambda: not left(), timeout_s=10, what="the end of its processes")


def test_two_machines_of_two_kernels_hear_each_other_until_the_link_is_cut(
    image: Image, backend: BackendName
) -> None:
    reach = ["python3", "-c", "import socket; socket.create_connection(('10.77.0.1', 22), 1)"]
    old = build_image("bookworm", backends=[backend])
    with Link() as link, Machine(old, name="daisy", backend=backend, link=link.ends[0]) as daisy:
        with Machine(image, name="workstation", backend=backend, link=link.ends[1]) as workstation:
            daisy.start()
            workstation.start()
            assert daisy.succeed("uname -r") != workstation.succeed("uname -r")
            assert "refused" in workstation.fail(reach)
            workstation.block()
            assert "timed out" in workstation.fail(reach)
            workstation.unblock()
            assert "refused" in workstation.fail(reach)
            daisy.crash()
            assert "refused" not in workstation.fail(reach)
            daisy.start()
            assert "refused" in workstation.fail(reach)
