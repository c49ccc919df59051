"""A session as others write them: two hosts, a link and a mounted array, then it waits to be killed.

argv: a name that all it makes bears, "contained" or "uncontained", and what to hold besides.
"""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from harness import containment
from harness.filesystem import Array, mount
from harness.host import Host
from harness.netns import Link


def main(name: str, how: str, *here: str) -> int:
    if how == "contained" and not containment.is_contained():
        return containment.run([sys.executable, __file__, name, how, *here])
    with ExitStack() as stack:
        a = stack.enter_context(Host(f"{name}a"))
        b = stack.enter_context(Host(f"{name}b"))
        stack.enter_context(Link(a, b))
        array = stack.enter_context(Array(2, 128 << 20, label=name))
        path = stack.enter_context(mount(array, "/MirrorRoot", host=b))
        (path / "file").write_text("words")
        for point in here:
            other = stack.enter_context(Array(1, 128 << 20, label=f"{name}here"))
            stack.enter_context(mount(other, Path(point)))
        print("ready", flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
