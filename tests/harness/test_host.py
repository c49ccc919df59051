"""Hosts."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import command, processes, wait
from harness.host import Host, HostFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.requires("host")
REPOSITORY = Path(__file__).parent.parent.parent


def test_a_host_has_its_own_name(workstation: Host, daisy: Host) -> None:
    assert workstation.run(["hostname"]).stdout == "workstation\n"
    assert daisy.run(["hostname"]).stdout == "daisy\n"
    assert workstation.read_text("/etc/hostname") == "workstation\n"
    assert os.uname().nodename not in ("workstation", "daisy")


def test_a_host_sees_its_own_processes_only(workstation: Host) -> None:
    said = workstation.run(["ps", "-e", "-o", "pid=,comm="]).stdout.split("\n")
    names = [line.split()[1] for line in said if line]
    assert names[0] in ("tini-static", "tini")
    assert "pytest" not in names and len(names) == 3


def test_a_host_has_its_own_network(workstation: Host) -> None:
    assert os.listdir(workstation.root / "sys/class/net") == ["lo"]
    assert workstation.run(["ls", "/sys/class/net"]).stdout == "lo\n"
    flags = int(workstation.read_text("/sys/class/net/lo/flags"), 16)
    assert flags & 1, "lo is up"


def test_what_a_host_writes_stays_in_the_host(workstation: Host, daisy: Host) -> None:
    workstation.run(["sh", "-c", "echo mine > /etc/of-workstation; echo mine > /usr/of-workstation"])
    for root in (Path("/"), daisy.root):
        assert not (root / "etc/of-workstation").exists()
        assert not (root / "usr/of-workstation").exists()
    assert workstation.read_text("/usr/of-workstation") == "mine\n"


def test_a_host_has_no_block_device_and_no_kernel_log(workstation: Host) -> None:
    assert workstation.run(["find", "/dev", "-type", "b"]).stdout == ""
    assert not (workstation.root / "dev/kmsg").exists()
    workstation.run(["sh", "-c", "test -c /dev/tty && head -c 4 /dev/urandom > /dev/null"])


def test_a_pseudo_terminal_can_be_had(workstation: Host) -> None:
    assert workstation.run(["script", "-qc", "tty", "/dev/null"]).stdout.startswith("/dev/pts/0")


def test_keys_people_and_names_of_the_machine_are_not_seen(workstation: Host) -> None:
    assert os.listdir(workstation.root / "root/.ssh") == []
    assert os.listdir(workstation.root / "home") == []
    assert not [name for name in os.listdir(workstation.root / "etc/ssh") if name.startswith("ssh_host_")]
    assert workstation.read_text("/etc/resolv.conf") == ""
    assert workstation.run(["stat", "-c", "%a %U", "/root", "/root/.ssh"]).stdout == "700 root\n700 root\n"


def test_keys_and_configuration_of_the_root_it_stands_on_are_not_seen(tmp_path: Path) -> None:
    planted = (
        "root/.ssh/id_rsa",
        "root/.netrc",
        "etc/ssh/ssh_host_rsa_key",
        "etc/btrsync/btrsync.toml",
        "home/foo/x",
    )
    for name in planted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    (tmp_path / "tmp").mkdir()
    with Host("other", lower=tmp_path) as host:
        assert [name for name in planted if (host.root / name).exists()] == []
        assert (host.root / "root/.ssh").is_dir()


@pytest.mark.requires("sshd")
def test_sshd_is_configured_as_debian_delivers_it(workstation: Host) -> None:
    pristine = Path("/usr/share/openssh/sshd_config").read_text()
    assert workstation.read_text("/etc/ssh/sshd_config") == pristine
    assert os.listdir(workstation.root / "etc/ssh/sshd_config.d") == []


def test_root_s_password_is_locked_and_not_the_machine_s(workstation: Host) -> None:
    shadow = workstation.read_text("/etc/shadow").splitlines()
    assert [line for line in shadow if line.startswith("root:")] == ["root:*:19700:0:99999:7:::"]
    assert workstation.run(["stat", "-c", "%a", "/etc/shadow"]).stdout == "640\n"


def test_the_installed_btrsync_and_the_repository_are_there_read_only(workstation: Host) -> None:
    said = workstation.run([sys.executable, "-c", "import btrsync; print(btrsync.__name__)"])
    assert said.stdout == "btrsync\n"
    refused = workstation.run(["touch", REPOSITORY / "planted"], ok=(1,))
    assert "Read-only file system" in refused.stderr


def test_a_path_on_tmp_is_bound_on_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    with Host("binder", binds=[tmp_path]) as host:
        assert host.run(["cat", tmp_path / "file"]).stdout == "words"
        assert host.run(["ls", "/tmp"]).stdout == f"{tmp_path.parts[2]}\n"
        host.run(["touch", tmp_path / "new"], ok=(1,))


def test_a_single_file_can_be_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    with Host("binder", binds=[tmp_path / "file"]) as host:
        assert host.run(["cat", tmp_path / "file"]).stdout == "words"


def test_a_bind_that_is_not_there_is_told() -> None:
    with pytest.raises(HostFailed, match=r"host binder did not come up.*/no/such/path"):
        Host("binder", binds=["/no/such/path"]).__enter__()


def test_a_host_can_stand_on_another_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("etc", "usr/bin", "root", "tmp", "dev", "proc", "sys", "run", "var/log"):
        (root / name).mkdir(parents=True)
    (root / "etc/issue").write_text("another root")
    with Host("other", lower=root) as host:
        assert host.read_text("/etc/issue") == "another root"
        assert host.read_text("/etc/hostname") == "other\n"
    assert not (root / "etc/hostname").exists()


def test_what_is_said_to_the_system_log_is_kept(workstation: Host) -> None:
    workstation.run(["logger", "--tag", "tester", "a word"])
    wait.until(
        lambda: "tester: a word" in workstation.read_text("/var/log/syslog"),
        timeout_s=5,
        what="the word in the log",
    )


def test_the_environment_of_a_command_is_the_host_s(workstation: Host) -> None:
    lines = workstation.run(["env"], env={"EXTRA": "1"}).stdout.splitlines()
    assert {"HOME=/root", "EXTRA=1", "LANG=C.UTF-8"} <= set(lines)
    assert f"PATH={command.SYSTEM_PATH}" in lines


def test_a_command_killed_by_a_signal_is_told_so(workstation: Host) -> None:
    assert workstation.run(["sh", "-c", "kill -KILL $$"], ok=None).returncode == -signal.SIGKILL


def test_a_command_that_takes_too_long_is_dead_inside_too(workstation: Host) -> None:
    with pytest.raises(command.CommandFailed, match="still ran"):
        workstation.run(["sleep", "3138"], timeout_s=0.2)
    wait.until(lambda: not _running(("sleep", "3138")), timeout_s=5, what="its end")


def test_a_spawned_command_is_dead_inside_on_leaving(workstation: Host) -> None:
    with workstation.spawn(["sleep", "3139"]):
        wait.until(lambda: _running(("sleep", "3139")), timeout_s=5, what="its start")
    wait.until(lambda: not _running(("sleep", "3139")), timeout_s=5, what="its end")


def _running(argv: tuple[str, ...]) -> list[int]:
    return [info.pid for info in processes.everything().values() if info.argv == argv]


def test_an_absolute_link_is_followed_inside_the_host(workstation: Host) -> None:
    workstation.run(["ln", "-s", "/run", "/var/link"])
    workstation.write_text("/var/link/inside", "words")
    assert not Path("/run/inside").exists()
    assert workstation.run(["cat", "/run/inside"]).stdout == "words"
    assert workstation.path("/var/link/../etc") == workstation.root / "etc"


def test_links_in_a_circle_are_told(workstation: Host) -> None:
    workstation.run(["ln", "-s", "/b", "/a"])
    workstation.run(["ln", "-s", "/a", "/b"])
    with pytest.raises(OSError, match="too many symbolic links"):
        workstation.path("/a/file")


def test_a_killed_host_takes_all_its_processes_with_it(workstation: Host) -> None:
    with workstation.spawn(["setsid", "sleep", "3140"]) as process:
        wait.until(lambda: _running(("sleep", "3140")), timeout_s=5, what="its start")
        workstation.kill()
        assert not workstation.is_alive
        assert not _running(("sleep", "3140"))
        process.wait(5)


def test_a_host_is_gone_on_leaving() -> None:
    with Host("leaver") as host:
        pid = host.pid
        namespace = os.readlink(host.netns_path)
    assert processes.read(pid) is None
    seen = [os.readlink(f"/proc/{pid}/ns/net") for pid in _readable(processes.everything())]
    assert namespace not in seen


def _readable(pids: dict[int, processes.ProcessInfo]) -> Iterator[int]:
    return (pid for pid in pids if os.access(f"/proc/{pid}/ns/net", os.F_OK))


def test_orphans_are_reaped(workstation: Host) -> None:
    workstation.run(["sh", "-c", "(sh -c 'sleep 0.05' &) ; exit 0"])
    wait.until(
        lambda: (
            "Z" not in workstation.run(["ps", "-e", "-o", "stat="]).stdout and not _running(("sleep", "0.05"))
        ),
        timeout_s=5,
        what="no zombie",
    )


def test_two_hosts_are_up_within_a_second() -> None:
    started = time.monotonic()
    with Host("a"), Host("b"):
        up_s = time.monotonic() - started
    assert up_s < 1.0, f"{up_s:.2f} s"


def test_what_is_mounted_below_a_bound_path_is_read_only_too(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    command.run(["mount", "-t", "tmpfs", "planted", tmp_path / "below"])
    try:
        (tmp_path / "below/file").write_text("words")
        with Host("binder", binds=[tmp_path]) as host:
            assert host.run(["cat", tmp_path / "below/file"]).stdout == "words"
            refused = host.run(["touch", tmp_path / "below/file"], ok=(1,))
            assert "Read-only file system" in refused.stderr
        (tmp_path / "below/file").write_text("words of its owner")
    finally:
        command.run(["umount", tmp_path / "below"])


NESTED = """
from harness.host import Host
from harness.netns import Link
with Host("inner") as a, Host("other") as b, Link(a, b):
    print(a.run(["hostname"]).stdout + a.run(["getent", "ahostsv4", "other"]).stdout.split()[0])
