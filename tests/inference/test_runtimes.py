"""Networks handed to OpenVINO and ONNX Runtime: what PyTorch answers, from any thread, at any size, after pickling."""

import copy
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from kornia_mvit import (
    DataError,
    DeepLabV3,
    MobileViT,
    MobileViTClassifier,
    MobileViTV2Classifier,
    Preprocess,
    SSDLite,
    from_pretrained,
    fuse,
    load_checkpoint,
    optimize,
    predict,
    save_checkpoint,
)
from kornia_mvit.inference.engines import runtimes
from kornia_mvit.inference.engines.int8 import DRAWN, measure_change, prepare_calibration, read_calibration
from kornia_mvit.inference.engines.runtimes import RUNTIMES, OpenVINO
from tests.models.networks import (
    APPLE,
    DEEP,
    DETECTION,
    SECOND,
    TINY,
    apple_detector,
    apple_image,
    apple_second,
    load_apple_weights,
    randomize,
    randomize_norms,
)
from tests.test_preprocess import photos

MODELS = {
    "backbone": lambda: MobileViT(DEEP),
    "classification": lambda: MobileViTClassifier("xxs", num_classes=5),
    "segmentation": lambda: DeepLabV3(TINY, num_classes=3),
    "detection": lambda: SSDLite(DEEP, num_classes=4),
}


def built(name):
    torch.manual_seed(0)
    return fuse(randomize(MODELS[name]()).eval())


def assert_same(found, expected):
    found, expected = ((one,) if isinstance(one, torch.Tensor) else one for one in (found, expected))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.fixture(scope="module")
def engine():
    """A small one, which others copy."""
    return OpenVINO(built("backbone"), torch.rand(2, 3, 64, 70))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        pytest.param(name, runtime, marks=[] if (name, runtime) == ("backbone", "openvino") else pytest.mark.long)
        for name in MODELS
        for runtime in RUNTIMES
    ],
)
def test_answers(name, runtime):
    """At 128 px, too, where OpenVINO's own kernels of attention are 1e-3 away."""
    model = built(name)
    run = RUNTIMES[runtime](model, torch.rand(1, 3, 128, 128))
    for shape in ((1, 3, 128, 128), (2, 3, 70, 96)):
        image = torch.rand(shape).to(memory_format=torch.channels_last)
        assert_same(run(image), model(image))


def loaded(model, weights):
    load_checkpoint(model, weights)
    return model.eval()


def golden_classifier():
    model = MobileViTClassifier("xxs")
    load_apple_weights(model)
    return model.eval()


GOLDEN = {
    "classification": golden_classifier,
    "detection": lambda: loaded(SSDLite("xxs"), apple_detector()),
    "second version, classification": lambda: loaded(MobileViTV2Classifier(0.5), apple_second("classification")),
    "second version, detection": lambda: loaded(SSDLite("v2-0.5"), apple_second("detection")),
    "second version, segmentation": lambda: loaded(
        DeepLabV3("v2-0.5", align_corners=True, aux_channels=128), apple_second("segmentation")
    ),
}
CASES = {
    "classification": APPLE["cases"][1],
    "detection": DETECTION["cases"][0],
    **{f"second version, {task}": SECOND[task]["cases"][0] for task in SECOND},
}


@pytest.mark.long
@torch.inference_mode()
@pytest.mark.parametrize("how", ["eager", "compile", *RUNTIMES])
@pytest.mark.parametrize("task", GOLDEN)
def test_goldens(task, how):
    """The outputs of Apple's own implementation, within 1e-4 of the largest."""
    model, case = GOLDEN[task](), CASES[task]
    image = torch.from_numpy(apple_image(case["seed"], case["shape"])).float()
    fast = optimize(model, image, engine=how)
    assert fast.engine == {"compile": "compiled"}.get(how, how)
    outputs = fast(image)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    names = [name for name in ("logits", "confidences", "locations", "out") if name in case]
    assert len(names) == len(outputs)
    for name, values in zip(names, outputs, strict=True):
        sample = values.flatten()[case[name]["sample_index"]]
        assert (sample - torch.tensor(case[name]["sample"])).abs().max() <= 1e-4 * values.abs().max()


