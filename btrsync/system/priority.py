"""How much of the machine a program may take: the words that go before its argv.

Host commands used: `nice`, `ionice`.
"""

from __future__ import annotations

from typing import Final

IO_CLASSES: Final = {"best-effort": 2, "idle": 3}
"""By ionice(1); with the mq-deadline and none schedulers of most disks of today, they mean nothing."""

LOWEST_NICE: Final = 19


def priority_argv(nice: int = 0, io_class: str | None = None) -> list[str]:
    """Return the words before an argv that starts it so; none for what is usual.

    nice: 0 to 19, added to our own niceness; io_class: "idle", "best-effort" or None for our own. A
    kernel without I/O priorities is no failure (-t). Raises ValueError.
    """
    if not 0 <= nice <= LOWEST_NICE:
        raise ValueError(f"niceness {nice}, not one of 0 to {LOWEST_NICE}")
    if io_class is not None and io_class not in IO_CLASSES:
        raise ValueError(f"I/O class {io_class!r}, not one of {', '.join(IO_CLASSES)}")
    return [
        *(["nice", "-n", str(nice)] if nice else []),
        *(["ionice", "-t", "-c", str(IO_CLASSES[io_class])] if io_class else []),
    ]