"""


def test_hosts_can_be_made_inside_a_host(workstation: Host) -> None:
    said = workstation.run([sys.executable, "-c", NESTED], env={"PYTHONPATH": str(REPOSITORY)})
    assert said.stdout == "inner\n10.77.0.2\n"


def test_a_clone_below_tmp_is_seen_in_its_hosts(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "harness", tmp_path / "clone/harness")
    program = "from harness.host import Host\nwith Host() as h: print(h.run(['ls', '{}']).stdout)"
    argv = [sys.executable, "-c", program.format(tmp_path / "clone")]
    said = command.run(argv, cwd=tmp_path / "clone")
    assert said.stdout.split() == ["harness"]


CHROOTED = """
import sys
from harness import containment
argv = ["sh", "-c", 'mount --rbind / "$0" && exec chroot "$0" "$@"', *sys.argv[1:]]
raise SystemExit(containment.run(argv))
"""
IN_A_CHROOT = """
from harness.filesystem import Array, mount
from harness.host import Host
with Host("inner") as host, Array(2, 128 << 20) as array:
    with mount(array, "/MirrorRoot", host=host) as path:
        (path / "file").write_text("words")
        print(host.run(["cat", "/MirrorRoot/file"]).stdout)
    print((host.root / "etc/hostname").read_text())
"""


@pytest.mark.requires("containment", "btrfs")
def test_hosts_can_be_made_in_a_chroot(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", CHROOTED, str(tmp_path), sys.executable, "-c", IN_A_CHROOT]
    said = command.run(argv, env={"PYTHONPATH": str(REPOSITORY)})
    assert said.stdout.split() == ["words", "inner"]