@pytest.mark.long
@torch.inference_mode()
def test_threads(engine):
    """Eight threads get what one gets."""
    images = [torch.rand(2, 3, 64, 70) for _ in range(24)]
    expected = [engine(image).clone() for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for one, other in zip(pool.map(engine, images), expected, strict=True):
                assert torch.equal(one, other)


@pytest.mark.long
@torch.inference_mode()
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"]
)
def test_copies(engine, duplicate):
    other, image = duplicate(engine), torch.rand(2, 3, 64, 70)
    assert other.model is not engine.model
    assert_same(other(image), engine(image))


@pytest.mark.long
@torch.inference_mode()
def test_sizes_are_bounded(engine, monkeypatch):
    """What comes after the last is run by PyTorch, and translated no more."""
    other = copy.deepcopy(engine)
    monkeypatch.setattr(runtimes, "_SIZES", 1)
    other(torch.rand(2, 3, 64, 70))
    monkeypatch.setattr(other, "translate", lambda x: pytest.fail("translated again"))
    for image in (torch.rand(1, 3, 40, 40), torch.rand(2, 3, 64, 70)):
        assert_same(other(image), other.model(image))


def test_wrong_answers_are_refused(engine, monkeypatch):
    def translate(self, x):
        yield lambda: lambda image: [self.model(image).numpy() * 1.001], 1e-4

    monkeypatch.setattr(OpenVINO, "translate", translate)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"1\.0e-03 of the largest"):
        OpenVINO(engine.model, torch.rand(1, 3, 64, 70))


@torch.inference_mode()
def test_wrong_answers_at_another_size_are_pytorchs(engine, monkeypatch):
    """Told once, and right."""
    other, image = copy.deepcopy(engine), torch.rand(1, 3, 40, 40)

    def wrong():
        return lambda image: [other.model(image).numpy() * 1.001]

    monkeypatch.setattr(other, "translate", lambda x: [(wrong, 1e-5), (wrong, 1e-4)])
    with pytest.warns(UserWarning, match=r"openvino does not run \(1, 3, 40, 40\).*1\.0e-03"):
        assert torch.equal(other(image), other.model(image))
    assert torch.equal(other(image), other.model(image))


@torch.inference_mode()
def test_a_way_that_is_wrong_is_passed_over(engine, monkeypatch):
    """The fastest is taken whose answers are PyTorch's but for rounding."""
    other, image = copy.deepcopy(engine), torch.rand(1, 3, 40, 40)
    ways = {factor: lambda factor=factor: lambda image: [other.model(image).numpy() * factor] for factor in (1.001, 1)}
    monkeypatch.setattr(other, "translate", lambda x: [(ways[1.001], 1e-5), (ways[1], 1e-4), (None, 0.0)])
    assert torch.equal(other(image), other.model(image))


