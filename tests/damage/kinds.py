"""The kinds of files that are damaged, what reads them, and the commands that do."""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from kornia_mvit import MobileViTClassifier, Preprocess, from_pretrained
from kornia_mvit.data.classes import read_classes
from kornia_mvit.data.formats import read_coco, read_voc, read_yolo
from kornia_mvit.data.formats.tables import find_names, number_labels, read_table
from kornia_mvit.data.loading.shards import count_shards
from kornia_mvit.data.masks import read_mask
from kornia_mvit.data.reading import read_image, read_size
from kornia_mvit.models.mobilevit import MobileViTConfig, Stage
from kornia_mvit.training.datamodules import COCOData, VOCData, YOLOData
from kornia_mvit.weights.cards import from_card, read_card
from kornia_mvit.weights.checkpoints import load_checkpoint, save_checkpoint
from kornia_mvit.weights.files import CARD_KEY, read_checkpoint
from tests.damage.mutate import (
    GADGETS,
    YAML_BOMBS,
    mutate_bytes,
    mutate_tree,
    mutate_zip,
    odd_tensor,
    safetensors_header,
)

TINY = MobileViTConfig(
    stem=4, expand=1, stages=(Stage(4, stride=2, dim=4, depth=1, repeat=0),), head_channels=4, heads=2
)
PLAIN = [gadget for gadget in GADGETS if not isinstance(gadget, str) or "\ud800" not in gadget]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        damage: writes a damaged file, and returns its path.
        readers: the functions behind the commands, each of which takes the path.
        commands: arguments of commands that read the file, which the path is put into.
    """

    damage: Callable[[random.Random], Path]
    readers: tuple[Callable[[Path], object], ...]
    commands: Callable[[Path], list[list[str]]]


def make_kinds(folder: Path) -> dict[str, Kind]:
    """Write whole files of each kind into a folder, and return what damages and reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    return (
        _checkpoints(folder) | {"json": _json(folder), "yaml": _yaml(folder), "xml": _xml(folder)} | _pictures(folder)
    )


def _write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


# ------------------------------------------------------------------------------------------------------- checkpoints


def _saved(data: Any) -> bytes:
    file = io.BytesIO()
    torch.save(data, file)
    return file.getvalue()


def _checkpoints(folder: Path) -> dict[str, Kind]:
    torch.manual_seed(0)
    model = MobileViTClassifier(TINY, num_classes=3).eval()
    model.class_names, model.preprocess = ("a", "b", "c"), Preprocess(32)
    save_checkpoint(model, folder / "whole.pt")
    save_checkpoint(model, folder / "whole.safetensors")
    whole = read_checkpoint(folder / "whole.pt")
    picture = folder / "picture.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    fit = whole | {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.6.6",
        "loops": {"fit_loop": {"state_dict": {}}},
        "hyper_parameters": {"mode": "xxs", "num_classes": 3, "policy_args": {}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
    }
    legacy = io.BytesIO()
    torch.save(whole, legacy, _use_new_zipfile_serialization=False)

    def damage_pt(data: Any, suffix: str) -> Callable[[random.Random], Path]:
        good = _saved(data)

        def damage(rng: random.Random) -> Path:
            match rng.randrange(8):
                case 0 | 1 | 2:
                    content = mutate_bytes(good, rng, legacy.getvalue())
                case 3:
                    content = mutate_bytes(legacy.getvalue(), rng, good)
                case 4 | 5:
                    content = mutate_zip(good, rng)
                case _:
                    content = _saved(mutate_tree(data, rng, [*GADGETS, odd_tensor(rng)]))
            return _write(folder / f"damaged{suffix}", content)

        return damage

    def damage_safetensors(rng: random.Random) -> Path:
        good = (folder / "whole.safetensors").read_bytes()
        if rng.random() < 0.5:
            content = mutate_bytes(good, rng, good)
        else:
            content = safetensors_header(good, rng)
        return _write(folder / "damaged.safetensors", content)

    def damage_card(rng: random.Random) -> Path:
        card = mutate_tree(whole[CARD_KEY], rng)
        return _write(folder / "card.pt", _saved({**whole, CARD_KEY: card}))

    def commands(path: Path) -> list[list[str]]:
        return [
            ["info", str(path)],
            ["convert", str(path), str(folder / "converted.pt"), "--to", "native"],
            ["predict", str(picture), "--checkpoint", str(path)],
        ]

    def read_last(path: Path) -> object:
        from kornia_mvit.training import last_checkpoint

        (folder / "run").mkdir(exist_ok=True)
        shutil.copy(path, folder / "run" / "last.ckpt")
        with contextlib.redirect_stderr(io.StringIO()):
            return last_checkpoint(folder / "run")

    target = MobileViTClassifier(TINY, num_classes=3)

    def load(path: Path) -> object:
        return load_checkpoint(target, read_checkpoint(path), name=str(path))

    readers = (from_pretrained, load)
    return {
        "pt": Kind(damage_pt(whole, ".pt"), readers, commands),
        "ckpt": Kind(damage_pt(fit, ".ckpt"), (*readers, read_last), commands),
        "safetensors": Kind(damage_safetensors, readers, commands),
        "card": Kind(damage_card, (_from_file, from_pretrained), commands),
    }


