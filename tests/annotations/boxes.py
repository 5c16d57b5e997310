"""Random sets of images with boxes: Pascal VOC, COCO and YOLO, and what should be read from them."""

import json
import random
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from kornia_mvit.training.datamodules import COCOData, VOCData, YOLOData
from tests.annotations.cases import (
    NAMES,
    SPLIT_NAMES,
    STEMS,
    SUFFIXES,
    Boxes,
    Case,
    boxes_of,
    draw_box,
    put_picture,
    put_text,
    size_of,
    some,
)


def _finish(case: Case, images: dict[str, list[Boxes]]) -> Case:
    """Expect an error where train or val keeps no box that counts."""
    for split in ("train", "val"):
        if not case.errors and not any(boxes.counts for boxes in images[split]):
            case.errors = (f"no box for {split}",)
    return case


# --------------------------------------------------------------------------------------------------------------- VOC


def make_voc(root: Path, rng: random.Random) -> Case:
    """Write a set in VOC's layout."""
    names = some(rng, NAMES, 1, 4)
    given = sorted(names) if rng.random() < 0.6 else None
    stems = some(rng, STEMS, 2, 5)
    origin = rng.choice((1, 1, 0))
    boxes: dict[str, Boxes] = {}
    seen: dict[str, set[str]] = {}
    rows: dict[str, list[tuple[str, list[float], bool]]] = {}
    paths: dict[str, str] = {}
    for stem in stems:
        size = size_of(rng)
        suffix = rng.choice(SUFFIXES)
        put_picture(root / "JPEGImages" / f"{stem}.{suffix}", size)
        paths[stem], boxes[stem] = f"{stem}.{suffix}", Boxes(size)
        rows[stem] = [
            (rng.choice([*names, "other"]), [float(int(v)) for v in draw_box(rng, size)], rng.random() < 0.2)
            for _ in range(rng.randint(1, 6))
        ]
        seen[stem] = {name for name, _, _ in rows[stem]}
        objects = "".join(_voc_object(rng, *row, origin) for row in rows[stem])
        told = "<size><width>{}</width><height>{}</height><depth>3</depth></size>".format(*size)
        told = rng.choice((told, told, "", "<size><width>0</width><height>0</height></size>"))
        put_text(
            root / "Annotations" / f"{stem}.{rng.choice(('xml', 'xml', 'XML'))}",
            f"<annotation>{told}{objects}</annotation>\n",
            rng,
        )
    splits = {split: rng.sample(stems, rng.randint(1, len(stems))) for split in ("train", "val")}
    tested = rng.random() < 0.4
    lost = tested and rng.random() < 0.4
    if tested:
        splits["test"] = rng.sample(stems, rng.randint(1, len(stems)))
    for split, part in splits.items():
        lines = [_list_line(rng, stem, stems) for stem in part] + (["lost"] if lost and split == "test" else [])
        put_text(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(lines) + "\n" * rng.randrange(3), rng)
    if lost:
        del splits["test"]
    known = given or sorted(set().union(*(seen[stem] for stem in splits["train"])))
    used = {stem for part in splits.values() for stem in part}
    for stem in used:
        for name, (left, top, right, bottom), difficult in rows[stem]:
            # The last pixel is named: where it is the first, nothing was boxed.
            whole = [left, top, right + 1, bottom + 1] if right > left and bottom > top else [0.0, 0, 0, 0]
            boxes[stem].add(whole, known.index(name) if name in known else None, ignore=difficult)
    expected: dict[str, Any] = {"names": known, "left out": sum(boxes[stem].left_out for stem in used)}
    expected |= {split: [boxes[stem].told(paths[stem]) for stem in part] for split, part in splits.items()}
    case = Case(lambda: boxes_of(VOCData(str(root), num_workers=0, class_names=given, origin=origin)), expected)
    if not known:
        case.errors = ("no object is annotated",)
    return _finish(case, {split: [boxes[stem] for stem in part] for split, part in splits.items()})


def _voc_object(rng: random.Random, name: str, box: list[float], difficult: bool, origin: int) -> str:
    values = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    form = rng.choice(("{:.0f}", "{:.1f}", " {:.0f}\n"))
    inner = "".join(f"<{key}>{form.format(value + origin)}</{key}>" for key, value in values)
    told = f"<difficult>{int(difficult)}</difficult>" if difficult or rng.random() < 0.5 else ""
    return f"<object><name>{escape(name)}</name>{told}<bndbox>{inner}</bndbox></object>\n"


def _list_line(rng: random.Random, stem: str, stems: list[str]) -> str:
    line = rng.choice((stem, stem, f"{stem}  1", f"{stem} -1", f" {stem} "))
    return stem if line.strip() != stem and line in stems else line


