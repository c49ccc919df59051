"""The benchmark's account of CPU: a process's own, exact, without its children's."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from harness import command
from harness.bench.accounts import SCRIPT

if TYPE_CHECKING:
    from pathlib import Path

BURN = """
import os, sys, threading, time
def burn(seconds):
    while time.thread_time() < seconds:
        pass
child = os.fork()
burn(0.4 if not child else 0.1)
if not child:
    os._exit(0)
thread = threading.Thread(target=burn, args=(0.2,))
thread.start()
thread.join()
os.wait()
sys.stdout.write(f"{time.process_time()}")
sys.exit(7)
"""


def test_the_cpu_of_a_process_is_noted_with_its_threads_and_without_its_children(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    argv = [sys.executable, "-I", "-S", str(SCRIPT), str(notes), sys.executable, "-c", BURN]
    done = command.run(argv, ok=(7,))
    itself_s = float(done.stdout)
    user, system = map(int, notes.read_text().split())
    noted_s = (user + system) / os.sysconf("SC_CLK_TCK")
    assert 0.3 <= itself_s < 0.4
    assert itself_s - 0.02 <= noted_s <= itself_s + 0.1
