"""Members of zip files, which declare how large they are and need not tell the truth."""

from __future__ import annotations

import copy
import zipfile
from typing import IO

# zipfile limits what it inflates to what is asked for; what it gets by bzip2 or LZMA, only by what it reads, and that
# is 4 kB at least.
LIMITED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_STEP, _SMALL_STEP = 2**20, 2**12


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member to read from: up to one byte more than it declares, so that one that lies shows."""
    allowed = copy.copy(member)
    allowed.file_size += 1
    return archive.open(allowed)


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """All of a member, in memory. Raises ValueError where it is longer than it declares, or shorter."""
    blocks, size = [], 0
    step = _STEP if member.compress_type in LIMITED else _SMALL_STEP
    with open_member(archive, member) as file:
        while size <= member.file_size and (block := file.read(step)):
            blocks.append(block)
            size += len(block)
    if size != member.file_size:
        found = "more" if size > member.file_size else f"{size}"
        raise ValueError(f"it declares {member.file_size} bytes, but holds {found}")
    return b"".join(blocks)