def _from_file(path: Path) -> object:
    data = read_checkpoint(path)
    return read_card(data, path), from_card(data, path)


# ------------------------------------------------------------------------------------------------------------- texts


def _json(folder: Path) -> Kind:
    images = folder / "coco" / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(images / name)
    coco = {
        "images": [
            {"id": n, "file_name": name, "height": 30, "width": 40} for n, name in enumerate(("a.png", "b.png"))
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [3, 4.5, 9, 9], "segmentation": [[1, 2, 3, 4, 5, 6]]},
        ],
    }
    good = {
        "coco/damaged.json": coco,
        "table.jsonl": [{"path": f"coco/images/{name}.png", "label": name} for name in "abab"],
        "sizes.json": {"x.tar": 3, "y.tar": 4},
        "hub/config.json": {"model_type": "mobilevit", "id2label": {"0": "a", "1": "b"}, "atrous_rates": [6, 12, 18]},
        "hub/preprocessor_config.json": {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}},
        "classes.json": {"classes": {"sky": [1, 2, 3], "road": "#800000"}, "ignore": [[0, 0, 0]]},
    }
    (folder / "hub").mkdir(exist_ok=True)
    model = MobileViTClassifier("xxs", num_classes=2)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier")}
    torch.save(
        {f"backbone.{k}".replace("backbone.backbone", "backbone"): v for k, v in weights.items()},
        folder / "hub" / "pytorch_model.bin",
    )
    for name in ("x.tar", "y.tar"):
        _write(folder / name, b"\0" * 10240)

    def damage(rng: random.Random) -> Path:
        for name in ("hub/config.json", "hub/preprocessor_config.json"):
            _write(folder / name, json.dumps(good[name]))
        name = rng.choice([*good, "coco/damaged.json"])
        value = mutate_tree(good[name], rng) if rng.random() < 0.6 else good[name]
        if isinstance(value, list) and name.endswith(".jsonl"):
            text = "\n".join(_dump(row, rng) for row in value)
        else:
            text = _dump(value, rng)
        content = text.encode("utf-8", "surrogatepass")
        if value is good[name]:
            content = rng.choice(
                (mutate_bytes(content, rng, content), b"[" * 10**5, content.replace(b"1", b"9" * 5000))
            )
        return _write(folder / name, content)

    def read(path: Path) -> object:
        match path.name:
            case "damaged.json":
                read_coco(path)
                return COCOData(
                    str(path.parent), train_file="damaged.json", train_images="images", val_file="damaged.json",
                    val_images="images", num_workers=0,
                )  # fmt: skip
            case "table.jsonl":
                rows = read_table(path)
                return number_labels(rows, find_names(rows))
            case "sizes.json":
                return count_shards([str(folder / "x.tar"), str(folder / "y.tar")])
            case "classes.json":
                return read_classes(path)
            case _:
                from kornia_mvit.weights.registry import _read_folder

                return _read_folder(path.parent)

    def commands(path: Path) -> list[list[str]]:
        preview = ["preview", "--size", "32", "--count", "1", "--copies", "1", "--cell", "32"]
        preview += ["--out", str(folder / "preview.png"), "--data.num_workers", "0"]
        match path.name:
            case "damaged.json":
                files = [part for split in ("train", "val") for part in (f"--data.{split}_file", "damaged.json")]
                images = [part for split in ("train", "val") for part in (f"--data.{split}_images", "images")]
                return [
                    [
                        *preview,
                        "--policy",
                        "detection_train",
                        "--data",
                        "COCOData",
                        "--data.root",
                        str(path.parent),
                        *files,
                        *images,
                    ]
                ]
            case "table.jsonl":
                return [
                    [
                        *preview,
                        "--policy",
                        "classification_train",
                        "--data",
                        "TableData",
                        "--data.train",
                        str(path),
                        "--data.batch_size",
                        "1",
                    ]
                ]
            case "sizes.json":
                shards = ["--data.train", str(folder / "x.tar"), "--data.val", str(folder / "y.tar")]
                return [
                    [
                        *preview,
                        "--policy",
                        "classification_train",
                        "--data",
                        "ShardData",
                        *shards,
                        "--data.num_classes",
                        "2",
                    ]
                ]
            case "classes.json":
                return [
                    [
                        *preview,
                        "--data",
                        "SegmentationFolderData",
                        "--data.root",
                        str(folder),
                        "--data.classes",
                        str(path),
                    ]
                ]
            case _:
                return [["predict", str(folder / "coco" / "images" / "a.png"), "--checkpoint", str(path.parent)]]

    return Kind(damage, (read,), commands)


