"""YAML of configs and flags as plain data; what would take for ever, or win in silence, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .. import checks
from ..errors import InputError
from ..files import regular_file

LARGEST = 1 << 18  # bytes of a config; people's have a few thousand
_MOST_NODES, _DEEPEST, _LARGEST_NUMBER = 20_000, 32, 2**128
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; InputError if it is anything else."""
    try:
        with regular_file(path, "config").open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"the config {path} could not be read: {error.strerror}; check the path.") from error
    checks.refuse(len(content) > LARGEST, f"the config {path} has more than {LARGEST} bytes; is it another file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the config {path} is not valid YAML (it is not UTF-8: {error}); mend it.") from error
    found = parse_yaml(text, f"the config {path}")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise InputError(
            f"the config {path} must be a mapping of option names to values, but it holds {type(found).__name__}."
        )
    return found


def parse_yaml(text: str, name: str) -> Any:
    """The plain data of a YAML text; InputError, which calls it `name`, where it has none."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except Exception as error:  # ValueError, KeyError and others too: constructors of numbers and dates trust the text
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is not valid YAML ({reason}); mend it.") from error


class _Loader(yaml.SafeLoader):
    """Plain data of bounded size, every alias counted as what it stands for; no key twice; dates are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 -- as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}  # of composed nodes, by their id

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias: bool = self.check_event(yaml.AliasEvent)
        before, mark = self._nodes, self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        self._refuse(self._depth > _DEEPEST, f"it is nested more than {_DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            self._refuse(id(node) not in self._sizes, "an alias stands within what it stands for", mark)
            self._nodes += self._sizes[id(node)]
        else:
            self._sizes[id(node)] = self._nodes - before
        self._refuse(self._nodes > _MOST_NODES, f"with its aliases it holds more than {_MOST_NODES} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            self._refuse(name in seen, f"the key {checks.brief(key.value)} stands twice", key.start_mark)
            seen.add(name)
        return node

    def construct_yaml_int(self, node: Any) -> int:
        number = super().construct_yaml_int(node)
        self._refuse(abs(number) > _LARGEST_NUMBER, "a whole number has too many digits", node.start_mark)
        return number

    def _refuse(self, wrong: bool, problem: str, mark: Any) -> None:
        if wrong:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
