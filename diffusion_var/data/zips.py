"""Members of zip files, which declare how large they are and need not tell the truth."""

from __future__ import annotations

import copy
import zipfile
from typing import IO

_STEP = 2**20


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member to read from: up to one byte more than it declares, so that one that lies shows.

    Raises ValueError for other packings than deflate: Python undoes them in pieces of any size, a million to one.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"it is packed by method {member.compress_type}, where only deflate (8) or none (0) is read")
    allowed = copy.copy(member)
    allowed.file_size += 1
    return archive.open(allowed)


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """All of a member, in memory. Raises ValueError where it is longer than it declares, or shorter."""
    blocks, size = [], 0
    with open_member(archive, member) as file:
        while size <= member.file_size and (block := file.read(_STEP)):
            blocks.append(block)
            size += len(block)
    if size != member.file_size:
        found = "more" if size > member.file_size else f"{size}"
        raise ValueError(f"it declares {member.file_size} bytes, but holds {found}")
    return b"".join(blocks)