class TestOptimize:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        """No compiler, and one runtime that is quick to make."""
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)

    @pytest.mark.long
    def test_auto_keeps_the_fastest(self, monkeypatch):
        model, image = built("backbone"), torch.rand(2, 3, 64, 70)
        monkeypatch.setattr("kornia_mvit.inference.engines.optimize.RUNTIMES", {"openvino": OpenVINO})
        given = {"eager": [3.0], "compiled": [2.0], "openvino": [1.0]}
        monkeypatch.setattr("kornia_mvit.inference.engines.optimize.time_in_turn", lambda *_, **__: given)
        fast = optimize(model, image)
        assert "kept it openvino on cpu" in fast.report
        assert fast.engine == "openvino"
        assert_same(fast(image), fast.model(image))
        assert_same(pickle.loads(pickle.dumps(fast))(image), fast(image))

    def test_what_is_left_out_is_told(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        fast = optimize(built("backbone"), torch.rand(1, 3, 64, 64))
        assert "left out openvino: the engine needs openvino; install kornia-mvit[export]" in fast.report
        assert "left out onnxruntime: the engine needs onnxruntime; install kornia-mvit[export]" in fast.report
        with pytest.raises(ImportError, match=r"kornia-mvit\[export\]"):
            optimize(built("backbone"), torch.rand(1, 3, 64, 64), engine="openvino")

    def test_exception(self):
        with pytest.raises(ValueError, match="openvino is made for each size"):
            optimize(built("backbone"), torch.rand(1, 3, 64, 64), engine="openvino", dynamic=True)
        with pytest.raises(ValueError, match=r"onnxruntime runs in float32.*float64"):
            optimize(built("backbone").double(), torch.rand(1, 3, 64, 64).double(), engine="onnxruntime")


@pytest.mark.long
@pytest.mark.parametrize("engine", ["eager", "compile", *RUNTIMES])
class TestGolden:
    """What Apple's own code answers, by every engine, within 1e-4 of the largest answer."""

    def check(self, values, golden):
        sample = torch.tensor(golden["sample"])
        assert list(values.shape) == golden["shape"]
        assert (values.flatten()[golden["sample_index"]] - sample).abs().max() <= 1e-4 * sample.abs().max()

    def test_classification(self, engine):
        model = MobileViTClassifier("xxs").eval()
        load_apple_weights(model)
        images = [torch.from_numpy(apple_image(case["seed"], case["shape"])).float() for case in APPLE["cases"]]
        fast = optimize(model, images[0], engine=engine)
        for case, image in list(zip(APPLE["cases"], images, strict=True))[: 1 if engine == "compile" else None]:
            self.check(fast(image), case["logits"])

    def test_detection(self, engine):
        model = SSDLite("xxs").eval()
        load_checkpoint(model, apple_detector())
        case = DETECTION["cases"][1]
        image = torch.from_numpy(apple_image(case["seed"], case["shape"])).float()
        logits, deltas = optimize(model, image, engine=engine)(image)
        self.check(logits, case["confidences"])
        self.check(deltas, case["locations"])


def uint8(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


class TestReadCalibration:
    def test_drawn_images(self):
        images = list(read_calibration(DRAWN, 3))
        assert [image.shape for image in images] == [(3, 256, 320)] * 3
        assert all(image.dtype == torch.uint8 for image in images)
        assert not torch.equal(images[0], images[1])

    def test_folder_paths_and_tensors(self, tmp_path):
        photo = photos()[0]
        for number in range(4):
            Image.fromarray(photo[:, : 60 + number, :50].permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
        files = sorted(tmp_path.iterdir())
        expected = [photo[:, : 60 + number, :50] for number in range(4)]
        for source in (
            tmp_path,
            str(tmp_path),
            files,
            map(str, files),
            expected,
            torch.stack([photo[:, :60, :50]] * 4),
        ):
            images = list(read_calibration(source))
            assert [image.shape[2] for image in images] == [50] * 4
            assert torch.equal(images[0], expected[0])
        assert [image.shape[1] for image in read_calibration(files, 2)] == [60, 62]

    def test_where_there_is_no_such_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (50, 40)).save("photo.jpg")
        with pytest.raises(DataError, match=r"photo.jpg is a file; give a folder of images, or .* \['photo.jpg'\]"):
            list(read_calibration("photo.jpg"))
        with pytest.raises(DataError, match="no such folder: nope"):
            list(read_calibration("nope"))
        (tmp_path / DRAWN).mkdir()
        with pytest.raises(DataError, match=f"no image in {DRAWN}"):
            list(read_calibration(DRAWN))

    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (5, TypeError, "5 holds no images; give a folder"),
            ([{"image": 1}], TypeError, "image 0 is a dict; give its path, or uint8 tensors"),
            (
                uint8(4, 64, 64, 3),
                ValueError,
                r"image 0 is torch.uint8 of \(64, 64, 3\); give .* image.permute\(2, 0, 1\)",
            ),
            ([uint8(3, 64, 64), uint8(1, 64, 64)], ValueError, r"\(3, H, W\); image 1 is torch.uint8 of \(1, 64, 64\)"),
            (uint8(3, 64, 64), ValueError, r"image 0 is torch.uint8 of \(64, 64\)"),
        ],
    )
    @pytest.mark.parametrize("name", ["backbone", "classification"])
    def test_exception(self, name, images, error, message):
        model = MODELS[name]()
        with pytest.raises(error, match=message):
            list(prepare_calibration(model, images))
        with pytest.raises(error, match=message):
            optimize(model, torch.rand(1, 3, 64, 64), precision="int8", calibration=images)


