"""Zip archives of arrays, damaged: objects to unpickle, bombs, names that lead elsewhere, headers that lie."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
from damaged_bytes import ANY, Stream, Way


class Payload:
    """What writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("unpickled", "w"))


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(members: list[tuple[str, bytes]], packing: int = zipfile.ZIP_STORED) -> bytes:
    import warnings

    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", packing) as archive:
        warnings.simplefilter("ignore")  # of a name that stands twice
        for name, inside in members:
            archive.writestr(name, inside)
    return written.getvalue()


def _array(array: Any, allow_pickle: bool = False) -> bytes:
    written = io.BytesIO()
    np.lib.format.write_array(written, np.asarray(array), allow_pickle=allow_pickle)
    return written.getvalue()


def member_replaced(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """An array of Python objects, of another type, another shape, or no array at all."""
    members = _members(content)
    name = str(stream.choice([*members]))
    array = np.lib.format.read_array(io.BytesIO(members[name]))
    others: list[bytes] = [
        _array(np.array([Payload()], dtype=object), allow_pickle=True),
        pickle.dumps(Payload()),
        b"",
        _array(array[None]),
        _array(np.array("x" * 50)),
        _array(np.zeros((0, *array.shape), array.dtype)),
        _array(np.array(b"[" * 100_000)),
        members[name][:-1],
        members[name] + b"\0",
    ]
    k = int(stream.integers(len(others)))
    members[name] = others[k]
    return f"{name} by {k}", _zipped([*members.items()])


def member_misdeclared(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """The header of an array edited, its length kept."""
    members = _members(content)
    name = str(stream.choice([*members]))
    inside = members[name]
    size = struct.unpack("<H", inside[8:10])[0]
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(inside[8:]))
    header = {"descr": dtype.str, "fortran_order": fortran, "shape": shape}
    wrong: list[dict[str, Any] | str] = [
        {**header, "descr": "|O"},
        {**header, "descr": "<f4"},
        {**header, "descr": ">f8"},
        {**header, "descr": "<c16"},
        {**header, "descr": [("a", "<f8")]},
        {**header, "shape": (2**62, 4)},
        {**header, "shape": (-1,)},
        {**header, "shape": (*shape, 2)},
        {**header, "shape": shape[:-1]},
        {**header, "shape": "x"},
        {**header, "more": 1},
        "__import__('os').getpid()",
        "(" * 200,
        "",
    ]
    k = int(stream.integers(len(wrong)))
    text = (str(wrong[k]).encode()[: size - 1]).ljust(size - 1) + b"\n"
    members[name] = inside[:10] + text + inside[10 + size :]
    return f"{name} as {str(wrong[k])[:60]}", _zipped([*members.items()])


def archive_strange(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """A name twice, names that lead out of the archive, other packings, members that are missing, swapped or bombs."""
    members = _members(content)
    names = [*members]
    name, other = (names[int(stream.integers(len(names)))] for _ in range(2))
    kept = [*members.items()]
    bomb = _array(np.zeros(4_000_000))
    without = [(n, inside) for n, inside in kept if n != name]
    found: list[tuple[str, bytes]] = [
        ("twice", _zipped([*kept, (name, members[other])])),
        ("traversal", _zipped([*without, ("../" * 4 + "tmp/" + name, members[name])])),
        ("absolute", _zipped([*without, ("/" + name, members[name])])),
        ("more", _zipped([*kept, ("../../outside.npy", members[name])])),
        ("gone", _zipped(without)),
        ("swapped", _zipped([(n, members[other if n == name else name if n == other else n]) for n in names])),
        ("bzip2", _zipped(kept, zipfile.ZIP_BZIP2)),
        ("lzma", _zipped(kept, zipfile.ZIP_LZMA)),
        ("bomb", _zipped([*without, (name, bomb)], zipfile.ZIP_DEFLATED)),
        ("lying bomb", _lying(_zipped([*without, (name, bomb)], zipfile.ZIP_DEFLATED), len(bomb))),
        ("empty", _zipped([])),
    ]
    k = int(stream.integers(len(found)))
    return f"{found[k][0]} {name}", found[k][1]


def _lying(content: bytes, size: int) -> bytes:
    """An archive whose member of that size declares a few bytes only."""
    return content.replace(struct.pack("<I", size), struct.pack("<I", 200))


def values_strange(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """Numbers that cannot be, in an archive that is whole."""
    members = _members(content)
    arrays = {name: np.lib.format.read_array(io.BytesIO(inside)) for name, inside in members.items()}
    numbers = [name for name, array in arrays.items() if array.dtype.kind == "f"]
    if not numbers:
        return "none", content
    name = str(stream.choice(numbers))
    array = arrays[name].copy()
    bad = float(stream.choice([np.nan, np.inf, -np.inf]))
    array.flat[int(stream.integers(array.size))] = bad
    return f"{bad} in {name}", _zipped([(n, _array(array) if n == name else i) for n, i in members.items()])


NPZ: list[Way] = [*ANY, member_replaced, member_misdeclared, archive_strange, values_strange]