# -------------------------------------------------------------------------------------------------------------- COCO


def make_coco(root: Path, rng: random.Random) -> Case:
    """Write a set in COCO's layout."""
    shift = rng.choice((0, 1, 100, 2**40, 2**70))
    form = rng.choice((int, int, int, str, float, "{}.0".format)) if shift < 2**50 else rng.choice((int, int, str))
    names = [rng.choice(NAMES[:4] if rng.random() < 0.3 else NAMES) for _ in range(rng.randint(1, 4))]
    numbers = rng.sample(range(shift, shift + 9), len(names))
    categories = [{"id": form(n), "name": name} for n, name in zip(numbers, names, strict=True)]
    order = sorted(numbers)
    twice = {name for name in names if names.count(name) > 1}
    told = [
        f"{name} ({number})" if name in twice else name for number, name in sorted(zip(numbers, names, strict=True))
    ]
    expected: dict[str, Any] = {"names": told, "left out": 0}
    images: dict[str, list[Boxes]] = {}
    for split in ("train", "val"):
        stems = some(rng, STEMS, 1, 3)
        files = [f"{stem}.{rng.choice(SUFFIXES)}" for stem in stems]
        ids = rng.sample(range(shift, shift + 50), len(stems))
        images[split] = [Boxes(size_of(rng)) for _ in stems]
        entries, items = [], []
        for file, number, boxes in zip(files, ids, images[split], strict=True):
            put_picture(root / split / file, boxes.size)
            sides = dict(zip(("width", "height"), map(form, boxes.size), strict=True))
            entries.append({"id": form(number), "file_name": file} | (sides if rng.random() < 0.8 else {}))
        lost = 0
        for count in range(rng.randint(3, 9)):
            place = rng.randrange(len(stems))
            box = draw_box(rng, images[split][place].size)
            number, crowd = rng.choice([*numbers, shift + 99]), rng.random() < 0.2
            image = ids[place] if rng.random() < 0.95 else shift + 77
            item = _coco_item(rng, form, image, number, box, crowd) | {"id": count}
            whole = rng.random() < 0.95
            if not whole:
                item["bbox"] = rng.choice((None, [1, 2, 3], [1, 2, "wide", 4], {}))
            if image == shift + 77:
                lost += 1
            else:
                images[split][place].add(
                    box, order.index(number) if number in order else None, ignore=crowd, known=whole
                )
            items.append(item)
        rng.shuffle(categories)
        data = {"images": entries, "annotations": items, "categories": categories, "info": {}}
        put_text(root / f"{split}.json", json.dumps(data, ensure_ascii=rng.random() < 0.5), rng)
        expected["left out"] += lost + sum(boxes.left_out for boxes in images[split])
        expected[split] = [boxes.told(file) for file, boxes in zip(files, images[split], strict=True)]
    arguments = {
        f"{split}_{what}": value for split in images for what, value in (("file", f"{split}.json"), ("images", split))
    }
    return _finish(Case(lambda: boxes_of(COCOData(str(root), num_workers=0, **arguments)), expected), images)


def _coco_item(
    rng: random.Random, form: Any, image: int, category: int, box: list[float], crowd: bool
) -> dict[str, Any]:
    left, top, right, bottom = box
    sides: list[Any] = [left, top, right - left, bottom - top]
    sides = [str(v) for v in sides] if rng.random() < 0.1 else sides
    item = {"image_id": form(image), "category_id": form(category), "bbox": sides}
    if crowd or rng.random() < 0.5:
        item["iscrowd"] = rng.choice((int, str, bool) if crowd else (int, str, bool, float))(int(crowd)) if crowd else 0
    if not crowd and rng.random() < 0.3:
        item["iscrowd"] = rng.choice((0, "0", False, 0.0, None))
    if rng.random() < 0.3:
        item |= {"segmentation": [[1, 2, 3, 4, 5, 6]], "area": rng.choice((3, 3.5, "3"))}
    return item


# -------------------------------------------------------------------------------------------------------------- YOLO


