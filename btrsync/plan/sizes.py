"""Sizes in words."""

from __future__ import annotations


def format_size(size_bytes: int) -> str:
    """Return a size in words: "512 B", "12.3 MiB"."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if round(size, 1) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} PiB"
