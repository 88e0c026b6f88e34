"""Files damaged at random, each in the ways of its form.

Each mutant is drawn by a stream, so that its number says what it is. A reader must refuse it, or find in it exactly
what the whole file says.
"""

from __future__ import annotations

import json

from damaged_archives import NPZ
from damaged_bytes import ANY, WRONG, Stream, Way
from damaged_headers import DOCUMENT, SAFETENSORS


def json_strange(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """JSON with a key twice, nested without end, or with a value of a wrong type somewhere."""
    text = content.decode()
    held = json.loads(text)
    keys = list(held)
    key, other = (keys[int(stream.integers(len(keys)))] for _ in range(2))
    wrong = json.dumps(WRONG[int(stream.integers(len(WRONG)))])
    deep = "[" * 100_000
    texts = [
        f"{{{json.dumps(key)}: {json.dumps(held[other])}, {text.strip()[1:]}",
        f"{text.strip()[:-1]}, {json.dumps(key)}: {wrong}}}",
        json.dumps({**held, key: json.loads(wrong)}),
        f"{{{json.dumps(key)}: {deep}",
        json.dumps({k: v for k, v in held.items() if k != key}),
        json.dumps({**held, "../" + key: held[key]}),
        wrong,
    ]
    k = int(stream.integers(len(texts)))
    return f"{k} {key} {wrong[:20]}", texts[k].encode()


def yaml_strange(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """YAML with bombs of aliases, tags of Python, keys twice, nested without end, and values of wrong types."""
    lines = content.decode().splitlines(keepends=True)
    line = int(stream.integers(len(lines)))
    key = lines[line].partition(":")[0]
    wrong = str(stream.choice(["[]", "{}", "null", "-1", "1e999", ".nan", "x", "'7'", "9" * 5000, "true", "[[1]]"]))
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    whole = content.decode()
    texts = [
        "".join([*lines[:line], f"{key}: {wrong}\n", *lines[line + 1 :]]),
        "".join([*lines, lines[line]]),
        bomb + whole,
        f"{whole}{key}x: !!python/object/apply:os.getpid []\n",
        f"{whole}methods: {'[' * 100_000}\n",
        f"{whole}? {{a: 1}}\n: 2\n",
        f"&a {{<<: *a, {key}: {wrong}}}\n",
        f"{whole}no_such_option: {wrong}\n",
        f"{whole}---\n{whole}",
        whole.replace(":", ":\t", 1),
    ]
    k = int(stream.integers(len(texts)))
    return f"{k} {key} {wrong[:20]}", texts[k].encode()


def lines_strange(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """A text of lines: one gone, twice, moved, with a name that leads out of the folder, or without its end."""
    lines = content.decode().splitlines(keepends=True)
    k, j = (int(stream.integers(len(lines))) for _ in range(2))
    name = lines[k].rpartition(" ")[2].strip()
    texts = [
        [*lines[:k], *lines[k + 1 :]],
        [*lines, lines[k]],
        [*lines[:k], lines[j], *lines[k + 1 :]],
        [*lines[:k], lines[k].replace(name, "../" + name), *lines[k + 1 :]],
        [*lines[:k], lines[k].replace(name, "/etc/hostname"), *lines[k + 1 :]],
        [*lines, f"{'0' * 64}  ../outside\n"],
        [*lines, "9" * 100_000],
        [*lines[:k], lines[k].upper(), *lines[k + 1 :]],
    ]
    way = int(stream.integers(len(texts)))
    return f"{way} line {k}", "".join(texts[way]).encode()


WAYS: dict[str, list[Way]] = {
    "any": ANY,
    "document": DOCUMENT,
    "safetensors": SAFETENSORS,
    "npz": NPZ,
    "json": [*ANY, json_strange, json_strange, json_strange],
    "yaml": [*ANY, yaml_strange, yaml_strange, yaml_strange],
    "lines": [*ANY, lines_strange, lines_strange],
}


def damaged(form: str, content: bytes, stream: Stream) -> tuple[str, bytes]:
    """The name and the bytes of a mutant of a file, in one of the ways of its form; never the file itself."""
    ways = WAYS[form]
    while True:
        way = ways[int(stream.integers(len(ways)))]
        name, changed = way(content, stream)
        if changed != content:
            return f"{way.__name__.strip('_')} {name}", changed
