"""The guest's end of the control channel: runs commands for the host, and says what came of them.

A frame is a big-endian 32-bit length and so many bytes of JSON; bytes travel as base64. The first
thing said is GREETING, before which the host says nothing and ignores what it hears. A frame of
length 0 from here says that WINDOW more bytes were taken in: the host never has more than two windows
under way. A serial line of User Mode Linux sleeps for ever once its 4 KiB were full (measured, 6.1).

Requests: {"id", "do": "run", "argv", "timeout_s", "input", "env", "cwd"}, answered when the command
has ended by {"id", "status", "stdout", "stderr", "timed_out"} or {"id", "error"};
{"id", "do": "signal", "of": ID, "number"}, to the process group of a command that runs;
{"id", "do": "end"}: the agent ends, and with it the guest.

Run by the guest's own Python, 3.9 or newer, without any package.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import struct
import subprocess  # noqa: TID251 - the guest has no other door: nothing but this file gets there
import sys
import termios
import threading
import tty
from typing import Any

GREETING = b"btrsync-agent\n"
LENGTH = struct.Struct(">I")
WINDOW = 1024

running: dict[int, Command] = {}
lock = threading.Lock()


def open_channel(path: str) -> int:
    """Open the device of the control channel, without any line discipline, and return it."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    if os.isatty(fd):
        tty.setraw(fd, termios.TCSANOW)
    return fd


class Receiver:
    """Takes in what the host sends, and acknowledges it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.taken = 0

    def receive(self, size: int) -> bytes | None:
        """Return exactly `size` bytes, or None at the end of the channel."""
        got = bytearray()
        while len(got) < size:
            try:
                piece = os.read(self.fd, size - len(got))
            except OSError:
                return None
            if not piece:
                return None
            got += piece
            self.taken += len(piece)
            if self.taken >= WINDOW:
                write(self.fd, LENGTH.pack(0) * (self.taken // WINDOW))
                self.taken %= WINDOW
        return bytes(got)


def write(fd: int, data: bytes) -> None:
    """Write all of it, and nobody else's in between."""
    view = memoryview(data)
    with lock:
        while view:
            view = view[os.write(fd, view[: 1 << 16]) :]


def send(fd: int, answer: dict[str, Any]) -> None:
    """Send one frame whole."""
    body = json.dumps(answer).encode()
    write(fd, LENGTH.pack(len(body)) + body)


def contents(fd: int) -> str:
    """Return what lies in a memory file, as base64."""
    return base64.b64encode(os.pread(fd, os.fstat(fd).st_size, 0)).decode()


class Command:
    """A command that runs: begun in the order of the requests, waited for in a thread of its own."""

    def __init__(self, request: dict[str, Any]) -> None:
        """Start it."""
        self.request = request
        self.files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        try:
            os.write(self.files[0], base64.b64decode(request.get("input") or ""))
            os.lseek(self.files[0], 0, os.SEEK_SET)
            self.process = subprocess.Popen(
                request["argv"],
                stdin=self.files[0],
                stdout=self.files[1],
                stderr=self.files[2],
                env={**os.environ, **(request.get("env") or {})},
                cwd=request.get("cwd") or "/",
                start_new_session=True,
            )
        except BaseException:
            self.close()
            raise
        running[request["id"]] = self

    def close(self) -> None:
        """Let go of what it said."""
        running.pop(self.request["id"], None)
        while self.files:
            os.close(self.files.pop())

    def signal(self, number: int) -> None:
        """Send a signal to its process group, which may be gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait(self) -> dict[str, Any]:
        """Wait for its end, or kill it when its time is over; return the answer."""
        timed_out = False
        try:
            status = self.process.wait(self.request["timeout_s"])
        except subprocess.TimeoutExpired:
            timed_out = True
            self.signal(signal.SIGKILL)
            status = self.process.wait()
        stdout, stderr = (contents(fd) for fd in self.files[1:])
        return {"status": status, "stdout": stdout, "stderr": stderr, "timed_out": timed_out}


def finish(fd: int, command: Command) -> None:
    """Send what came of a command."""
    try:
        said = command.wait()
    except Exception as error:  # noqa: BLE001 - the host must hear of it, whatever it is
        said = {"error": f"{type(error).__name__}: {error}"}
    finally:
        command.close()
    send(fd, {"id": command.request["id"], **said})


def take(fd: int, request: dict[str, Any]) -> None:
    """Do what is asked; an error of ours is an answer too."""
    try:
        if request["do"] == "run":
            threading.Thread(target=finish, args=(fd, Command(request)), daemon=True).start()
            return
        command = running.get(request["of"])
        if command is not None:
            command.signal(request["number"])
        send(fd, {"id": request["id"]})
    except Exception as error:  # noqa: BLE001 - the same
        send(fd, {"id": request["id"], "error": f"{type(error).__name__}: {error}"})


def main(path: str) -> None:
    """Serve the channel until it ends or the host says so."""
    fd = open_channel(path)
    write(fd, GREETING)
    receiver = Receiver(fd)
    while True:
        head = receiver.receive(LENGTH.size)
        body = receiver.receive(LENGTH.unpack(head)[0]) if head else None
        if body is None:
            return
        request = json.loads(body)
        if request["do"] == "end":
            send(fd, {"id": request["id"]})
            return
        take(fd, request)


if __name__ == "__main__":
    main(sys.argv[1])
