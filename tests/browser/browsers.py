"""A browser to test pages in, a server for them, and models for them to run."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from kornia_mvit import AugmentationPipeline, Batch, DeepLabV3, MobileViTClassifier, Preprocess
from kornia_mvit.inference.sliding_window import predict_maps

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "browser"
sys.path.insert(0, str(EXAMPLE))

import build  # noqa: E402  # a script beside the page, not a part of the package
import serve  # noqa: E402

__all__ = ["EXAMPLE", "Browser", "build", "find_browser", "serve", "served"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP = {"width": 1200, "height": 900}
PHONE = {"width": 360, "height": 720}
COLOURS = ((128, 128, 128), (128, 0, 0), (0, 128, 0), (0, 0, 192), (192, 128, 0), (64, 0, 128))


def find_browser() -> str:
    """Return the browser's path; skip where there is none, or fail where one was promised.

    One that KORNIA_MVIT_BROWSER names has to be there, and npm with it.
    """
    named = os.environ.get("KORNIA_MVIT_BROWSER")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = [] if found else [f"there is no {named or 'Chromium (Debian has it as chromium)'}"]
    missing += [f"there is no {name}" for name in ("node", "npm") if shutil.which(name) is None]
    if missing and named:
        pytest.fail(f"KORNIA_MVIT_BROWSER is {named}, but {' and '.join(missing)}")
    if missing:
        pytest.skip(f"the page in examples/browser is not tested: {' and '.join(missing)}")
    assert found is not None
    return found


class Browser:
    """A headless browser with one page, driven by drive.mjs."""

    first: dict[str, Any]  # what the page showed when it was opened

    def __init__(self, path: str, size: dict[str, int], *flags: str) -> None:
        build.fetch(HERE)
        self.process = subprocess.Popen(
            ["node", HERE / "drive.mjs", path, json.dumps(size), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # told below
        line = self.process.stdout.readline()
        assert line, f"the browser ended: {self.process.stderr and self.process.stderr.read()}"
        answer: dict[str, Any] = json.loads(line)
        assert "failed" not in answer, answer
        return answer

    def pixels(self, name: str) -> Tensor:
        """Return the colours of a canvas, (4, H, W), uint8."""
        answer = self.ask("pixels", id=name)
        assert not answer["hidden"]
        data = torch.frombuffer(bytearray(base64.b64decode(answer["rgba"])), dtype=torch.uint8)
        return data.view(answer["height"], answer["width"], 4).permute(2, 0, 1)

    def labels(self, shown: dict[str, Any]) -> Tensor:
        """Return the class of each pixel of the overlay by the legend's colours, (H, W), −1 for colours of no class."""
        red, green, blue, opacity = self.pixels("overlay").long()
        assert (opacity == 255).all()
        out = torch.full_like(red, -1)
        for row in shown["legend"]:
            r, g, b = row["colour"]
            out[(red == r) & (green == g) & (blue == b)] = row["class"]
        return out


@contextmanager
def served(folder: Path, isolated: bool = True) -> Iterator[str]:
    """Serve a folder as serve.py does, or as ``python -m http.server``, without the headers that allow threads."""
    server = serve.make_server(folder, 0)
    if not isolated:
        plain = type("Plain", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        server.server_close()
        server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: plain(*given, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ------------------------------------------------------------------------------------------------------------- models


def photo(name: str = "china.jpg") -> Tensor:
    """Return a part of odd size of one of scikit-learn's photos, (3, 341, 501), uint8."""
    return torch.tensor(load_sample_image(name))[40:381, 30:531].permute(2, 0, 1).contiguous()


def make_classifier() -> MobileViTClassifier:
    """Make a classifier whose random weights tell scikit-learn's two photos apart."""
    torch.manual_seed(1)
    model = MobileViTClassifier("xxs", num_classes=7).eval()
    model.preprocess = Preprocess(size=144, crop=128)
    model.class_names = ("ash", "birch", "cedar", "elm", "fir", "larch", "Königspalme <b>")
    prepare = model.preprocess.module()
    with torch.no_grad():
        logits = model(torch.stack([prepare(photo(name)) for name in ("china.jpg", "flower.jpg")]))
        _standardise(model.classifier, logits.mean(0), (logits[0] - logits[1]).std() / 2)
    return model


def make_segmenter() -> DeepLabV3:
    """Make a network whose random weights find all its classes in a photo."""
    torch.manual_seed(2)
    model = DeepLabV3("xxs", num_classes=len(COLOURS)).eval()
    model.preprocess = Preprocess(size=(128, 160))
    model.class_names = ("sky", "roof", "tree", "water", "path", "wall")
    model.class_colours = COLOURS
    with torch.no_grad():
        logits = model(model.preprocess.module()(photo())[None])[0].flatten(1)
        _standardise(model.head.classifier, logits.mean(1), logits.std(1))
    return model


def _standardise(layer: nn.Module, mean: Tensor, scale: Tensor) -> None:
    """Let a layer's outputs have the mean 0 and a spread of 1, in place."""
    layer.bias.sub_(mean).div_(scale)
    layer.weight.div_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))


@torch.inference_mode()
def classify(model: MobileViTClassifier, image: Tensor) -> Tensor:
    """Return the probabilities of a (3, H, W) image, as ``kornia-mvit predict`` does."""
    prepared = model.preprocess.module()(image)
    return model(prepared[None])[0].softmax(-1)


@torch.inference_mode()
def segment(model: DeepLabV3, image: Tensor) -> Tensor:
    """Return the class of each pixel of a (3, H, W) image, as ``kornia-mvit predict`` does."""
    assert model.preprocess is not None
    pipeline = AugmentationPipeline(preprocess=replace(model.preprocess, crop=None), ignore_index=255)
    ((_, logits, _),) = predict_maps(model, Batch(image[None]), pipeline)
    return logits.argmax(1)[0]
