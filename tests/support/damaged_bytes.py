"""Files of any form, damaged: bits that flip, pieces that are cut out, moved or doubled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Stream = np.random.Generator
Way = Callable[[bytes, Stream], tuple[str, bytes]]
HUGE = (2**31, 2**32 + 1, 2**62, 2**63, 2**64, 10**30)
#: JSON that hardly anything may be.
WRONG: tuple[object, ...] = (None, True, -1, 1.5, "x", "", [], {}, [[]], "9" * 400, *HUGE)


def _place(content: bytes, stream: Stream) -> int:
    """Anywhere, or near an end: there headers and directories lie."""
    near = min(int(stream.choice([8, 64, 4096, len(content)])), len(content))
    place = int(stream.integers(max(near, 1)))
    return place if stream.random() < 0.7 else len(content) - 1 - place


def flipped(content: bytes, stream: Stream) -> tuple[str, bytes]:
    found, places = bytearray(content), []
    for _ in range(int(stream.choice([1, 1, 1, 2, 8]))):
        places.append((_place(content, stream), int(stream.integers(8))))
        found[places[-1][0]] ^= 1 << places[-1][1]
    return str(places), bytes(found)


def truncated(content: bytes, stream: Stream) -> tuple[str, bytes]:
    end = _place(content, stream)
    return f"at {end}", content[:end]


def cut(content: bytes, stream: Stream) -> tuple[str, bytes]:
    start = _place(content, stream)
    size = int(stream.choice([1, 8, 64, 1000]))
    return f"{size} bytes at {start}", content[:start] + content[start + size :]


def zeroed(content: bytes, stream: Stream) -> tuple[str, bytes]:
    start = _place(content, stream)
    size = min(int(stream.choice([1, 8, 512, 4096])), len(content) - start)
    return f"{size} bytes at {start}", content[:start] + bytes(size) + content[start + size :]


def moved(content: bytes, stream: Stream) -> tuple[str, bytes]:
    start, to = _place(content, stream), _place(content, stream)
    piece, rest = content[start : start + 64], content[:start] + content[start + 64 :]
    return f"64 bytes from {start} to {to}", rest[:to] + piece + rest[to:]


def longer(content: bytes, stream: Stream) -> tuple[str, bytes]:
    more = [b"\0", b"\n", content, stream.bytes(100)][int(stream.integers(4))]
    return f"by {len(more)} bytes", content + more if stream.random() < 0.7 else more + content


ANY: list[Way] = [flipped, flipped, truncated, cut, zeroed, moved, longer]