class TestInt8:
    @pytest.mark.long
    @pytest.mark.parametrize("name", ["classification", "segmentation", "detection"])
    def test_optimize(self, name, tmp_path):
        """Near float32 at the size it was made for and at another one; from images and from a folder of them."""
        model = randomize_norms(MODELS[name]()).eval()
        model.preprocess = Preprocess((64, 64))
        images = [photo[:, :120, :100] for photo in photos()[:3]]
        x = torch.cat([model.preprocess.module()(image[None]) for image in images[:2]])
        fast = optimize(model, x, precision="int8", calibration=images)
        assert fast.engine == "openvino int8"
        assert "quantised to int8 with 3 images" in fast.report
        assert set(fast.milliseconds) == {"openvino", "openvino int8"}
        larger = torch.cat([Preprocess((96, 80)).module()(image[None]) for image in images])
        for batch in (x, larger, x.double()):
            change = measure_change([model(batch.float())], [fast(batch)])
            assert 1e-5 < change.error < 0.2
        for number, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
        again = optimize(model, x, precision="int8", calibration=tmp_path, engine="openvino")
        assert measure_change([fast(x)], [again(x)]).error < 1e-3

    def test_change(self):
        before = torch.tensor([[3.0, 4.0], [4.0, 3.0]])
        change = measure_change([before, before], [before, before + torch.tensor([[0.0, 0.0], [0.0, 2.0]])])
        assert change == pytest.approx(((4 / 8) ** 0.5 / 12.5**0.5, 0.25))

    @pytest.mark.long
    def test_exception(self, monkeypatch):
        model, image = built("classification"), torch.rand(1, 3, 64, 64)
        settings = {"precision": "int8", "calibration": [torch.zeros(3, 64, 64, dtype=torch.uint8)]}
        with pytest.raises(ValueError, match="openvino int8 is made for each size"):
            optimize(model, image, dynamic=True, **settings)
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(ImportError, match=r"nncf; install kornia-mvit\[export\]"):
            optimize(model, image, **settings)


@pytest.mark.long
def test_predict(tmp_path):
    """The same answers as PyTorch's, from a checkpoint."""
    model = randomize(MobileViTClassifier(DEEP, num_classes=3)).eval()
    save_checkpoint(model, tmp_path / "model.pt")
    images = [torch.randint(0, 256, (3, 90, 70), dtype=torch.uint8) for _ in range(3)]
    found, expected = (predict(from_pretrained(tmp_path / "model.pt"), images, engine=e) for e in ("openvino", "eager"))
    assert (found.engine, found[:1].engine, expected.engine) == ("openvino", "openvino", "eager")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=0, atol=1e-4)


# Where each engine has a core of OpenVINO of its own, the process dies of the signal.
SIGNALS = """
import gc, os, signal, torch
from kornia_mvit.inference.engines.runtimes import OpenVINO
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
first, second = (OpenVINO(torch.nn.Linear(3, size), torch.rand(1, 3)) for size in (2, 3))
del first
gc.collect()
del second
gc.collect()
kept = [bytearray(30_000) for _ in range(200)]
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(told))
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals of POSIX")
def test_signals_after_engines_are_gone():
    """Engines that are closed in the order in which they were made leave signals as they were."""
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
