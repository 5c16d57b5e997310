"""Decoding, and finding, image files."""

import io
import os
import struct
import sys
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kornia_mvit.data.masks import read_mask
from kornia_mvit.data.reading import (
    DataError,
    ImageFiles,
    decode_reduced,
    find_classes,
    find_images,
    read_image,
    read_size,
)
from kornia_mvit.data.storage import StorageResize

RED, GREEN = (255, 0, 0), (0, 255, 0)


def two_tone(width=6, height=4):
    """Red to the left, green to the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    return image


class TestReadImage:
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
    def test_modes_of_colour(self, mode, tmp_path):
        path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
        two_tone().convert(mode).save(path)
        image = read_image(path)
        assert image.dtype == torch.uint8
        assert image.shape == (3, 4, 6)
        assert image.is_contiguous()
        assert image[:, 0, 0].tolist() == list(RED)
        assert image[:, 0, -1].tolist() == list(GREEN)

    def test_grey(self, tmp_path):
        Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(tmp_path / "a.png")
        expected = torch.arange(24, dtype=torch.uint8).view(1, 4, 6).expand(3, -1, -1)
        assert torch.equal(read_image(tmp_path / "a.png"), expected)

    def test_16_bit_grey(self, tmp_path):
        values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png")[0].tolist() == [[0, 1, 128, 255]]

    def test_transparency_lies_over_white(self, tmp_path):
        image = two_tone().convert("RGBA")
        image.putalpha(Image.new("L", image.size, 0))
        image.save(tmp_path / "rgba.png")
        assert read_image(tmp_path / "rgba.png").unique().tolist() == [255]
        palette = two_tone().convert("P")
        palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
        image = read_image(tmp_path / "palette.png")
        assert image[:, 0, 0].tolist() == [255, 255, 255]
        assert image[:, 0, -1].tolist() == list(GREEN)
        Image.merge("LA", (Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 0))).save(tmp_path / "la.png")
        assert read_image(tmp_path / "la.png").unique().tolist() == [255]

    @pytest.mark.parametrize(("orientation", "corner"), [(1, RED), (2, GREEN), (3, GREEN), (6, RED), (8, GREEN)])
    def test_exif_orientation(self, orientation, corner, tmp_path):
        """Where the upper left pixel of the upright image comes from: 2 mirrors, 3, 6 and 8 turn by 180, 90, 270."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        two_tone().save(tmp_path / "a.png", exif=exif)
        image = read_image(tmp_path / "a.png")
        assert image.shape == ((3, 4, 6) if orientation < 5 else (3, 6, 4))
        assert image[:, 0, 0].tolist() == list(corner)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no such image: {}"),
            (b"", "not an image, or of a format that Pillow cannot read: {}"),
            (b"hello", "not an image"),
            ("truncated", "cannot read image {}: "),
            ("floating", "floating-point pixels have no known range"),
        ],
    )
    def test_exception(self, content, message, tmp_path):
        path = tmp_path / "a.jpg"
        if content == "truncated":
            two_tone(64, 64).save(path)
            path.write_bytes(path.read_bytes()[:-200])
        elif content == "floating":
            path = tmp_path / "a.tif"
            Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(path)
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_image(path)
        assert message.format(path) in str(error.value)
        assert str(path) in str(error.value)

    def test_of_an_opened_file(self):
        data = io.BytesIO()
        two_tone().save(data, "PNG")
        assert read_image(data).shape == (3, 4, 6)
        with pytest.raises(DataError, match=r"a\.tar/1\.png: "):
            read_image(io.BytesIO(data.getvalue()[:-30]), "a.tar/1.png")

    def test_a_bomb_is_refused(self, tmp_path):
        """A small file that claims to be enormous."""
        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        path = tmp_path / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with pytest.raises(DataError, match=r"bomb\.png"):
            read_image(path)


