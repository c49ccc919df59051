"""Fuzz, guided by coverage: `python -m tests.fuzz --seconds 60 [--target inspector]`, shared among the targets.

An input that breaks something is kept in tests/fuzz/corpus/TARGET/ under a name that begins with `crash-`;
once mended, it stays there as a test. New inputs that reach new lines are forgotten unless --keep is given:
then they join the corpus.
Needs atheris.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from harness import command

if TYPE_CHECKING:
    from types import FrameType

    from _typeshed import TraceFunction

CORPUS = Path(__file__).with_name("corpus")
MAX_INPUT_BYTES = 32 << 10
SHOWN_BYTES = 4096
SILENCE_S = 30
SHARES = {"inspector": 4, "prefix": 2, "totals": 2, "wire": 2}
"""Of the time, where one is not enough."""
CHILD = "--child"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--target", action="append")
    parser.add_argument("--keep", action="store_true")
    wanted = parser.parse_args()
    names = wanted.target or sorted(path.name for path in CORPUS.iterdir())
    failed = []
    with tempfile.TemporaryDirectory(prefix="btrsync-fuzz-") as scratch:
        for name in names:
            fresh = Path(scratch, name)
            fresh.mkdir()
            share = SHARES.get(name, 1) / sum(SHARES.get(each, 1) for each in names)
            seconds = max(1, round(wanted.seconds * share))
            said = fuzz(name, fresh, f"-max_total_time={seconds}", f"-artifact_prefix={CORPUS / name}/")
            print(f"{name}: {words(said.stderr)}", flush=True)
            if said.returncode:
                failed.append(name)
                print(said.stdout[-3000:], said.stderr[-1000:])
                show_crashes(name)
            elif wanted.keep:
                keep(name, fresh)
    print(f"fuzz: {'failed: ' + ', '.join(failed) if failed else 'nothing found'}")
    return 1 if failed else 0


def show_crashes(name: str) -> None:
    """Print what broke it, for a machine whose files nobody will see."""
    for path in CORPUS.joinpath(name).glob("*-" + "?" * 40):
        if path.stat().st_size <= SHOWN_BYTES:
            print(f"{path.name}: {base64.b64encode(path.read_bytes()).decode()}")


def fuzz(name: str, directory: Path, *options: str | Path) -> command.Completed:
    argv = [
        sys.executable, "-m", "tests.fuzz", CHILD, name, directory, CORPUS / name,
        f"-timeout={SILENCE_S}", f"-max_len={MAX_INPUT_BYTES}", "-rss_limit_mb=1024", "-print_final_stats=1",
        *options,
    ]  # fmt: skip
    return command.run(argv, ok=None, timeout_s=3600, env=dict(os.environ))


def words(stderr: str) -> str:
    """How many inputs were tried, and how much code they reached."""
    tried = [line.split()[-1] for line in stderr.splitlines() if "number_of_executed_units" in line]
    reached = [line.split("cov: ")[1].split()[0] for line in stderr.splitlines() if " cov: " in line]
    return f"{(tried or ['?'])[-1]} inputs, {(reached or ['?'])[-1]} places reached"


def keep(name: str, fresh: Path) -> None:
    """Add to the corpus what reaches lines that nothing in it reaches, the smallest inputs first."""
    reached: set[tuple[str, int]] = set()
    for path in sorted(CORPUS.joinpath(name).iterdir()):
        reached |= lines_of(name, path.read_bytes())
    for path in sorted(fresh.iterdir(), key=lambda path: path.stat().st_size):
        if not (lines := lines_of(name, path.read_bytes())) <= reached:
            reached |= lines
            shutil.copyfile(path, CORPUS / name / path.name)


def lines_of(name: str, data: bytes) -> set[tuple[str, int]]:
    """Return the lines of btrsync that an input reaches."""
    from tests.fuzz.targets import TARGETS

    found: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        if "/btrsync/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            found.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        TARGETS[name](data)
    finally:
        sys.settrace(None)
    return found


def child() -> None:
    """What atheris calls: never returns."""
    import atheris

    with atheris.instrument_imports(include=["btrsync"]):
        from tests.fuzz.mutator import mutated
        from tests.fuzz.targets import TARGETS

    name, *arguments = sys.argv[sys.argv.index(CHILD) + 1 :]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        changed = mutated(name, data, Random(seed), lambda block: atheris.Mutate(block, len(block) + 20))
        return changed[:max_size]

    atheris.Setup([sys.argv[0], *arguments], TARGETS[name], custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    started = time.monotonic()
    if CHILD in sys.argv:
        child()
    else:
        status = main()
        print(f"{time.monotonic() - started:.0f} s")
        raise SystemExit(status)
