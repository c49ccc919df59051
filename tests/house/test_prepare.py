"""What ./check and ./rehearse do on machines that lack something: small commands on PATH misbehave."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import command, wait

ROOT = Path(__file__).parents[2]
ENTRY = '#!/bin/sh\nset -eu\ncd "$(dirname "$0")"\n. tools/prepare.sh\nprepare "$@"\necho prepared\n'
UTILITIES = (
    "sh", "cat", "sed", "grep", "id", "mkdir", "rm", "mv", "ls", "tail", "cut", "sort", "tr", "wc", "date",
    "dirname", "flock", "sha256sum", "chmod", "env", "readlink",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A clone with its own PATH: honest utilities, and dpkg, apt-get and python3 as the test wants them."""

    clone: Path
    programs: Path

    def program(self, name: str, body: str) -> None:
        """Put a small command on PATH; each call of it is logged with its words."""
        file = self.programs / name
        file.unlink(missing_ok=True)
        file.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.clone}/calls"\n{body}\n')
        file.chmod(0o755)

    def prepare(self, *, uid: int = 0) -> command.Completed:
        argv = [str(self.clone / "entry")]
        if uid:
            argv = [shutil.which("setpriv") or "setpriv", f"--reuid={uid}", "--clear-groups", *argv]
        return command.run(argv, ok=None, env={"PATH": str(self.programs)})

    def calls(self) -> list[str]:
        file = self.clone / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine on which everything is in place, until the test takes something away."""
    clone, programs = tmp_path / "clone", tmp_path / "bin"
    for directory in (clone / "tools", clone / ".venv/bin", programs):
        directory.mkdir(parents=True)
    shutil.copy(ROOT / "tools/prepare.sh", clone / "tools")
    # The real policy file and services belong to the machine that runs this test.
    script = (clone / "tools/prepare.sh").read_text()
    assert "POLICY=/usr/sbin/policy-rc.d" in script
    script = script.replace("POLICY=/usr/sbin/policy-rc.d", f"POLICY={tmp_path}/policy-rc.d")
    script = script.replace("/etc/systemd/system", f"{tmp_path}/systemd").replace(
        "/var/lib/dpkg", f"{tmp_path}/dpkg"
    )
    (clone / "tools/prepare.sh").write_text(script.replace("/usr/bin/python3", str(programs / "python3")))
    for name in ("pyproject.toml", "constraints.txt"):
        (clone / name).write_text("")
    (clone / "packages.txt").write_text("btrfs-progs  # real\nopenssh-server  # sshd\n")
    (clone / "entry").write_text(ENTRY)
    (clone / "entry").chmod(0o755)
    for name in UTILITIES:
        (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    machine = Machine(clone, programs)
    machine.program("dpkg-query", 'for p in btrfs-progs openssh-server; do printf "%s=installed " "$p"; done')
    machine.program("dpkg", ":")
    machine.program("service", ":")
    machine.program("update-rc.d", ":")
    machine.program("apt-get", 'echo "E: not expected" ; exit 100')
    machine.program(
        "python3",
        f'case "$*" in *venv*--clear*) mkdir -p .venv/bin; cp {programs}/python3 .venv/bin/python ;; esac',
    )
    shutil.copy(programs / "python3", clone / ".venv/bin/python")
    (programs / "cp").symlink_to(shutil.which("cp") or "/bin/cp")
    assert machine.prepare().returncode == 0
    (clone / "calls").unlink()
    return machine


def take_away(machine: Machine, package: str) -> None:
    """Let dpkg know nothing of a package until apt-get has installed it."""
    machine.program(
        "dpkg-query",
        f'for p in btrfs-progs openssh-server; do [ "$p" = {package} ] && [ ! -e installed ] && continue; '
        'printf "%s=installed " "$p"; done; exit 1',
    )


def test_with_everything_in_place_neither_apt_nor_pip_is_called(machine: Machine) -> None:
    done = machine.prepare()
    assert (done.returncode, done.stdout, done.stderr) == (0, "prepared\n", "")
    assert [call for call in machine.calls() if call.startswith(("apt-get", "dpkg ")) or "pip" in call] == []


def test_without_root_it_says_so_in_one_sentence(machine: Machine) -> None:
    for path in (machine.clone, *machine.clone.parents[:1]):
        path.chmod(0o755)
    reachable = Path("/tmp") / f"btrsync-house-{os.getpid()}"  # pytest's own directory is closed to others
    shutil.copytree(machine.clone, reachable)
    try:
        done = Machine(reachable, Path("/usr/bin")).prepare(uid=65534)
    finally:
        shutil.rmtree(reachable)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "needs root" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def as_nobody(machine: Machine, entry: str) -> command.Completed:
    """Run another entry as nobody, in a copy of the clone that nobody gets to but may not write to."""
    (machine.clone / "entry").write_text(entry)
    for path in (machine.clone, *machine.clone.parents[:1]):
        path.chmod(0o755)
    reachable = Path("/tmp") / f"btrsync-house-{os.getpid()}"  # pytest's own directory is closed to others
    shutil.copytree(machine.clone, reachable / "clone")
    shutil.copytree(machine.programs, reachable / "bin", symlinks=True)
    try:
        return Machine(reachable / "clone", reachable / "bin").prepare(uid=65534)
    finally:
        shutil.rmtree(reachable)


def test_without_root_what_a_guest_needs_is_named_and_nothing_installed(machine: Machine) -> None:
    entry = ENTRY.replace('prepare "$@"', "prepare_for_guests")
    machine.program(
        "dpkg-query", 'for p in ca-certificates python3; do printf "%s=installed " "$p"; done; exit 1'
    )
    done = as_nobody(machine, entry)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "entry: a guest needs Debian packages, and only root can install them:"
        " apt-get install debian-archive-keyring e2fsprogs python3-venv util-linux\n"
    )


def test_without_root_a_clone_that_cannot_be_written_to_needs_a_current_environment(machine: Machine) -> None:
    entry = ENTRY.replace('prepare "$@"', "prepare_for_guests")
    machine.program("dpkg-query", 'shift 2; for p in "$@"; do printf "%s=installed " "$p"; done')
    (machine.clone / ".venv/prepared").unlink()
    done = as_nobody(machine, entry)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "entry: the clone has no current .venv, and you may not write to it: clone it again, or run"
        " ./rehearse as root once\n"
    )


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    take_away(machine, "btrfs-progs")
    machine.program("apt-get", f": >{machine.clone}/installed")
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    assert "installing Debian packages: btrfs-progs" in done.stderr
    installs = [call for call in machine.calls() if call.startswith("apt-get") and "--simulate" not in call]
    assert len(installs) == 1
    assert installs[0].endswith("install --yes --no-install-recommends btrfs-progs")


def test_the_package_lists_are_read_again_only_if_apt_does_not_know_a_package(machine: Machine) -> None:
    take_away(machine, "btrfs-progs")
    machine.program(
        "apt-get",
        f'case "$*" in *update*) : >{machine.clone}/lists ;; '
        f"*) [ -e {machine.clone}/lists ] || exit 100; : >{machine.clone}/installed ;; esac",
    )
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    assert len([call for call in machine.calls() if " update " in call]) == 1


def test_without_a_network_it_says_so(machine: Machine) -> None:
    take_away(machine, "btrfs-progs")
    machine.program("apt-get", "echo \"E: Temporary failure resolving 'deb.debian.org'\"; exit 100")
    done = machine.prepare()
    assert done.returncode == 1
    assert (
        "no network: Debian's archive cannot be reached, and packages are missing: btrfs-progs" in done.stderr
    )
    assert "prepared" not in done.stdout


def test_services_are_held_back_while_openssh_server_is_installed_and_no_longer(machine: Machine) -> None:
    take_away(machine, "openssh-server")
    policy = machine.clone.parent / "policy-rc.d"
    machine.program(
        "apt-get",
        f'sh {policy} ssh start; echo "policy $?" >>{machine.clone}/calls; : >{machine.clone}/installed',
    )
    links = machine.clone.parent / "systemd/multi-user.target.wants"
    links.mkdir(parents=True)
    (links / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    assert "policy 101" in machine.calls()
    assert not policy.exists()
    assert not os.path.lexists(links / "ssh.service")
    assert "kept off" in done.stderr
    assert not (machine.clone / ".prepare/services").exists()


def test_a_machine_that_has_an_sshd_keeps_it(machine: Machine) -> None:
    take_away(machine, "btrfs-progs")
    machine.program("apt-get", f": >{machine.clone}/installed")
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    assert "kept off" not in done.stderr
    assert [call for call in machine.calls() if call.startswith(("service", "update-rc.d"))] == []


def test_an_administrators_own_policy_is_left_alone(machine: Machine) -> None:
    take_away(machine, "openssh-server")
    policy = machine.clone.parent / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    machine.program("apt-get", f": >{machine.clone}/installed")
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    # It lets services start, so they are stopped afterwards.
    assert "service ssh stop" in machine.calls() or Path("/run/systemd/system").is_dir()


def test_killed_inside_apt_the_next_run_mends_and_still_keeps_sshd_off(machine: Machine) -> None:
    take_away(machine, "openssh-server")
    machine.program("apt-get", f": >{machine.clone}/installed; kill -KILL $PPID; exit 137")
    killed = machine.prepare()
    assert killed.returncode != 0
    assert (machine.clone / ".prepare/services").exists()
    assert (machine.clone.parent / "policy-rc.d").exists()

    machine.program("dpkg", 'case "$*" in *--audit*) echo "half installed" ;; esac')
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    assert "kept off" in done.stderr
    assert not (machine.clone / ".prepare/services").exists()
    assert not (machine.clone.parent / "policy-rc.d").exists()


def test_a_half_configured_package_is_finished_first(machine: Machine) -> None:
    take_away(machine, "btrfs-progs")
    machine.program("apt-get", f": >{machine.clone}/installed")
    machine.program("dpkg", 'case "$*" in *--audit*) echo "half installed" ;; esac')
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    configured = [call for call in machine.calls() if call.startswith("dpkg ") and "--configure -a" in call]
    assert len(configured) == 1


@pytest.mark.parametrize("change", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_brings_the_virtual_environment_up_to_date(
    machine: Machine, change: str
) -> None:
    (machine.clone / change).write_text("# another\n")
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    assert "bringing .venv up to date" in done.stderr
    assert machine.prepare().stderr == ""


def test_killed_inside_pip_the_next_run_makes_the_virtual_environment_anew(machine: Machine) -> None:
    (machine.clone / ".venv/prepared").unlink()
    body = (machine.programs / "python3").read_text().partition("\n")[2]
    python = machine.clone / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *pip*) kill -KILL $PPID ;; esac\n{body}')
    machine.program("python3", ":")
    killed = machine.prepare()
    assert killed.returncode != 0
    assert not (machine.clone / ".venv/prepared").exists()

    machine.program("python3", body)
    python.write_text((machine.programs / "python3").read_text())
    done = machine.prepare()
    assert done.returncode == 0, done.stderr
    assert "making .venv" in done.stderr
    assert (machine.clone / ".venv/prepared").exists()


def test_a_moved_clone_makes_its_virtual_environment_anew(machine: Machine) -> None:
    moved = machine.clone.rename(machine.clone.parent / "moved")
    done = Machine(moved, machine.programs).prepare()
    assert done.returncode == 0, done.stderr
    assert "making .venv" in done.stderr


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("NameResolutionError: Temporary failure in name resolution", "no network: the Python package index"),
        ("SSLError: CERTIFICATE_VERIFY_FAILED", "certificate of the Python package index is not trusted"),
        ("ERROR: something else", "pip failed"),
    ],
)
def test_a_failing_pip_is_told_in_one_sentence(machine: Machine, said: str, sentence: str) -> None:
    (machine.clone / "constraints.txt").write_text("# another\n")
    python = machine.clone / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *install*) echo "{said}"; exit 1 ;; esac\n')
    done = machine.prepare()
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1]


def test_an_old_python_is_refused(machine: Machine) -> None:
    (machine.clone / ".venv/prepared").unlink()
    machine.program("python3", "exit 1")
    done = machine.prepare()
    assert done.returncode == 1
    assert "no Python of 3.11 or newer" in done.stderr


def test_two_preparations_of_one_clone_take_turns(machine: Machine) -> None:
    (machine.clone / "constraints.txt").write_text("# another\n")
    lock = machine.clone / ".prepare/lock"
    env = {"PATH": str(machine.programs)}
    with command.spawn(["flock", str(lock), "tail", "--follow", "/dev/null"]) as first:
        wait.until(
            lambda: command.run(["flock", "--nonblock", str(lock), "true"], ok=None).returncode != 0,
            timeout_s=10,
            what="the first preparation holds its lock",
        )
        with command.spawn([str(machine.clone / "entry")], env=env) as second:
            wait.until(
                lambda: "waiting for another preparation" in second.stderr,
                timeout_s=10,
                what="the second preparation says that it waits",
            )
            assert second.poll() is None
            first.kill()
            assert second.wait(20) == 0
