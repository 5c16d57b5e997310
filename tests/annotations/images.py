"""Random sets of labelled images: tables, label images and folders, and what should be read from them."""

import csv
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kornia_mvit.training.datamodules import FolderData, SegmentationFolderData, TableData
from tests.annotations.cases import (
    NAMES,
    SPLIT_NAMES,
    STEMS,
    SUFFIXES,
    Case,
    put_mask,
    put_picture,
    put_text,
    size_of,
    some,
)

COLOURS = ((0, 0, 0), (255, 255, 255), (128, 0, 64), (1, 2, 3), (128, 128, 128), (255, 0, 0), (0, 0, 1), (64, 64, 64))


def _labels_of(data: Any, root: Path) -> dict[str, Any]:
    data.storage_size = 8
    data.setup()
    found: dict[str, Any] = {"names": list(data.class_names)}
    for split, files in data.splits.items():
        pairs = zip(files.files, files.labels, strict=True)
        found[split] = sorted((str(path.relative_to(root)), data.class_names[label]) for path, label in pairs)
    return found


# ------------------------------------------------------------------------------------------------------------- tables


def make_table(root: Path, rng: random.Random) -> Case:
    """Write a table with a column of splits, or one for each split."""
    numbers = rng.random() < 0.3
    names = [str(n) for n in range(rng.randint(2, 4))] if numbers else some(rng, NAMES, 3, 5)
    given = rng.sample(names, len(names)) if rng.random() < 0.4 else None
    single = rng.random() < 0.5
    splits = ["train", "val", *(["test"] if rng.random() < 0.4 else [])]
    suffix = rng.choice((".csv", ".tsv", ".jsonl", ".CSV"))
    expected: dict[str, Any] = {"names": given or sorted(names)}
    rows: dict[str, list[dict[str, Any]]] = {}
    stems = [f"{stem}-{n}" for n, stem in enumerate(rng.choices([*STEMS, 'q"x', "p, q"], k=30))]
    for split in splits:
        chosen = [*names, *rng.choices(names, k=3)] if split == "train" else rng.choices(names, k=3)
        word = rng.choice(SPLIT_NAMES[split])
        rows[split], expected[split] = [], []
        for name in chosen:
            path = f"{rng.choice(('', 'sub/'))}{stems.pop()}.{rng.choice(SUFFIXES)}"
            put_picture(root / path, (4, 4))
            label: Any = name
            if suffix == ".jsonl" and (numbers or given) and rng.random() < 0.4 and numbers:
                label = rng.choice((int, float))(name)
            rows[split].append({"path": path, "label": label, "split": word, "more": rng.choice(("", "x", 3))})
            expected[split].append((path, name))
        expected[split].sort()
    errors: tuple[str, ...] = ()
    if rng.random() < 0.2:
        row = rng.choice(rows["val"])
        key, value, said = rng.choice((("label", "unheard of", "'unheard of'"), ("path", "gone.png", "gone.png")))
        if rng.random() < 0.3:
            key, value, said = "label", " ", "label is empty"
        row[key], errors = value, (said,)
    columns = ["path", "label", "split", "more"]
    rng.shuffle(columns)
    files = {"all": [row for part in rows.values() for row in part]} if single else rows
    for name, part in files.items():
        put_text(root / f"{name}{suffix}", _table(part, columns, suffix), rng)
    if single:
        arguments = {"train": str(root / f"all{suffix}"), "split_column": "split"}
    else:
        arguments = {split: str(root / f"{split}{suffix}") for split in splits}
    return Case(lambda: _labels_of(TableData(**arguments, class_names=given, num_workers=0), root), expected, errors)


def _table(rows: list[dict[str, Any]], columns: list[str], suffix: str) -> str:
    if suffix == ".jsonl":
        return "\n".join(json.dumps({key: row[key] for key in columns}) for row in rows) + "\n"
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


# -------------------------------------------------------------------------------------------------------------- masks