def _jpegs() -> dict[str, bytes]:
    """JPEGs of all that a camera or a program may write, whole and damaged."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((93, 61))
    upright, turned = Image.Exif(), Image.Exif()
    upright[0x0112], turned[0x0112] = 1, 6
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "progressive": {"progressive": True},
        "444": {"subsampling": 0},
        "422": {"subsampling": 1},
        "not converted to YCbCr": {"keep_rgb": True},
        "upright by EXIF": {"exif": upright},
        "turned": {"exif": turned},
        "turned by XMP": {"xmp": b"<rdf tiff:Orientation='6'> http://ns.adobe.com/xap/1.0/"},
    }
    files = {}
    for name, chosen in options.items():
        photo.save(file := io.BytesIO(), "JPEG", **chosen)
        files[name] = file.getvalue()
    for mode in ("L", "CMYK"):
        photo.convert(mode).save(file := io.BytesIO(), "JPEG")
        files[mode] = file.getvalue()
    plain = files["plain"]
    start, rest = files["turned"][:2], files["turned"][2:]
    files["turned, behind a comment"] = start + b"\xff\xfe\x00\x06note" + rest
    files["turned, behind a second start"] = start + start + rest
    files["turned, behind filling"] = start + b"\xff" * 5 + rest
    files["turned, behind a length that is too short"] = start + b"\xff\xfe\x00\x02" + rest
    files["a comment"] = plain[:2] + b"\xff\xfe\x00\x06Exif" + plain[2:]
    files["headers alone"] = plain[: plain.index(b"\xff\xda")]
    files["without its end"] = plain[:-2]
    files["more behind its end"] = plain + b"abc"
    files["half"] = plain[: len(plain) // 2]
    files["overwritten"] = plain[:900] + b"\x55" * 20 + plain[920:]
    return files


class TestSimplejpeg:
    """What simplejpeg decodes has Pillow's pixels, and what it refuses is Pillow's to decode or to refuse."""

    @pytest.mark.parametrize("name", _jpegs())
    def test_as_without_it(self, name, monkeypatch):
        def read() -> Tensor | str:
            try:
                return read_image(io.BytesIO(_jpegs()[name]), "a.jpg")
            except DataError as error:
                return str(error)

        decoded = []

        def decode(data: bytes) -> NDArray[np.uint8]:
            pixels = simplejpeg.decode_jpeg(data)
            decoded.append(pixels)
            return pixels

        monkeypatch.setitem(
            sys.modules,
            "simplejpeg",
            SimpleNamespace(decode_jpeg=decode, decode_jpeg_header=simplejpeg.decode_jpeg_header),
        )
        mine = read()
        damaged = ("without its end", "half", "headers alone", "turned, behind a second start")
        pillows = ("upright by EXIF", "L", "CMYK", *damaged)
        assert bool(decoded) == (name not in pillows and "turned" not in name)
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
        whole = read()
        assert torch.equal(mine, whole) if isinstance(mine, Tensor) and isinstance(whole, Tensor) else mine == whole
        assert isinstance(mine, Tensor) == (name not in damaged)
        if isinstance(mine, Tensor) and "turned" in name and "XMP" not in name:
            assert mine.shape == (3, 93, 61)

    def test_fewer_pixels_are_pillows(self, tmp_path, monkeypatch):
        """Of a large JPEG a half of each side is decoded, with or without it; of one that is not, all pixels."""
        two_tone(400, 200).save(tmp_path / "a.jpg", quality=90)
        for least, shape in ((lambda *_: (100, 200), (3, 100, 200)), (lambda *_: (101, 200), (3, 200, 400))):
            mine, size = decode_reduced(tmp_path / "a.jpg", least)
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "simplejpeg", None)
                other, _ = decode_reduced(tmp_path / "a.jpg", least)
            assert mine.shape == shape
            assert size == (200, 400)
            assert torch.equal(mine, other)


def twelve_bits(grey):
    """A TIFF of grey values, each in twelve bits."""
    height, width = grey.shape
    rows = [int("".join(f"{value:012b}" for value in row), 2).to_bytes(width * 3 // 2, "big") for row in grey]
    data = b"".join(rows)
    tags = ((256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (279, len(data))))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 9) + entries + bytes(4)


class TestReaders:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
    def test_they_agree_on_how_an_image_is_turned(self, suffix, tmp_path):
        path = tmp_path / f"a.{suffix}"
        grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.fromarray(grey).save(path, exif=exif)
            size = (4, 6) if orientation < 5 else (6, 4)
            assert read_size(path) == tuple(read_image(path).shape[1:]) == size
            if suffix in ("png", "tif"):  # without loss
                assert torch.equal(read_mask(path), read_image(path)[0].long())

    @pytest.mark.parametrize("says", ["bits", "greatest", "nothing"])
    def test_twelve_bits(self, says, tmp_path, monkeypatch):
        path = tmp_path / "a.tif"
        grey = (np.arange(24).reshape(4, 6) * 178).astype(np.uint16)
        if says == "bits":
            path.write_bytes(twelve_bits(grey))
        else:
            Image.fromarray(grey).save(path, tiffinfo={281: 4095} if says == "greatest" else {})
        if says != "nothing":
            assert read_image(path)[0].tolist() == (grey >> 4).tolist()
            return
        monkeypatch.setattr("kornia_mvit.pictures._DARK", [])
        with pytest.warns(UserWarning, match="no value above 4,094"):
            assert read_image(path)[0].tolist() == (grey >> 8).tolist()
        assert read_image(path).max() == 15  # told of once

    def test_grey_beyond_sixteen_bits(self, tmp_path):
        Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=r"a\.tif: grey values from 0 to 70000"):
            read_image(tmp_path / "a.tif")

    @pytest.mark.parametrize("read", [read_image, read_size, read_mask])
    def test_a_plugin_that_cannot(self, read, tmp_path, monkeypatch):
        def refuse(*arguments):
            raise NotImplementedError("pixel format 7")

        path = tmp_path / "a.xyz"
        path.write_bytes(b"XYZ!")
        Image.init()
        monkeypatch.setattr(Image, "ID", ["XYZ"])
        monkeypatch.setitem(Image.OPEN, "XYZ", (refuse, lambda start: start == b"XYZ!"))
        with pytest.raises(DataError, match=r"cannot read .*a\.xyz: pixel format 7"):
            read(path)


class TestNoFiles:
    """Named pipes, devices and folders are refused at once, as nothing ever comes from a pipe that nobody writes to."""

    @pytest.mark.parametrize("read", [read_image, read_mask, read_size])
    def test_they_are_named(self, read, tmp_path):
        pipe = tmp_path / "pipe.png"
        os.mkfifo(pipe)
        for path, what in ((pipe, "a pipe or a device"), ("/dev/zero", "a pipe or a device"), (tmp_path, "a folder")):
            with pytest.raises(DataError, match=f"{path} is {what}, not an image file"):
                read(path)


class TestFind:
    def test_feature(self, tmp_path):
        for name in ("b/2.PNG", "b/1.jpg", "a/deep/3.webp", "a/notes.txt", ".hidden/4.png", "loose.png"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        classes = find_classes(tmp_path)
        assert {name: [file.name for file in files] for name, files in classes.items()} == {
            "a": ["3.webp"],
            "b": ["1.jpg", "2.PNG"],
        }
        assert [file.name for file in find_images(tmp_path / "b")] == ["1.jpg", "2.PNG"]

    def test_exception(self, tmp_path):
        with pytest.raises(DataError, match=r"folder.*nowhere"):
            find_classes(tmp_path / "nowhere")
        with pytest.raises(DataError, match=r"empty.*a folder for each class"):
            find_classes(tmp_path)
        two_tone().save(tmp_path / "loose.png")
        with pytest.raises(DataError, match=r"1 images.*a folder for each class"):
            find_classes(tmp_path)
        (tmp_path / "cat").mkdir()
        with pytest.raises(DataError, match=r"no image in .*cat"):
            find_classes(tmp_path)


class TestImageFiles:
    def test_a_size_that_is_refused_is_named(self, tmp_path):
        path = tmp_path / "wide.png"
        Image.new("L", (20000, 1)).save(path)
        with pytest.raises(DataError, match=r"wide\.png: an image of 1x20000 pixels resized to 64x1280000"):
            ImageFiles([path], [0], StorageResize(64, max_aspect=1e6))[0]
        assert ImageFiles([path], [0], StorageResize(64))[0]["image"].shape == (3, 1, 128)

    def test_feature(self, tmp_path):
        two_tone().save(tmp_path / "a.png")
        data = ImageFiles(
            [tmp_path / "a.png"], [7], transform=lambda sample: sample | {"image": sample["image"][:, :2]}
        )
        sample = data[0]
        assert len(data) == 1
        assert sample["image"].shape == (3, 2, 6)
        assert sample["label"] == 7
        assert sample["meta"] == {"path": str(tmp_path / "a.png")}

    def test_exception(self):
        with pytest.raises(ValueError, match="1 files, but 2 labels"):
            ImageFiles(["a.png"], [0, 1])
