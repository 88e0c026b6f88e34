"""safetensors files, damaged: headers that were edited with their length kept right, and the text within them."""

from __future__ import annotations

import json
import struct
from typing import Any

from damaged_bytes import ANY, HUGE, WRONG, Stream, Way

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X9", "", "f32")


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _joined(text: str, data: bytes) -> bytes:
    header = text.encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


def header_edited(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """One thing of one tensor; the header's length is right."""
    header, data = _split(content)
    names = [name for name in header if name != "__metadata__"]
    name, other = (names[int(stream.integers(len(names)))] for _ in range(2))
    entry = header[name]
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    thing = str(stream.choice(["dtype", "shape", "data_offsets", "name", "gone", "more"]))
    if thing == "dtype":
        entry[thing] = str(stream.choice(DTYPES))
    elif thing == "shape":
        k, huge = int(stream.integers(len(shape) + 1)), int(stream.choice(HUGE[:3]))
        changed = [shape[::-1], [*shape, 1], shape[1:], [*shape[:k], huge, *shape[k:]], [-1, *shape], [2**62, 4, 0]]
        entry[thing] = [*changed, [*shape[:k], 0, *shape[k:]]][int(stream.integers(7))]
    elif thing == "data_offsets":
        size = end - begin
        moves = [[end, begin], [begin + 1, end], [begin, end - 1], [0, size], header[other]["data_offsets"]]
        entry[thing] = [*moves, [-size, 0], [begin, 2**63], [len(data), len(data) + size], [begin]][
            int(stream.integers(9))
        ]
    elif thing == "name":
        header[str(stream.choice(["", "../" + name, name + "\0", name.upper(), "data.x", "__metadata__ "]))] = entry
        del header[name]
    elif thing == "gone":
        del header[name]
    else:
        header["something"] = {"dtype": "F32", "shape": [0], "data_offsets": [begin, begin]}
    return f"{thing} of {name}", _joined(json.dumps(header), data)


def header_mistyped(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """A value of a wrong type somewhere, or text that no library writes."""
    header, data = _split(content)
    keys = list(header)
    name = keys[int(stream.integers(len(keys)))]
    wrong = WRONG[int(stream.integers(len(WRONG)))]
    where = int(stream.integers(3))
    if where == 0:
        header[name] = wrong
    elif where == 1:
        inner = str(stream.choice(list(header[name])))
        header[name][inner] = wrong
    elif isinstance(header[name].get("shape"), list):
        header[name]["shape"] = [wrong]
    return f"{name} with {str(wrong)[:20]}", _joined(json.dumps(header), data)


def header_twice(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """A key that stands twice: of a tensor, of the metadata, or within them."""
    header, data = _split(content)
    keys = list(header)
    name, other = (keys[int(stream.integers(len(keys)))] for _ in range(2))
    text = json.dumps(header)
    extra = f"{json.dumps(name)}: {json.dumps(header[other])}"
    text = f"{{{extra}, {text[1:]}" if stream.random() < 0.5 else f"{text[:-1]}, {extra}}}"
    return f"{name} as {other}", _joined(text, data)


def header_strange(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """A header that nests without end, is no mapping, or has a length that is not its own."""
    header, data = _split(content)
    text = json.dumps(header)
    deep = "[" * 100_000 + "]" * 100_000
    texts = [
        "null",
        "[]",
        "{}",
        '"x"',
        "",
        deep,
        '{"a":' * 20_000 + "1" + "}" * 20_000,
        f'{text[:-1]}, "deep": {deep}}}',
    ]
    k = int(stream.integers(len(texts) + 4))
    if k < len(texts):
        return str(k), _joined(texts[k], data)
    size = [0, len(text) // 2, 2**40, 2**63][k - len(texts)]
    return f"of {size} bytes", struct.pack("<Q", size) + content[8:]


SAFETENSORS: list[Way] = [*ANY, header_edited, header_edited, header_mistyped, header_twice, header_strange]


def metadata_edited(content: bytes, stream: Stream) -> tuple[str, bytes]:
    """The JSON text within the header: a key twice, numbers written otherwise, other values; the checksum is as it
    was."""
    header, data = _split(content)
    text = header["__metadata__"]["diffusion_var"]
    inner = json.loads(text)
    keys = list(inner)
    key = keys[int(stream.integers(len(keys)))]
    way = int(stream.integers(5))
    wrong = json.dumps(WRONG[int(stream.integers(len(WRONG)))])
    extra = f"{json.dumps(key)}: {wrong}"
    if way == 0:
        text = f"{text[:-1]}, {extra}}}"
    elif way == 1:
        text = f"{{{extra}, {text[1:]}"
    elif way == 2:
        text = json.dumps({**inner, key: json.loads(wrong)})
    elif way == 3:
        text = json.dumps(inner, indent=1, sort_keys=False)
    else:
        text = json.dumps({name: value for name, value in inner.items() if name != key})
    header["__metadata__"]["diffusion_var"] = text
    return f"{way} {key} {wrong[:20]}", _joined(json.dumps(header), data)


DOCUMENT: list[Way] = [*SAFETENSORS, metadata_edited, metadata_edited]
