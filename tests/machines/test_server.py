"""What a rightly set-up server looks like. One assertion each: test_assertions_can_fail.py sees it fail."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.machines import files
from tests.machines.inventory import AUTHORIZED_KEYS, SERVER_FILE

if TYPE_CHECKING:
    from tests.machines.inventory import Machines

pytestmark = [pytest.mark.readonly, pytest.mark.requires("root")]

OLDEST_PROGS = (6, 2)
"""Below, `btrfs receive` may lose data of compressed streams."""
SECONDS_PER_DAY = 86_400

# ---------------------------------------------------------------------------------- root's files


def test_only_root_may_write_roots_home(server: Any) -> None:
    assert files.who_may_write(server, "/root") == "root alone"


def test_roots_ssh_directory_is_private(server: Any) -> None:
    assert files.owners_and_mode(server, "/root/.ssh") == "root:root 0700 directory"


def test_authorized_keys_is_private(server: Any) -> None:
    assert files.owners_and_mode(server, AUTHORIZED_KEYS) == "root:root 0600 regular file"


def test_roots_shell_can_run_a_forced_command(server: Any) -> None:
    shell = server.user("root").shell
    assert server.run("%s -c 'exit 0'", shell).rc == 0, f"{shell} runs nothing"


def test_roots_account_has_not_expired(server: Any) -> None:
    # Source: shadow(5): the eighth field counts days since 1970. PAM turns an expired account away.
    expires = server.check_output("getent shadow root").split(":")[7]
    today = int(server.check_output("date +%s")) // SECONDS_PER_DAY
    assert not expires or int(expires) > today, f"root's account expired on day {expires}, it is {today}"


# ----------------------------------------------------------------------------- the forced command


def test_a_key_is_bound_to_btrsync_serve(machines: Machines) -> None:
    assert machines.forced_commands(), "no key of root's is bound to btrsync serve"


def test_every_key_bound_to_btrsync_is_restricted(machines: Machines) -> None:
    lax = [key for key in machines.forced_commands() if "restrict" not in key.options]
    assert lax == [], f"without restrict: {lax}"


def test_every_forced_command_has_an_absolute_path(machines: Machines) -> None:
    programs = [shlex.split(key.command or "")[0] for key in machines.forced_commands()]
    relative = [program for program in programs if not program.startswith("/")]
    assert relative == [], f"not absolute: {relative}"


def test_every_forced_command_can_be_executed(server: Any, machines: Machines) -> None:
    programs = {shlex.split(key.command or "")[0] for key in machines.forced_commands()}
    missing = [program for program in programs if server.run("test -f %s -a -x %s", program, program).rc]
    assert missing == [], f"not there, or not executable: {missing}"


def test_every_forced_command_names_one_client(machines: Machines) -> None:
    words = [shlex.split(key.command or "")[1:] for key in machines.forced_commands()]
    wrong = [said for said in words if said[:1] != ["serve"] or len(said) < 2 or said[-1].startswith("-")]
    assert wrong == [], f"no client is named: {wrong}"


# ------------------------------------------------------------------------------------------ sshd


def test_sshd_lets_root_in_for_forced_commands_only(machines: Machines) -> None:
    assert machines.effective_sshd()["permitrootlogin"] == "forced-commands-only"


def test_sshd_uses_pam(machines: Machines) -> None:
    assert machines.effective_sshd()["usepam"] == "yes"


def test_sshd_takes_public_keys(machines: Machines) -> None:
    assert machines.effective_sshd()["pubkeyauthentication"] == "yes"


def test_sshd_reads_roots_authorized_keys(machines: Machines) -> None:
    places = machines.effective_sshd()["authorizedkeysfile"].split()
    assert {".ssh/authorized_keys", AUTHORIZED_KEYS, "%h/.ssh/authorized_keys"} & set(places), places


def test_sshd_forces_no_command_of_its_own(machines: Machines) -> None:
    # It would win over the one that the key is bound to. Source: sshd_config(5), ForceCommand.
    assert machines.effective_sshd()["forcecommand"] == "none"


def test_sshd_looks_at_modes(machines: Machines) -> None:
    assert machines.effective_sshd()["strictmodes"] == "yes"


def test_sshd_listens(server: Any, machines: Machines) -> None:
    port = machines.target_of_server()["port"]
    assert server.socket(f"tcp://{port}").is_listening, f"nothing listens at port {port}"


# ------------------------------------------------------------------------------------- the array


def test_the_backups_lie_on_btrfs(machines: Machines) -> None:
    assert machines.array_mount()["fstype"] == "btrfs"


def test_the_subvolume_mirror_is_mounted(machines: Machines) -> None:
    options = machines.array_mount()["options"]
    assert "subvol=/mirror" in options, f"mounted with {','.join(options)}"


def test_the_array_is_mounted_noatime(machines: Machines) -> None:
    options = machines.array_mount()["options"]
    assert "noatime" in options, f"mounted with {','.join(options)}"


def test_the_array_compresses_by_lzo(machines: Machines) -> None:
    options = machines.array_mount()["options"]
    assert "compress-force=lzo" in options, f"mounted with {','.join(options)}"


def test_the_array_can_be_written(machines: Machines) -> None:
    options = machines.array_mount()["options"]
    assert "rw" in options, f"mounted with {','.join(options)}"


def test_the_array_has_all_its_members(server: Any, machines: Machines) -> None:
    shown = server.check_output("btrfs filesystem show --raw %s", machines.array_mount()["target"])
    wanted = int(re.search(r"Total devices (\d+)", shown)[1])  # type: ignore[index]
    present = [line for line in shown.splitlines() if "devid" in line and " path /" in line]
    assert len(present) == wanted and "missing" not in shown.lower(), f"not all of {wanted} members: {shown}"


def test_btrfs_progs_is_new_enough(server: Any) -> None:
    shown = server.check_output("btrfs --version")
    version = tuple(int(word) for word in re.search(r"v(\d+)\.(\d+)", shown).groups())  # type: ignore[union-attr]
    assert version >= OLDEST_PROGS, f"{shown} is older than {OLDEST_PROGS}"


# ------------------------------------------------------------------------------- btrsync's own


def test_only_root_may_write_where_the_backups_are(server: Any, machines: Machines) -> None:
    assert files.who_may_write(server, machines.server_root()) == "root alone"


def test_only_root_may_write_the_servers_configuration(server: Any) -> None:
    assert files.who_may_write(server, SERVER_FILE) == "root alone"


def test_the_servers_configuration_has_no_mistakes(server: Any, machines: Machines) -> None:
    checked = server.run("%s config check --server", machines.btrsync)
    assert checked.rc == 0, checked.stderr
