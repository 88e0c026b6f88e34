"""Where the outputs of commands go, looked at before the work."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..files import expanded, require_writable_folder


def require_writable(folder: Path) -> Path:
    """A folder to be, refused where the one that it would be made in cannot be written to."""
    present = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not present.is_dir():
        raise InputError(f"the output {folder} lies below {present}, which is a file; choose another path.")
    require_writable_folder(present)
    return folder


def checkpoint_beside(out: Path, chosen: Path | None) -> Path:
    """The checkpoint of an output: the one chosen, or OUT.partial."""
    checkpoint = expanded(chosen or out.with_name(out.name + ".partial"))
    if checkpoint.resolve() == out.resolve():
        raise InputError(f"checkpoint= and out= are both {out}, but they are two files; choose another checkpoint=.")
    return usable_checkpoint(checkpoint)


def usable_checkpoint(checkpoint: Path) -> Path:
    """A checkpoint, refused where no file can be written."""
    if checkpoint.is_dir():
        raise InputError(f"the checkpoint {checkpoint} is a folder, but a file is needed; add a file name.")
    require_writable_folder(checkpoint.parent)
    return checkpoint