def _dump(value: Any, rng: random.Random) -> str:
    try:
        return json.dumps(value, ensure_ascii=rng.random() < 0.5)
    except ValueError:  # a number too long for Python to write
        return json.dumps(value, default=str) if rng.random() < 0 else '{"a": ' + "9" * 5000 + "}"


def _yaml(folder: Path) -> Kind:
    root = folder / "yolo"
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(root / "images" / split / f"{split}.png")
        _write(root / "labels" / split / f"{split}.txt", "0 0.5 0.5 0.2 0.2\n")
    good = {
        "classes.yaml": {"classes": {"sky": [1, 2, 3], "road": "#800000"}, "ignore": [[0, 0, 0]]},
        "yolo/data.yaml": {"path": ".", "train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}},
        "yolo/labels/train/train.txt": None,
    }

    def damage(rng: random.Random) -> Path:
        _write(root / "labels" / "train" / "train.txt", "0 0.5 0.5 0.2 0.2\n")
        _write(root / "data.yaml", yaml.safe_dump(good["yolo/data.yaml"]))
        name = rng.choice(
            ["classes.yaml", "classes.yaml", "yolo/data.yaml", "yolo/data.yaml", "yolo/labels/train/train.txt"]
        )
        if name.endswith(".txt"):
            content = mutate_bytes(
                b"0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.3 0.3 0.5 0.5\n", rng, b"9" * 5000 + b" inf nan 1e400 \n"
            )
            return _write(folder / name, content)
        match rng.randrange(4):
            case 0:
                content = rng.choice(YAML_BOMBS).encode()
                if rng.random() < 0.3:
                    content = mutate_bytes(content, rng, content)
            case 1:
                text = yaml.safe_dump(good[name]).encode()
                content = mutate_bytes(text, rng, rng.choice(YAML_BOMBS).encode())
            case _:
                value = mutate_tree(good[name], rng, [g for g in PLAIN if g != 10**400])
                content = yaml.safe_dump(value, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        return _write(folder / name, content)

    def read(path: Path) -> object:
        if path.name == "classes.yaml":
            return read_classes(path)
        if path.suffix == ".txt":
            read_yolo(path)
        return YOLOData(str(root), num_workers=0)

    def commands(path: Path) -> list[list[str]]:
        preview = ["preview", "--size", "32", "--count", "1", "--copies", "1", "--cell", "32"]
        preview += ["--out", str(folder / "preview.png"), "--data.num_workers", "0"]
        if path.name == "classes.yaml":
            return [
                [
                    *preview,
                    "--policy",
                    "segmentation_train",
                    "--data",
                    "SegmentationFolderData",
                    "--data.root",
                    str(folder),
                    "--data.classes",
                    str(path),
                ]
            ]
        return [[*preview, "--policy", "detection_train", "--data", "YOLOData", "--data.root", str(root)]]

    return Kind(damage, (read,), commands)


def _xml(folder: Path) -> Kind:
    root = folder / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    text = (
        "<?xml version='1.0' encoding='utf-8'?>\n<annotation><size><width>40</width><height>30</height></size>"
        "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax>"
        "<ymax>22</ymax></bndbox></object></annotation>"
    )
    for name in "ab":
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.png")
        _write(root / "Annotations" / f"{name}.xml", text)
    for split in ("train", "val"):
        _write(root / "ImageSets" / "Main" / f"{split}.txt", "a\nb\n")
    bombs = [
        "<!DOCTYPE a [<!ENTITY a 'aaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]><annotation>&b;</annotation>",
        "<!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/hostname'>]><annotation>&a;</annotation>",
        "<!DOCTYPE a SYSTEM 'http://localhost/x'><annotation/>",
        "<annotation>" + "<a>" * 5000 + "</a>" * 5000 + "</annotation>",
        "<?xml version='1.0' encoding='no-such'?><annotation/>",
        "<?xml version='1.0' encoding='utf-16'?><annotation/>",
        "<?xml version='1.0' encoding='idna'?><annotation/>",
        "<annotation>" + "<object/>" * 50 + "</annotation>",
    ]

    def damage(rng: random.Random) -> Path:
        _write(root / "Annotations" / "a.xml", text)
        if rng.random() < 0.1:
            list_file = root / "ImageSets" / "Main" / "train.txt"
            return _write(list_file, mutate_bytes(b"a\nb\n", rng, b"x" * 5000 + b"\0\xff\n"))
        _write(root / "ImageSets" / "Main" / "train.txt", "a\nb\n")
        content = text
        match rng.randrange(3):
            case 0:
                content = rng.choice(bombs)
            case 1:
                for number in rng.sample(["40", "30", "3", "4", "20", "22", "cat", "0"], 2):
                    new = rng.choice(["", "-1", "1e400", "nan", "9" * 5000, "x" * 5000, "&#27;[2J", "1e300", "  "])
                    content = content.replace(f">{number}<", f">{new}<")
        data = content.encode()
        if content is text or rng.random() < 0.3:
            data = mutate_bytes(data, rng, rng.choice(bombs).encode())
        return _write(root / "Annotations" / "a.xml", data)

    def read(path: Path) -> object:
        if path.suffix == ".xml":
            read_voc(path)
        return VOCData(str(root), num_workers=0)

    def commands(path: Path) -> list[list[str]]:
        preview = ["preview", "--size", "32", "--count", "1", "--copies", "1", "--cell", "32"]
        preview += ["--out", str(folder / "preview.png"), "--data.num_workers", "0"]
        return [[*preview, "--policy", "detection_train", "--data", "VOCData", "--data.root", str(root)]]

    return Kind(damage, (read,), commands)


# ---------------------------------------------------------------------------------------------------------- pictures


def _pictures(folder: Path) -> dict[str, Kind]:
    def picture(mode: str, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        Image.effect_noise((16, 12), 80).convert(mode).save(file, kind, **options)
        return file.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a tulip"
    good = {
        "png": [picture(mode, "PNG") for mode in ("L", "RGB", "P", "RGBA", "1", "I;16")],
        "jpeg": [picture("RGB", "JPEG", exif=exif), picture("L", "JPEG"), picture("CMYK", "JPEG", progressive=True)],
    }

    def kind(name: str) -> Kind:
        def damage(rng: random.Random) -> Path:
            first, second = rng.choice(good[name]), rng.choice([*good["png"], *good["jpeg"]])
            return _write(folder / f"damaged.{name}", mutate_bytes(first, rng, second))

        def commands(path: Path) -> list[list[str]]:
            return [["predict", str(path), "--checkpoint", str(folder / "whole.pt")]]

        def read_coloured_mask(path: Path) -> object:
            return read_mask(path, {(n, n, n): n for n in range(256)})

        return Kind(damage, (read_image, read_size, read_mask, read_coloured_mask), commands)

    return {name: kind(name) for name in good}
