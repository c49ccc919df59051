"""The host's end of the control channel: frames to and from the agent of a guest (guest/agent.py)."""

from __future__ import annotations

import base64
import json
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GREETING = b"btrsync-agent\n"
LENGTH = struct.Struct(">I")
PIECE_BYTES = 1 << 16
WINDOW = 1024
WINDOWS = 2
"""How much may be under way: see guest/agent.py."""
SLOWEST_BYTES_S = 100_000
LISTEN_S = 60.0


class ChannelEnded(Exception):
    """The guest closed the channel, or there is no guest any more."""


class ChannelDeaf(Exception):
    """The guest does not take in what it is sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a command in the guest; `error` is the agent's own, such as no such program."""

    status: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    error: str | None


class Channel:
    """Requests with numbers, answers in any order; whoever waits for one keeps those of the others."""

    def __init__(self) -> None:
        """Make the pair of sockets: `guest` is for the backend, to be closed once it has started."""
        self.ours, self.guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.ours.setblocking(False)
        self._heard = bytearray()
        self._greeted = False
        self._answers: dict[int, Answer] = {}
        self._last = 0
        self._room = WINDOW * WINDOWS

    def close(self) -> None:
        """Close both ends."""
        self.ours.close()
        self.guest.close()

    def has_greeted(self, wait_s: float) -> bool:
        """Whether the agent has said that it listens; waits a little for it."""
        self._pump(wait_s)
        return self._greeted

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> int:
        """Ask for a command and return the number of the request."""
        more = {"argv": list(argv), "timeout_s": timeout_s, "env": dict(env or {}), "cwd": cwd}
        return self._ask({"do": "run", "input": base64.b64encode(input).decode(), **more})

    def signal(self, request: int, number: int) -> int:
        """Ask for a signal to the process group of a command that runs."""
        return self._ask({"do": "signal", "of": request, "number": number})

    def end(self) -> int:
        """Ask the agent to end, and the guest with it."""
        return self._ask({"do": "end"})

    def answer(self, request: int, wait_s: float) -> Answer | None:
        """Return the answer to a request if it is there; waits a little for it. It is given once."""
        if request not in self._answers:
            self._pump(wait_s)
        return self._answers.pop(request, None)

    def _ask(self, request: Mapping[str, object]) -> int:
        self._last += 1
        body = json.dumps({"id": self._last, **request}).encode()
        view = memoryview(LENGTH.pack(len(body)) + body)
        deadline = time.monotonic() + LISTEN_S + len(body) / SLOWEST_BYTES_S
        while view:
            if self._room == 0:
                if time.monotonic() > deadline:
                    raise ChannelDeaf
                self._pump(0.1)
                continue
            try:
                sent = self.ours.send(view[: self._room])
            except (BrokenPipeError, ConnectionResetError):
                raise ChannelEnded from None
            view = view[sent:]
            self._room -= sent
        return self._last

    def _pump(self, wait_s: float) -> None:
        """Take in what there is, waiting up to `wait_s` seconds for the first of it."""
        ready, _, _ = select.select([self.ours], [], [], wait_s)
        if not ready:
            return
        try:
            piece = self.ours.recv(PIECE_BYTES)
        except (BlockingIOError, ConnectionResetError):
            piece = b""
        if not piece:
            raise ChannelEnded
        self._heard += piece
        self._parse()

    def _parse(self) -> None:
        if not self._greeted:
            at = self._heard.find(GREETING)
            if at < 0:
                return
            self._greeted = True
            del self._heard[: at + len(GREETING)]
        while len(self._heard) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._heard)
            if size == 0:
                self._room += WINDOW
                del self._heard[: LENGTH.size]
                continue
            if len(self._heard) < LENGTH.size + size:
                return
            said = json.loads(self._heard[LENGTH.size : LENGTH.size + size])
            del self._heard[: LENGTH.size + size]
            self._answers[said["id"]] = Answer(
                status=said.get("status", 0),
                stdout=base64.b64decode(said.get("stdout", "")),
                stderr=base64.b64decode(said.get("stderr", "")),
                timed_out=said.get("timed_out", False),
                error=said.get("error"),
            )
