"""Server-sent events, read piece by piece as they come over the wire.

This is the WHATWG's algorithm for interpreting an event stream, as far as vendors use it: lines
end in LF, CR or CRLF, comments and unknown fields are left out, lines of data are joined. The
fields `id` and `retry` concern reconnecting, which nobody does here.
"""

from __future__ import annotations

__all__ = ["LONGEST_EVENT", "Event", "EventParser"]

Event = tuple[bytes, bytes]
"""Name (empty where the vendor gave none) and data, as UTF-8."""

LONGEST_EVENT = 16 * 1024 * 1024
"""Bytes. A picture in an event takes a few million; without a limit a broken server fills the
memory."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventParser:
    """Cuts one stream into its events."""

    __slots__ = ("_after_cr", "_at_start", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of an event that has not come to its end
        self._size = 0
        self._after_cr = False  # so that a line feed that comes next ends no second line
        self._at_start = True

    @property
    def is_too_long(self) -> bool:
        """Whether the event that is under way is longer than `LONGEST_EVENT`: stop feeding."""
        return self._size > LONGEST_EVENT

    def feed(self, received: bytes) -> list[Event]:
        """Take in what came, and give the events that are whole now."""
        if self._after_cr or b"\r" in received:
            received = self._with_line_feeds(received)
        if b"\n\n" not in received and not self._ends_with(received):
            self._keep(received)
            return []
        if self._parts:
            received = b"".join((*self._parts, received))
        *blocks, rest = received.split(b"\n\n")
        self._parts, self._size = [], 0
        self._keep(rest)
        if self._at_start:
            self._at_start = False
            blocks[0] = blocks[0].removeprefix(_BYTE_ORDER_MARK)
        events: list[Event] = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append((b"", block[6:]))  # the ordinary case
            else:
                events.extend(_events_in(block))
        return events

    def end(self) -> list[Event]:
        """Give what is left when nothing more comes.

        The standard drops an event without an empty line after it. Some servers forget the line
        after their last event, and one that was cut off is no JSON anyway.
        """
        return self.feed(b"\n\n")

    def _with_line_feeds(self, received: bytes) -> bytes:
        if self._after_cr and received.startswith(b"\n"):
            received = received[1:]
        self._after_cr = received.endswith(b"\r")
        return received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _ends_with(self, received: bytes) -> bool:
        """Whether the empty line that ends an event came in two pieces."""
        return received.startswith(b"\n") and bool(self._parts) and self._parts[-1].endswith(b"\n")

    def _keep(self, part: bytes) -> None:
        # Joined only at the end: a long event comes in many pieces.
        if part:
            self._parts.append(part)
            self._size += len(part)


def _events_in(block: bytes) -> list[Event]:
    """The event that these lines make, if there is data in them."""
    name, data = b"", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return [(name, b"\n".join(data))] if data else []
