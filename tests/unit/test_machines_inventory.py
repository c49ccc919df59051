"""How machines are named and entered, and how their authorized_keys are read."""

from __future__ import annotations

import pytest
from testinfra import backend as testinfra_backends

from harness import sshd
from tests.machines import backend
from tests.machines.inventory import AuthorizedKey, parse_authorized_keys, parse_spec, problem


def test_testinfra_finds_the_backend_of_a_rehearsal() -> None:
    # BACKENDS is a plain dict of theirs, with no promise: this is where a change of it shows.
    backend.register()
    made = testinfra_backends.get_backend("rehearsal://4711")
    assert isinstance(made, backend.RehearsalBackend)
    assert made.get_pytest_id() == "rehearsal://4711"


@pytest.mark.parametrize("pid", ["", "1; id", "-1", "$(id)", "٣"])
def test_a_rehearsal_host_is_named_by_a_pid_alone(pid: str) -> None:
    with pytest.raises(ValueError, match="takes the pid"):
        backend.RehearsalBackend(pid)


@pytest.mark.parametrize(
    ("word", "spec", "name"),
    [
        ("daisy.local", "ssh://daisy.local?controlpersist=0", "daisy.local"),
        ("ssh://root@daisy:2222", "ssh://root@daisy:2222?controlpersist=0", "daisy"),
        ("ssh://daisy?sudo=true", "ssh://daisy?sudo=true&controlpersist=0", "daisy"),
        ("ansible://daisy?ansible_inventory=hosts", "ansible://daisy?ansible_inventory=hosts", "daisy"),
        ("local://", "local://", ""),
    ],
)
def test_a_machine_is_named_by_a_host_or_a_spec(word: str, spec: str, name: str) -> None:
    assert parse_spec(word) == (spec, name)


@pytest.mark.parametrize("target", ["vm", "production"])
def test_real_machines_must_be_named(target: str) -> None:
    assert "--server and --workstation" in str(problem(target, None, None))
    assert "--server" not in str(problem(target, "daisy", None))
    assert problem(target, "daisy", "local://") is None


def test_a_rehearsal_needs_no_names() -> None:
    assert problem("rehearsal", None, None) is None


@pytest.mark.parametrize(
    ("line", "options", "command"),
    [
        ("ssh-ed25519 AAAA root@workstation", (), None),
        (
            'restrict,command="/usr/bin/btrsync serve w" ssh-ed25519 AAAA',
            ("restrict",),
            "/usr/bin/btrsync serve w",
        ),
        ('command="a, b",restrict ssh-ed25519 AAAA', ("restrict",), "a, b"),
        (r'command="say \"x y\"",from="10.0.0.1" ssh-ed25519 AAAA c d', ('from="10.0.0.1"',), 'say "x y"'),
        ('  COMMAND="x"\tssh-ed25519 AAAA', (), "x"),
    ],
)
def test_a_line_of_authorized_keys_is_read_as_sshd_reads_it(
    line: str, options: tuple[str, ...], command: str | None
) -> None:
    assert parse_authorized_keys(f"# comment\n\n{line}\n") == [
        AuthorizedKey("ssh-ed25519", "AAAA", options, command)
    ]


def test_the_line_that_the_harness_writes_is_read_back() -> None:
    key = sshd.Key()
    (read,) = parse_authorized_keys(sshd.authorized_line(key, command='sh -c "true"'))
    assert f"{read.kind} {read.blob}" == " ".join(key.public.split()[:2])
    assert (read.options, read.command) == (("restrict",), 'sh -c "true"')
