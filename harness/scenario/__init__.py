"""The whole mirror in one place: two hosts, a link, sshd with a forced command, arrays, configurations.

`with TwoHosts() as both: both.sync()` is what a rehearsal, a benchmark and the tests of the network
begin with. The tool is run as it is installed, never imported.
"""

from harness.scenario.encrypted import EncryptedArray
from harness.scenario.parts import (
    CLIENT_FILE,
    INCOMING_PREFIX,
    KEY_FILE,
    MIRROR_ROOT,
    SERVER_FILE,
    SERVER_ROOT,
    Job,
    Synced,
    Target,
    format_toml,
    installed_btrsync,
)
from harness.scenario.two_hosts import TwoHosts

__all__ = [
    "CLIENT_FILE",
    "INCOMING_PREFIX",
    "KEY_FILE",
    "MIRROR_ROOT",
    "SERVER_FILE",
    "SERVER_ROOT",
    "EncryptedArray",
    "Job",
    "Synced",
    "Target",
    "TwoHosts",
    "format_toml",
    "installed_btrsync",
]
