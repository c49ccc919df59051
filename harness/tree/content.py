"""The bytes of files: the same for the same seed, and quick to come by in gigabytes."""

from __future__ import annotations

from random import Random

_POOL_BYTES = 1 << 22
_WORDS = (b"snapshot", b"mirror", b"daisy", b"workstation", b"extent", b"subvolume", b"\n", b" the ", b"0123")


class Content:
    """Two pools made once from a seed, of noise and of text; a piece is a view into one of them.

    A quarter of the pieces is text, which compresses. Pieces of one pool may overlap, so equal bytes
    occur in more than one file, as in life.
    """

    def __init__(self, seed: float | str) -> None:
        rng = Random(f"content:{seed}")
        self._noise = memoryview(rng.randbytes(_POOL_BYTES))
        text = b" ".join(rng.choices(_WORDS, k=_POOL_BYTES // 256))
        self._text = memoryview(text * (_POOL_BYTES // len(text) + 1))

    def piece(self, rng: Random, size_bytes: int) -> bytes | memoryview:
        """Return some bytes, text or noise by chance."""
        if rng.random() < 0.25:
            return self.text(rng, size_bytes)
        return self.noise(rng, size_bytes)

    def text(self, rng: Random, size_bytes: int) -> bytes | memoryview:
        return _cut(self._text, rng, size_bytes)

    def noise(self, rng: Random, size_bytes: int) -> bytes | memoryview:
        return _cut(self._noise, rng, size_bytes)


def _cut(pool: memoryview, rng: Random, size_bytes: int) -> bytes | memoryview:
    if size_bytes > len(pool) // 2:
        return bytes(pool) * (size_bytes // len(pool)) + bytes(pool[: size_bytes % len(pool)])
    begin = rng.randrange(len(pool) - size_bytes)
    return pool[begin : begin + size_bytes]
