"""The finished cells of a script's grid, in a file: what is there is not made again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Generic, TypeVar

C = TypeVar("C")
F = TypeVar("F")


class Kept(Generic[C, F]):
    """Cells and what was found of them, dataclasses of plain data, a JSON line each."""

    def __init__(self, path: Path, cell: type[C], found: type[F]) -> None:
        self.path, self.cells = path, dict[C, F]()
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.cells[cell(**entry["cell"])] = found(**entry["found"])

    def add(self, cell: C, found: F) -> None:
        self.cells[cell] = found
        with self.path.open("a") as file:
            file.write(json.dumps({"cell": asdict(cell), "found": asdict(found)}, ensure_ascii=False) + "\n")  # type: ignore[call-overload]
