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

running: dict[int, subprocess.Popen[bytes]] = {}
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


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run a command to its end, or kill it with its process group when its time is over."""
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    try:
        os.write(files[0], base64.b64decode(request.get("input") or ""))
        os.lseek(files[0], 0, os.SEEK_SET)
        process = subprocess.Popen(
            request["argv"],
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            env={**os.environ, **(request.get("env") or {})},
            cwd=request.get("cwd") or "/",
            start_new_session=True,
        )
        running[request["id"]] = process
        timed_out = False
        try:
            status = process.wait(request["timeout_s"])
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        return {
            "status": status,
            "stdout": contents(files[1]),
            "stderr": contents(files[2]),
            "timed_out": timed_out,
        }
    finally:
        running.pop(request["id"], None)
        for fd in files:
            os.close(fd)


def answer(fd: int, request: dict[str, Any]) -> None:
    """Do what is asked and send the answer; an error of ours is an answer too."""
    said: dict[str, Any]
    try:
        if request["do"] == "run":
            said = run(request)
        else:
            process = running.get(request["of"])
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, request["number"])
            said = {}
    except Exception as error:  # noqa: BLE001 - the host must hear of it, whatever it is
        said = {"error": f"{type(error).__name__}: {error}"}
    send(fd, {"id": request["id"], **said})


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
        threading.Thread(target=answer, args=(fd, request), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
