"""Server-sent events from bytes in any pieces: the HTML standard; no line ends in CR alone."""

from typing import NamedTuple


class Event(NamedTuple):
    """One event.

    Attributes:
      name: 'message' if the sender gave none; '' for a comment, which keeps a stream alive.
      data: its lines; of a comment the text.
    """

    name: str
    data: str

    def encoded(self) -> bytes:
        """As it is sent."""
        if not self.name:
            return f":{self.data}\n\n".encode()
        head = "" if self.name == "message" else f"event: {self.name}\n"
        lines = "".join(f"data: {line}\n" for line in self.data.split("\n"))
        return f"{head}{lines}\n".encode()


class Malformed(ValueError):
    """Bytes that are no events."""


class Decoder:
    """Collects bytes and gives the events that are complete. What is incomplete at the end is void.

    Args:
      most: bytes of an event; more raise `Malformed`.
    """

    def __init__(self, most: int = 2**22):
        self._rest = b""
        self._name, self._data = "", list[str]()
        self._most, self._size = most, 0

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes.

        Raises:
          Malformed: an event is too long, or no UTF-8.
        """
        found = []
        *lines, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n")
        if len(self._rest) > self._most:
            raise Malformed(f"an event of more than {self._most} bytes")
        for line in lines:
            self._size += len(line)
            if self._size > self._most:
                raise Malformed(f"an event of more than {self._most} bytes")
            try:
                event = self._line(line.rstrip(b"\r").decode())
            except UnicodeDecodeError:
                raise Malformed("an event that is no UTF-8") from None
            if event is not None:
                found.append(event)
                self._size = 0
        return found

    def _line(self, line: str) -> Event | None:
        if not line:
            name, data = self._name or "message", self._data
            self._name, self._data = "", []
            return Event(name, "\n".join(data)) if data else None
        if line.startswith(":"):
            return Event("", line[1:])
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None
