"""Bytes from every process of a shared work to the others, or to the first, by a group of gloo's.

torch waits deaf to signals and to what is known of the others (`peers`); here what it does is begun, and looked at
until it is done. What had to be given up, torch may still write into, and it is held on to: to free it would wait for
processes that are gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PIECE = 4 << 20  # bytes of each process at once
_SECONDS = 300.0  # that one transfer may take, once all have come
_held: list[Any] = []  # what was given up


class Exchange:
    """The exchanges of one work, seen from process `rank` of `count`.

    Args:
        failed: what has ended the work, if anything did; raised while something is waited for.
    """

    def __init__(self, rank: int, count: int, failed: Callable[[], Exception | None]) -> None:
        self.rank, self.count, self._failed = rank, count, failed
        self._made: Any = None

    def numbers(self, own: Sequence[int]) -> list[list[int]]:
        """Everybody's whole numbers, as many of each, by rank."""
        import torch

        found = [torch.zeros(len(own), dtype=torch.int64) for _ in range(self.count)]
        self._all_gather(found, torch.tensor(own))
        return [numbers.tolist() for numbers in found]

    def contents(self, mine: bytes, sizes: Sequence[int], to_first: bool = False) -> list[bytes]:
        """Everybody's bytes, of these sizes, by rank; with `to_first` the first process alone gets them, and the others
        an empty list."""
        import torch
        from torch import distributed

        parts, receives = [bytearray() for _ in sizes], not to_first or self.rank == 0
        longest = sizes.index(max(sizes))
        common = max((size for r, size in enumerate(sizes) if r != longest), default=0)
        for start in range(0, common, PIECE):
            width = min(PIECE, common - start)
            pieces = [torch.empty(width, dtype=torch.uint8) for _ in sizes] if receives else []
            own = _padded(mine[start : start + width], width)
            self._gather(pieces, own) if to_first else self._all_gather(pieces, own)
            for part, found, size in zip(parts, pieces, sizes, strict=receives):
                part += found.numpy()[: max(size - start, 0)].tobytes()
        # What one process alone has more than the others (the first's checkpoint), it alone sends, if anybody needs it.
        if to_first and longest == 0:
            parts[0] = bytearray(mine)
        else:
            for start in range(common, sizes[longest], PIECE):
                width = min(PIECE, sizes[longest] - start)
                piece = _padded(mine[start : start + width] if self.rank == longest else b"", width)
                self._finish(distributed.broadcast(piece, longest, group=self._group, async_op=True), piece)
                parts[longest] += piece.numpy().tobytes() if receives else b""
        return [bytes(part) for part in parts] if receives else []

    def close(self, well: bool) -> None:
        """The work is over, well or not."""
        if self._made is None:
            return
        if well:
            from torch import distributed

            distributed.destroy_process_group(self._made)
        else:
            _held.append(self._made)

    # ---- what torch does --------------------------------------------------------------------------------------

    @property
    def _group(self) -> Any:
        """gloo's group of all processes. Its making waits for them inside of torch: so a thread makes it."""
        if self._made is None:
            from torch import distributed

            made: Future[Any] = Future()

            def make() -> None:
                try:
                    made.set_result(distributed.new_group(backend="gloo", timeout=timedelta(seconds=_SECONDS)))
                except BaseException as error:
                    made.set_exception(error)

            maker = threading.Thread(target=make, name="diffusion_var group", daemon=True)
            maker.start()
            self._until(made.done, maker)
            self._made = made.result()
        return self._made

    def _all_gather(self, found: list[torch.Tensor], mine: torch.Tensor) -> None:
        from torch import distributed

        self._finish(distributed.all_gather(found, mine, group=self._group, async_op=True), found, mine)

    def _gather(self, found: list[torch.Tensor], mine: torch.Tensor) -> None:
        from torch import distributed

        into = found if self.rank == 0 else None
        self._finish(distributed.gather(mine, into, group=self._group, dst=0, async_op=True), found, mine)

    def _finish(self, work: Any, *tensors: Any) -> None:
        self._until(work.is_completed, work, tensors)
        try:
            work.wait()
        except BaseException:
            _held.append((work, tensors))
            raise

    def _until(self, done: Callable[[], bool], *held: Any) -> None:
        pause = 5e-5
        try:
            while not done():
                if (failed := self._failed()) is not None:
                    raise failed
                time.sleep(pause)
                pause = min(2 * pause, 5e-3)
        except BaseException:
            _held.append(held)
            raise


def _padded(content: bytes, width: int) -> torch.Tensor:
    """(width,) bytes, zeros at the end."""
    import torch

    return torch.frombuffer(bytearray(content.ljust(width, b"\0")), dtype=torch.uint8)
