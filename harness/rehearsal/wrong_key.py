"""The step "wrong key": who has another key gets nothing, and the server is left as it was."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness import sshd, wait
from harness.rehearsal.problems import StepFailed
from harness.rehearsal.show import Result

if TYPE_CHECKING:
    from harness.rehearsal.session import Session

KEY_FILE = Path("/etc/btrsync/rehearsal-keys/of-a-stranger")
CLIENT_FILE = Path("/etc/btrsync/rehearsal-wrong-key.toml")
UNREACHABLE = 5
REFUSED_KEY = "Failed publickey for root"
REFUSED_LOGIN = "ROOT LOGIN REFUSED FROM"
"""What sshd says of a key without a forced command. Source: auth.c; measured on OpenSSH 8.4, 9.2, 10.0."""
LOG_S = 5.0


def wrong_key(session: Session) -> Result:
    """A key that is not authorised, and one without a forced command: both are refused."""
    pair = session.remote_pair
    assert pair is not None, "left out where no target is behind ssh"
    both, began = session.both, time.monotonic()
    key = sshd.Key("ed25519", "a stranger")
    key.install(both.workstation, KEY_FILE)
    both.write_client_file(CLIENT_FILE, key=KEY_FILE)
    _try_in_vain(session, "an unauthorised key", REFUSED_KEY)
    session.show.line("  a key that is not authorised: refused, status 5, the server untouched")
    authorized = both.daisy.read_text(sshd.AUTHORIZED_KEYS)
    sshd.authorize(both.daisy, key, command=None, restrict=False)
    try:
        _try_in_vain(session, "a key without a forced command", REFUSED_LOGIN)
    finally:
        both.daisy.write_text(sshd.AUTHORIZED_KEYS, authorized, mode=0o600)
    session.show.line(
        "  an authorised key without command=: refused by forced-commands-only, as sshd's log says"
    )
    synced, _ = session.sync()
    if synced.returncode != 0:
        raise StepFailed(
            f"and then the right key was refused too: status {synced.returncode}",
            synced.stderr.splitlines() + session.logs(),
        )
    return Result(
        "wrong key",
        ok=True,
        seconds=time.monotonic() - began,
        bytes_sent=0,
        detail="both were refused and changed nothing; the right key still works",
    )


def _try_in_vain(session: Session, what: str, proof: str) -> None:
    """Sync with the wrong key; it must be refused, for the reason that sshd's log gives."""
    both = session.both
    job, target = session.remote_pair or ("", "")
    before, names, log_before = both.server_listing(), session.names(), len(both.sshd.log_text())
    synced, _ = session.sync(job, "--target", target, "--config", CLIENT_FILE)
    evidence = synced.stderr.splitlines() + session.logs()
    if synced.returncode != UNREACHABLE:
        raise StepFailed(
            f"with {what} btrsync ended with status {synced.returncode}, not {UNREACHABLE}", evidence
        )
    if both.server_listing() != before:
        raise StepFailed(f"{what} changed something in the server's directory", evidence)
    if session.names() != names:
        raise StepFailed(f"{what} changed the snapshots of the workstation", evidence)
    try:
        wait.until(
            lambda: proof in both.sshd.log_text()[log_before:],
            timeout_s=LOG_S,
            what=f'"{proof}" in sshd\'s log',
        )
    except wait.NeverCame as error:
        raise StepFailed(f"{what} was refused, but not as it should be: {error}", evidence) from None
