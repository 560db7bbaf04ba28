"""A wire before a server, that cuts, resets, slows, garbles or swallows what the server says.

    python -m benchmarks.failing_wire --port=9001 --target=8001 --control=9002

It passes TCP on, and fails as a line of JSON at the control port tells: `{"mode": "reset", "times":
1}` fails the next connection that an answer passes through, at a random place of it. MODES has all.
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
from typing import Any

MODES = {
    "cut": "the connection ends in the middle of an answer",
    "garble": "random bytes within an answer",
    "reset": "the connection is reset in the middle of an answer",
    "slow": "each piece of an answer is late by 0.2 s",
    "swallow": "nothing more passes",
}
_PLACES = 2_000  # bytes of an answer within which it fails


class Wire:
    """Connections to one server, and how they fail."""

    def __init__(self, target: int):
        self.target = target
        self.fault: dict[str, Any] = {}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one connection on until an end of it closes."""
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        going = asyncio.create_task(_pass(reader, back))
        coming = asyncio.create_task(self._answers(there, writer))
        await asyncio.wait((going, coming), return_when=asyncio.FIRST_COMPLETED)
        for task in (going, coming):
            task.cancel()
        for end in (writer, back):
            end.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            mode = self._next()
            if mode is None:
                writer.write(data)
                await writer.drain()
                continue
            place = random.randrange(_PLACES)
            while len(data) <= place:
                writer.write(data)
                await writer.drain()
                place -= len(data)
                data = await reader.read(4096)
                if not data:
                    return
            if mode == "slow":
                while data:
                    await asyncio.sleep(0.2)
                    writer.write(data)
                    data = await reader.read(4096)
                return
            writer.write(data[:place])
            if mode == "swallow":
                await asyncio.sleep(3600)
            if mode == "reset":
                linger = struct.pack("ii", 1, 0)
                found = writer.get_extra_info("socket")
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            if mode == "garble":
                writer.write(random.randbytes(40) + data[place:])
                await writer.drain()
                await asyncio.sleep(0.05)
            return

    def _next(self) -> str | None:
        if not self.fault:
            return None
        mode = self.fault["mode"]
        self.fault["times"] -= 1
        if self.fault["times"] <= 0:
            self.fault = {}
        return mode

    async def controlled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes one line."""
        self.fault = json.loads(await reader.readline())
        writer.write(b"ok\n")
        await writer.drain()
        writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()


async def _serve(port: int, target: int, control: int) -> None:
    wire = Wire(target)
    here = "127.0.0.1"
    async with (
        await asyncio.start_server(wire.connected, here, port) as first,
        await asyncio.start_server(wire.controlled, here, control) as second,
    ):
        await asyncio.gather(first.serve_forever(), second.serve_forever())


def main() -> None:
    """Passes on until it is killed."""
    parser = argparse.ArgumentParser()
    for name in ("--port", "--target", "--control"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()
    asyncio.run(_serve(given.port, given.target, given.control))


if __name__ == "__main__":
    main()