def make_yolo(root: Path, rng: random.Random) -> Case:
    """Write a set in YOLO's layout."""
    names = some(rng, NAMES, 1, 4)
    shape = rng.choice((None, None, (rng.randint(1, 12), rng.choice((2, 3)))))
    folders = {split: rng.choice(SPLIT_NAMES[split]) for split in ("train", "val")}
    if rng.random() < 0.3:
        folders["test"] = rng.choice(SPLIT_NAMES["test"])
    roboflow = rng.random() < 0.4  # split/images in place of images/split
    expected: dict[str, Any] = {"names": names, "left out": 0}
    images: dict[str, list[Boxes]] = {}
    places: dict[str, str] = {}
    labelled: dict[str, bool] = {}
    for split, folder in folders.items():
        stems = sorted(some(rng, STEMS, 1, 3))
        files = sorted(f"{stem}.{rng.choice(SUFFIXES)}" for stem in stems)
        places[split] = f"{folder}/images" if roboflow else f"images/{folder}"
        images[split] = [Boxes(size_of(rng)) for _ in files]
        labelled[split] = False
        for file, boxes in zip(files, images[split], strict=True):
            put_picture(root / places[split] / file, boxes.size)
            if rng.random() < 0.15:
                continue  # background
            labelled[split] = True
            rows = "".join(_yolo_row(rng, boxes, len(names), shape) for _ in range(rng.randint(1, 6)))
            label = (
                root
                / places[split].replace("images", "labels")
                / Path(file).with_suffix(rng.choice((".txt", ".txt", ".TXT")))
            )
            put_text(label, rows, rng)
        expected["left out"] += sum(boxes.left_out for boxes in images[split])
        expected[split] = [boxes.told(file) for file, boxes in zip(files, images[split], strict=True)]
    errors, text = _yolo_file(rng, names, shape, places, told=roboflow or rng.random() < 0.5)
    file = "data.json" if text.startswith("{") else "data.yaml"
    put_text(root / file, text, rng)
    case = Case(lambda: boxes_of(YOLOData(str(root), num_workers=0, file=file)), expected, errors)
    if not errors and not any(labelled.values()):
        case.errors = ("no image of",)
    for split in ("train", "val"):
        if not case.errors and not labelled[split]:
            case.errors = (f"no {split} image has labels",)
    return _finish(case, images)


def _yolo_row(rng: random.Random, boxes: Boxes, count: int, shape: tuple[int, int] | None) -> str:
    """Write a row, and take it in as it should come out."""
    width, height = boxes.size
    left, top, right, bottom = draw_box(rng, boxes.size)
    label = rng.choice([*range(count), count]) if rng.random() < 0.3 else rng.randrange(count)
    known = label if label < count else None
    centre = [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
    values, whole = centre, max(centre) <= 1.5
    kind = rng.random()
    if shape is not None and kind < 0.7:
        points = [[rng.random(), rng.random(), rng.randrange(3)][: shape[1]] for _ in range(shape[0])]
        values = centre + [value for point in points for value in point]
    elif shape is None and kind < 0.3 and left < right and top < bottom:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)][: rng.randint(3, 5)]
        values = [v for x, y in corners for v in (x / width, y / height)]
        whole = max(values) <= 1.5
    elif kind > 0.95:
        values, whole = centre[: rng.randint(0, 3)], False
        if rng.random() < 0.3:
            values, whole = [v * 100 + 9 for v in centre], False
    boxes.add([left, top, right, bottom], known, known=whole)
    number = rng.choice((str(label), str(label), f"{label}.0"))
    between = rng.choice((" ", " ", "\t", "  "))
    return between.join([number, *(f"{v:.9f}" for v in values)]) + rng.choice(("\n", "\n", " \n", "\n\n"))


def _yolo_file(
    rng: random.Random, names: list[str], shape: tuple[int, int] | None, places: dict[str, str], *, told: bool
) -> tuple[tuple[str, ...], str]:
    """Write the file with names, and tell the error that it should give."""
    data: dict[str, Any] = {}
    errors: tuple[str, ...] = ()
    if told:
        data |= {rng.choice(SPLIT_NAMES[split]): place for split, place in places.items()}
        if "test" not in places and rng.random() < 0.3:
            data["test"] = "images/nowhere"
    if rng.random() < 0.5:
        data["nc"] = len(names)
        if rng.random() < 0.15:
            data["nc"], errors = len(names) + 1, (f"nc is {len(names) + 1}",)
    if shape is not None:
        data["kpt_shape"] = list(shape)
    form = rng.randrange(4)
    if form == 0:
        return errors, json.dumps(data | {"names": names if rng.random() < 0.5 else dict(enumerate(names))})
    lines = [f"{key}: {value}" for key, value in data.items()]
    shown = [_yaml(rng, name) for name in names]
    if form == 1:
        lines.append(f"names: [{', '.join(shown)}]")
    else:
        keys = [(f"'{n}'" if rng.random() < 0.5 else f"{n}") for n in range(len(names))] if form == 2 else None
        rows = [f"  {keys[n]}: {name}" if keys else f"- {name}" for n, name in enumerate(shown)]
        lines += ["names:", *rows]
    return errors, "\n".join(lines) + "\n"


def _yaml(rng: random.Random, name: str) -> str:
    """Write a name, in quotes where YAML or chance wants it."""
    if name in ("o'clock", "a:b", "x#1", "~y") or rng.random() < 0.3:
        return json.dumps(name, ensure_ascii=False)
    return name