@dataclass
class _Palette:
    """How classes are written into label images.

    Args:
        kind: by numbers, by colours of a file of classes, or by grey values.
        values: of the classes, where they are no colours.
        colours: of the classes.
        ignored: number of the pixels to ignore.
        void: their colour, if they have one.
        greys: whether all classes have greys.
    """

    kind: str
    values: list[int]
    colours: list[tuple[int, ...]]
    ignored: int
    void: tuple[int, ...] | None
    greys: bool

    def write(self, path: Path, truth: np.ndarray, lost: np.ndarray, rng: random.Random, *, wrong: bool) -> None:
        """Write a label image; one that is wrong has a value of no class."""
        if self.kind == "colours":
            table = np.array(self.colours, dtype=np.uint8)
            shown = np.where(lost[..., None], np.array(self.void or (0, 0, 0), dtype=np.uint8), table[truth])
            mode = rng.choice(("RGB", "RGBA", *(("L", "LA") if self.greys else ())))
        else:
            shown = np.where(lost, self.ignored, np.array(self.values)[truth]).astype(np.uint8)
            mode = "L" if self.kind == "values" else rng.choice(("L", "L", "P", "I;16"))
            if wrong:
                shown[0, 0] = 77
        put_mask(path, shown.astype(np.uint16) if mode == "I;16" else shown, mode)


def make_masks(root: Path, rng: random.Random) -> Case:
    """Write images and label images of numbers, of colours, or of other grey values."""
    count = rng.randint(2, 5)
    names, palette, arguments = _draw_palette(root, rng, count)
    expected: dict[str, Any] = {"names": names}
    wrong = rng.random() < 0.1 and palette.kind != "colours"
    errors: tuple[str, ...] = ("77",) if wrong else ()
    for split in ("train", "val"):
        folder = rng.choice(SPLIT_NAMES[split])
        expected[split] = []
        prefixed = (f"{prefix}{stem}" for prefix, stem in zip("abc", rng.sample(STEMS, 3), strict=True))
        few = rng.random() < 0.15  # one class, and what is ignored
        for stem in sorted(prefixed)[: rng.randint(1, 3)]:
            width, height = size_of(rng)
            cells = range(width * height)
            truth = np.array([0 if few else rng.randrange(count) for _ in cells]).reshape(height, width)
            lost = np.array([rng.random() < 0.25 for _ in cells]).reshape(height, width)
            lost &= palette.kind == "numbers" or palette.void is not None
            put_picture(root / folder / f"{stem}.{rng.choice(SUFFIXES)}", (width, height))
            palette.write(root / f"{folder}_labels" / f"{stem}.png", truth, lost, rng, wrong=wrong and split == "val")
            expected[split].append((stem, np.where(lost, palette.ignored, truth).tolist()))
        pixels = {value for _, rows in expected[split] for row in rows for value in row}
        there = pixels - {palette.ignored}
        if not there:
            errors = errors or (f"label images of {split}", "no labelled pixel")
        elif split == "train" and len(there) == 1 and palette.ignored in pixels:
            errors = ("label images of train", f"of the {count} classes")
    return Case(lambda: _masks_of(SegmentationFolderData(str(root), num_workers=0, **arguments)), expected, errors)


def _draw_palette(root: Path, rng: random.Random, count: int) -> tuple[list[str], _Palette, dict[str, Any]]:
    """Draw names of classes, how they are written, and the arguments that say so."""
    kind = rng.choice(("numbers", "colours", "values"))
    greys = kind == "values" or rng.random() < 0.3
    names: list[str] = rng.sample(NAMES, count)
    arguments: dict[str, Any] = {"ignore_index": rng.choice((255, 255, 250))}
    values = rng.sample([0, 255, 128, 64, 200, 1], count) if kind == "values" else list(range(count))
    colours: list[tuple[int, ...]] = [*rng.sample(COLOURS, count)]
    void = None
    if greys:
        colours = [(value,) * 3 for value in rng.sample([0, 255, 128, 64, 200, 1], count)]
    if kind == "values":
        named = rng.random() < 0.5
        arguments |= {"values": values} | ({"class_names": names} if named else {})
        names = names if named else [str(value) for value in values]
    elif kind == "numbers":
        arguments["class_names"] = names
    else:
        arguments["classes"] = str(root / "classes.json")
        void = (9, 9, 9) if rng.random() < 0.5 else None
        data = {"classes": [{"name": n, "color": list(c)} for n, c in zip(names, colours, strict=True)]}
        put_text(root / "classes.json", json.dumps(data | ({"ignore": [list(void)]} if void else {})), rng)
    return names, _Palette(kind, values, colours, arguments["ignore_index"], void, greys), arguments


