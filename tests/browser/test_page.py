"""The page of examples/browser in a headless browser, beside what Python gives."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from PIL import Image
from torch import Tensor

from kornia_mvit.data.reading import read_image
from kornia_mvit.weights.checkpoints import save_checkpoint
from tests.browser.browsers import (
    DESKTOP,
    PHONE,
    Browser,
    build,
    classify,
    find_browser,
    make_classifier,
    make_segmenter,
    photo,
    segment,
    served,
)

pytestmark = [pytest.mark.long, pytest.mark.processes]

CLOSE = 1e-3  # between probabilities


@pytest.fixture(scope="module")
def browser_path() -> str:
    return find_browser()


@pytest.fixture(scope="module")
def site(browser_path, tmp_path_factory) -> Path:
    """The page, built from checkpoints of a classifier and of a network for segmentation."""
    folder = tmp_path_factory.mktemp("page")
    checkpoints = []
    for model in (make_classifier(), make_segmenter()):
        checkpoints.append(folder / f"{type(model).__name__}.pt")
        save_checkpoint(model, checkpoints[-1])
    build.build([str(path) for path in checkpoints], folder / "dist")
    return folder / "dist"


@contextmanager
def opened(path: str, folder: Path, size: dict[str, int] = DESKTOP, isolated: bool = True) -> Iterator[Browser]:
    """Open the page of a folder; afterwards see that it asked nothing of others and that nothing went wrong in it."""
    with served(folder, isolated) as url:
        browser = Browser(path, size)
        try:
            browser.first = browser.ask("open", url=url)
            yield browser
            seen = browser.ask("seen")
        finally:
            browser.close()
    assert {request for request in seen["requests"] if not request.startswith((url, f"blob:{url}"))} == set()
    assert any(request.endswith(".wasm") for request in seen["requests"])
    assert seen["problems"] == []


@pytest.fixture(scope="module")
def browser(browser_path, site) -> Iterator[Browser]:
    """A window that tests share."""
    with opened(browser_path, site) as browser:
        yield browser


@pytest.fixture
def classifying(browser) -> Browser:
    browser.ask("task", name="classification")
    return browser


@pytest.fixture
def segmenting(browser) -> Browser:
    browser.ask("task", name="segmentation")
    return browser


def save(image: Tensor, path: Path, **options: Any) -> Path:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, **options)
    return path


def assert_same_classes(shown: dict[str, Any], expected: Tensor) -> None:
    best = expected.topk(5)
    assert [row["class"] for row in shown["classes"]] == best.indices.tolist()
    given = torch.tensor([row["probability"] for row in shown["classes"]])
    torch.testing.assert_close(given, best.values, rtol=0, atol=CLOSE)


class TestClassification:
    def test_smoke(self, browser):
        assert browser.first["error"] == ""
        assert browser.first["status"] == "Ready for a picture."
        assert browser.first["isolated"]
        assert "7 classes" in browser.first["about"]
        assert "onnxruntime-web" in browser.first["about"]
        assert browser.first["note"] == ""

    @pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
    def test_same_as_python(self, classifying, tmp_path, name):
        model, image = make_classifier(), photo(name)
        shown = classifying.ask("picture", path=str(save(image, tmp_path / "photo.png")))
        assert_same_classes(shown, classify(model, image))
        with torch.inference_mode():  # with images resampled in 8 bits, as eager models take them
            rounded = model(model.preprocess.module()(image)[None])[0].softmax(-1)
        assert shown["classes"][0]["class"] == rounded.argmax()
        names = [model.class_names[row["class"]] for row in shown["classes"]]
        assert [row["name"] for row in shown["classes"]] == names
        assert shown["status"] == f"{names[0]}, {shown['classes'][0]['text']}"
        assert float(shown["time"].split(" ms")[0]) > 0
        assert shown["caption"] == "photo.png, 501 × 341 pixels"

    def test_the_two_photos_differ(self):
        model = make_classifier()
        assert classify(model, photo("china.jpg")).argmax() != classify(model, photo("flower.jpg")).argmax()

    def test_orientation_of_a_camera(self, classifying, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        path = save(photo(), tmp_path / "turned.jpg", exif=exif, quality=95)
        shown = classifying.ask("picture", path=str(path))
        assert shown["caption"] == "turned.jpg, 341 × 501 pixels"
        image = read_image(path)
        assert (classifying.pixels("picture")[:3].int() - image.int()).abs().float().mean() < 1
        expected = classify(make_classifier(), image)
        assert shown["classes"][0]["class"] == expected.argmax()
        assert shown["classes"][0]["probability"] == pytest.approx(expected.max().item(), abs=0.02)

    def test_transparent_pixels_are_white(self, classifying, tmp_path):
        image = torch.cat([photo(), torch.full((1, 341, 501), 255, dtype=torch.uint8)])
        image[3, :100] = 0
        path = save(image, tmp_path / "transparent.png")
        shown = classifying.ask("picture", path=str(path))
        assert torch.equal(classifying.pixels("picture")[:3], read_image(path))
        assert_same_classes(shown, classify(make_classifier(), read_image(path)))

    def test_large_picture_is_scaled_down(self, classifying, tmp_path):
        path = save(photo().repeat(1, 1, 5), tmp_path / "wide.png")
        shown = classifying.ask("picture", path=str(path))
        assert shown["error"] == ""
        assert shown["caption"] == "wide.png, 2505 × 341 pixels, seen at 2048 × 279"


class TestSegmentation:
    @pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
    def test_same_as_python(self, segmenting, tmp_path, name):
        model, image = make_segmenter(), photo(name)
        shown = segmenting.ask("picture", path=str(save(image, tmp_path / "photo.png")))
        expected = segment(model, image)
        given = segmenting.labels(shown)
        assert given.shape == expected.shape
        assert (given == expected).float().mean() >= 0.999
        counts = torch.bincount(given.flatten(), minlength=6)
        assert (counts > 0.03 * given.numel()).all()  # nothing is proved by a map of one class
        assert [row["class"] for row in shown["legend"]] == list(range(6))
        assert [row["name"] for row in shown["legend"]] == list(model.class_names)
        assert [tuple(row["colour"]) for row in shown["legend"]] == list(model.class_colours)
        shares = [float(row["share"].split()[0]) / 100 for row in shown["legend"]]
        torch.testing.assert_close(torch.tensor(shares), counts / given.numel(), rtol=0, atol=6e-4)
        assert float(shown["time"].split(" ms")[0]) > 0

    def test_task_can_change_with_a_picture(self, segmenting, tmp_path):
        segmenting.ask("picture", path=str(save(photo(), tmp_path / "photo.png")))
        shown = segmenting.ask("task", name="classification")
        assert shown["legend"] == []
        assert_same_classes(shown, classify(make_classifier(), photo()))
        shown = segmenting.ask("task", name="segmentation")
        assert shown["classes"] == []
        assert len(shown["legend"]) == 6


class TestCamera:
    def test_frames_are_answered(self, browser_path, site):
        with opened(browser_path, site) as browser:
            browser.ask("permit", camera=True)
            shown = browser.ask("camera")
            assert shown["error"] == ""
            assert len(shown["classes"]) == 5
            assert " ms per image" in shown["time"]
            first = browser.pixels("picture")
            assert not torch.equal(first[0], first[0, :1, :1].expand_as(first[0]))
            browser.ask("frames", count=3)
            assert not torch.equal(first, browser.pixels("picture"))
            assert len(browser.ask("task", name="segmentation")["legend"]) >= 1
            browser.ask("click", selector="#camera")
            assert browser.ask("frames", count=0)["button"] == "Use the camera"

    def test_no_permission(self, browser_path, site):
        with opened(browser_path, site) as browser:
            browser.ask("permit", camera=False)
            shown = browser.ask("camera")
            assert "no permission" in shown["error"]
            assert browser.ask("frames", count=0)["button"] == "Use the camera"


class TestErrors:
    def test_no_picture(self, classifying, tmp_path):
        good = classifying.ask("picture", path=str(save(photo(), tmp_path / "photo.png")))
        for name, content in (("notes.txt", b"no picture"), ("empty.png", b""), ("broken.jpg", b"\xff\xd8\xff\xe0")):
            (tmp_path / name).write_bytes(content)
            shown = classifying.ask("picture", path=str(tmp_path / name))
            assert shown["error"].startswith(name)
            assert "is not a picture that this browser can read" in shown["error"]
            assert shown["classes"] == good["classes"]  # of the picture that is still there
        shown = classifying.ask("picture", path=str(tmp_path / "photo.png"))
        assert shown["error"] == ""
        assert shown["status"] == good["status"]

    def test_dropped(self, classifying):
        shown = classifying.ask("drop", name="notes.txt", type="text/plain", text="no picture")
        assert shown["error"].startswith("notes.txt (text/plain) is not a picture")
        shown = classifying.ask("drop", name=None, type="", text="")
        assert "drop the file" in shown["error"]

    @pytest.mark.parametrize(
        ("missing", "error"),
        [
            ("models.json", "The list of models, models.json, is missing (status 404). build.py writes it."),
            ("classification.onnx", "The model classification.onnx is missing (status 404). build.py puts it"),
        ],
    )
    def test_missing(self, browser_path, site, tmp_path, missing, error):
        folder = shutil.copytree(site, tmp_path / "dist")
        (folder / missing).unlink()
        with served(folder) as url:
            browser = Browser(browser_path, DESKTOP)
            try:
                assert error in browser.ask("open", url=url)["error"]
            finally:
                browser.close()

    def test_damaged_model(self, browser_path, site, tmp_path):
        folder = shutil.copytree(site, tmp_path / "dist")
        (folder / "classification.onnx").write_bytes(b"no model")
        with served(folder) as url:
            browser = Browser(browser_path, DESKTOP)
            try:
                assert "The model classification.onnx cannot be used" in browser.ask("open", url=url)["error"]
                shown = browser.ask("task", name="segmentation")
                assert shown["error"] == ""
                assert shown["status"] == "Ready for a picture."
            finally:
                browser.close()


class TestSurroundings:
    def test_without_its_server(self, browser_path, site, tmp_path):
        """A page that was seen once works when its server is away."""
        browser = Browser(browser_path, DESKTOP)
        try:
            with served(site) as url:
                browser.ask("open", url=url)
                browser.ask("kept")
            with pytest.raises(URLError):
                urlopen(url)
            shown = browser.ask("open", url=url)
            assert shown["error"] == ""
            shown = browser.ask("picture", path=str(save(photo(), tmp_path / "photo.png")))
            assert_same_classes(shown, classify(make_classifier(), photo()))
            assert len(browser.ask("task", name="segmentation")["legend"]) == 6
        finally:
            browser.close()

    def test_any_server(self, browser_path, site, tmp_path):
        """``python -m http.server`` sends no headers for threads: the page does with one."""
        with opened(browser_path, site, isolated=False) as browser:
            assert not browser.first["isolated"]
            assert "1 thread." in browser.first["about"]
            shown = browser.ask("picture", path=str(save(photo(), tmp_path / "photo.png")))
            assert_same_classes(shown, classify(make_classifier(), photo()))

    def test_keyboard_on_a_phone(self, browser_path, site, tmp_path):
        with opened(browser_path, site, PHONE) as browser:
            pressed = browser.ask("press", keys=["Tab", "ArrowRight", "Tab", "Tab"])
            assert pressed["focused"] == ["classification", "segmentation", "file", "camera"]
            assert "6 classes" in pressed["about"]
            shown = browser.ask("picture", path=str(save(photo(), tmp_path / "photo.png")))
            assert len(shown["legend"]) == 6
            assert browser.ask("press", keys=["Tab", "End"])["focused"] == ["55", "100"]
            widths = browser.ask("widths")
            assert widths["page"] <= widths["window"]


def test_models_json_tells_what_the_models_tell(site):
    listed = json.loads((site / "models.json").read_text(encoding="utf-8"))
    for entry, model in zip(listed["models"], (make_classifier(), make_segmenter()), strict=True):
        assert entry["classes"] == list(model.class_names)
        assert entry["preprocess"] == model.preprocess.to_dict()
        assert entry["bytes"] == (site / entry["file"]).stat().st_size
    assert all((site / name).is_file() for name in listed["files"])
