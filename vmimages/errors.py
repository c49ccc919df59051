"""What keeps an image from being built or a machine from running, told in one sentence."""

from __future__ import annotations


class VmError(Exception):
    """Something that a person can put right: one sentence, and a hint that says how."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