def _masks_of(data: Any) -> dict[str, Any]:
    data.setup()
    found: dict[str, Any] = {"names": list(data.class_names)}
    for split, files in data.splits.items():
        samples = [files[n] for n in range(len(files))]
        found[split] = [(Path(one["meta"]["path"]).stem, one["mask"].tolist()) for one in samples]
    return found


# ------------------------------------------------------------------------------------------------------------ folders


def make_folders(root: Path, rng: random.Random) -> Case:
    """Write a folder for each class, with what else lies in such folders."""
    names = some(rng, NAMES, 2, 4)
    splits = ["train", "val", *(["test"] if rng.random() < 0.4 else [])]
    whole = rng.random() < 0.25
    expected: dict[str, Any] = {"names": sorted(names)}
    folders = {split: "" if whole else rng.choice(SPLIT_NAMES[split]) for split in splits}
    for split in splits[:1] if whole else splits:
        expected[split] = sorted(pair for name in names for pair in _fill(root, Path(folders[split]), name, rng))
    errors: tuple[str, ...] = ()
    match rng.randrange(10):
        case 0 if not whole:
            again = rng.choice([name for name in ("valid", "validation", "val") if name != folders["val"]])
            _fill(root, Path(again), names[0], rng)
            errors = (f"{again}", "both stand for val")
        case 1 if not whole:
            put_picture(root / folders["val"] / "a.new class" / "0.png", (4, 4))
            errors = ("differ in the classes a.new class",)
        case 2:
            (root / folders["train"] / "empty").mkdir()
            errors = ("no image in", "empty")
        case 3 if not whole and "test" not in splits:
            put_picture(root / "test" / "0.png", (4, 4))  # without labels
        case 4 if not whole:
            put_picture(root / "notes" / "0.png", (4, 4))
        case 5:
            put_picture(root / ".cache" / "0.png", (4, 4))
            put_text(root / "README.md", "photos", rng)
    return Case(lambda: _folders_of(root, whole), expected, errors)


def _fill(root: Path, folder: Path, name: str, rng: random.Random) -> list[tuple[str, str]]:
    """Write a class's images, and give their paths; what is hidden or no image is not among them."""
    place = root / folder / name
    stems = [f"{n}{stem}" for n, stem in enumerate(rng.choices(STEMS, k=rng.randint(2, 4)))]
    paths = [f"{rng.choice(('', '', 'sub/deep/'))}{stem}.{rng.choice(SUFFIXES)}" for stem in stems]
    for path in paths:
        put_picture(place / path, (4, 4))
    match rng.randrange(6):
        case 0:
            put_picture(place / ".ipynb_checkpoints" / "0-checkpoint.png", (4, 4))
        case 1:
            put_text(place / "._0.png", "no image", rng)
            put_text(place / "Thumbs.db", "no image", rng)
        case 2:
            far = root.parent / f"far-{rng.random()}"
            put_picture(far / "9.JPG", (4, 4))
            (place / "link").symlink_to(far)
            (place / "back").symlink_to(root)
            paths.append("link/9.JPG")
        case 3:
            put_text(place / "about.txt", "photos", rng)
    return [(str(folder / name / path), name) for path in paths]


def _folders_of(root: Path, whole: bool) -> dict[str, Any]:
    data = FolderData(str(root), num_workers=0)
    found = _labels_of(data, root)
    if whole:
        found["train"] = sorted(found["train"] + found.pop("val"))
    return found
