"""What each cipher of ssh costs, over a cable without a limit: `python -m harness.bench.ciphers`.

Sends zeros from one rehearsal host to another, to a forced command that throws them away, and prints for
each cipher the median of the rates, and of the processor seconds a GiB of both ends together, `head` and
`cat` included. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import sys
import time

from harness import command, wait
from harness.host import Host
from harness.netns import Link
from harness.sshd import Key, Sshd, authorize, trust

CIPHERS = (
    "chacha20-poly1305@openssh.com",
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
)
MIB = 1 << 20
ROUNDS = 5


def main() -> None:
    """Measure each cipher in turns and print a table."""
    size_mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    with contextlib.ExitStack() as stack:
        workstation = stack.enter_context(Host("workstation"))
        daisy = stack.enter_context(Host("daisy"))
        stack.enter_context(Link(workstation, daisy))
        sshd = stack.enter_context(Sshd(daisy))
        key = Key()
        path = key.install(workstation)
        authorize(daisy, key, command="cat > /dev/null")
        trust(workstation, daisy)
        zeros = f"head -c {size_mib}M /dev/zero"
        ssh = f"ssh -oBatchMode=yes -i {path} root@daisy"
        found: dict[str, list[tuple[float, float]]] = {cipher: [] for cipher in CIPHERS}
        workstation.run(["sh", "-c", f"head -c 1M /dev/zero | {ssh}"])
        for _ in range(ROUNDS):
            for cipher in CIPHERS:
                busy, began = _used_s(sshd), time.monotonic()
                workstation.run(["sh", "-c", f"{zeros} | {ssh} -c {cipher}"], timeout_s=600)
                took = time.monotonic() - began
                # Its time counts when it is reaped.
                children = f"/proc/{sshd.pid}/task/{sshd.pid}/children"
                wait.until(lambda: not daisy.read_text(children), timeout_s=20, what="the session's end")  # noqa: B023
                found[cipher].append((took, _used_s(sshd) - busy))
    print(command.run(["ssh", "-V"]).stderr.strip())
    for cipher, rounds in found.items():
        rate = statistics.median(size_mib * MIB / seconds for seconds, _ in rounds)
        cpu = statistics.median(used / size_mib * 1024 for _, used in rounds)
        print(f"{cipher:30} {rate / 1e6:6.0f} MB/s {cpu:5.2f} CPU s/GiB")


def _used_s(sshd: Sshd) -> float:
    """Return the processor seconds of all that has ended here, and of all the sessions of sshd."""
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = sshd.host.read_text(f"/proc/{sshd.pid}/stat").rpartition(")")[2].split()
    # cutime and cstime, proc(5): fields 16 and 17, of which the first two stand before the bracket.
    sessions = (int(words[13]) + int(words[14])) / os.sysconf("SC_CLK_TCK")
    return ours.ru_utime + ours.ru_stime + sessions


if __name__ == "__main__":
    main()
