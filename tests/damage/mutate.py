"""Damage of files: of their bytes, of zip archives, and of what JSON, YAML, XML and pickles hold."""

import copy
import io
import json
import random
import struct
import zipfile
from typing import Any

import torch

GADGETS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    5,
    2**31,
    2**63,
    10**10,
    -(10**30),
    10**400,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "\x1b[2J",
    "\ud800",
    "two\nlines",
    "x" * 5000,
    "../" * 100,
    "9" * 5000,
    [],
    {},
    [[]],
    [None] * 3,
    {"": None},
    {"a": {"a": {"a": {}}}},
]


def mutate_bytes(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Return bytes with one to four pieces of damage."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(out) + 1)
        length = min(len(out) - place, rng.choice((1, 2, 4, 8, 32, 200)))
        match rng.randrange(9):
            case 0 | 1 if out:
                at = min(place, len(out) - 1)
                out[at] ^= 1 << rng.randrange(8)
            case 2 if out:
                out[min(place, len(out) - 1)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 3:
                del out[place:]
            case 4:
                del out[place : place + length]
            case 5:
                out[place:place] = out[place : place + length] * rng.choice((1, 2, 50))
            case 6:
                out[place:place] = rng.randbytes(length)
            case 7:
                start = rng.randrange(len(other) + 1)
                out[place : place + length] = other[start : start + length]
            case 8:
                number = rng.choice((0, 1, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1))
                width = rng.choice("BHIQ")
                packed = struct.pack(rng.choice("<>") + width, number & (1 << 8 * struct.calcsize(width)) - 1)
                out[place : place + len(packed)] = packed
    return bytes(out)


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Return an archive that is whole and holds something else, or is packed in another way."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = rng.randrange(len(entries))
    name, content = entries[place]
    method = zipfile.ZIP_STORED
    match rng.randrange(6):
        case 0:
            method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        case 1:
            del entries[place]
        case 2:
            entries[place] = (rng.choice(("archive/data.pkl", "../x", "archive/constants.pkl", "x" * 300)), content)
        case 3:
            entries[place] = (name, rng.choice((b"", content[: len(content) // 2], content * 3)))
        case _:  # what is unpickled, mostly
            place = next((n for n, (key, _) in enumerate(entries) if key.endswith("data.pkl")), 0)
            entries[place] = (entries[place][0], mutate_bytes(entries[place][1], rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for key in dict.fromkeys(key for key, _ in entries):
            archive.writestr(key, dict(entries)[key])
    return out.getvalue()


def odd_tensor(rng: random.Random) -> torch.Tensor:
    """Return a tensor that no checkpoint has as a weight."""
    return rng.choice(
        (
            lambda: torch.tensor(1.0),
            lambda: torch.empty(0),
            lambda: torch.full((4, 4), torch.nan),
            lambda: torch.ones(1).expand(10**6, 10**6),
            lambda: torch.ones(4, 4).to_sparse(),
            lambda: torch.empty(10**6, 10**6, device="meta"),
            lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
            lambda: torch.ones(4, dtype=torch.complex64),
            lambda: torch.ones(2, 0, 4),
            lambda: torch.zeros(3, dtype=torch.bool),
        )
    )()


def mutate_tree(value: Any, rng: random.Random, gadgets: list[Any] = GADGETS) -> Any:
    """Return plain data in which a part, or two, are others, missing, or named otherwise."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        value = _mutate_part(value, rng, gadgets)
    return value


def _mutate_part(value: Any, rng: random.Random, gadgets: list[Any]) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        match rng.randrange(12):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[rng.choice((str(key)[:-1], "x" * 5000, "", "\ud800", f"{key}x"))] = value.pop(key)
            case 1:
                value.insert(key, copy.deepcopy(value[key]))
            case _:
                value[key] = _mutate_part(value[key], rng, gadgets)
        return value
    if isinstance(value, torch.Tensor):
        pick = rng.randrange(5)
        if pick == 0:
            return rng.choice(gadgets)
        if pick == 1 or value.layout != torch.strided or not value.ndim or value.is_quantized:
            return odd_tensor(rng)
        return (value.reshape(-1), value[..., :1], value.int())[pick - 2]
    return copy.deepcopy(rng.choice(gadgets))


def safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file whose header says something else, and is as long as it says."""
    (length,) = struct.unpack("<Q", data[:8])
    header = mutate_tree(json.loads(data[8 : 8 + length]), rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


YAML_BOMBS = [
    "a: &a ["
    + ", ".join(["x"] * 9)
    + "]\n"
    + "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
    "a: &a [*a]\n",
    "&a {classes: *a}\n",
    "a: &a {x: 1, y: 2}\n"
    + "".join(f"{n}: &{n} {{<<: [{', '.join([f'*{p}'] * 9)}]}}\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
    "[" * 2000 + "]" * 2000,
    "- " * 400 + "x",
    "a: !!python/object/apply:os.system [true]\n",
    "names: !!binary x\n",
    "a: !!timestamp x\n",
    "a: !!int ''\n",
    "a: !!bool x\n",
    "a: !!float x\n",
    "a: 2020-99-99\n",
    "a: 0x" + "f" * 6000 + "\n",
    "a: " + "9" * 6000 + "\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "!!set {a, b}\n",
    "!!omap [a: b]\n",
    "a: b\n---\nc: d\n",
    "%YAML 9.9\n---\na: b\n",
    "a: \x07\n",
]
