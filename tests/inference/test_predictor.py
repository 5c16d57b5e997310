"""``kornia_mvit.predict`` and its results: sources, pixels, streams, exported files."""

import http.server
import json
import subprocess
import sys
import threading
import types
from pathlib import Path

import av
import numpy
import pytest
import torch
from PIL import Image

from kornia_mvit import Predictor, from_pretrained, predict, save_checkpoint
from kornia_mvit.data.reading import DataError
from kornia_mvit.exporters import to_executorch, to_onnx, to_openvino, to_torchexport
from kornia_mvit.inference import sources
from kornia_mvit.inference.results import ClassificationResult, Results
from tests.cli.test_cli import run
from tests.exporters.scenes import TASKS, build, photos

PHOTO = photos()[0][:, :149, :150]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A photo of 149x150 pixels in a folder, beside a smaller one, and a checkpoint for each task."""
    root = tmp_path_factory.mktemp("predictor")
    (root / "photos").mkdir()
    for name, image in (("a.png", PHOTO), ("b.png", PHOTO[:, :90, :80])):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "photos" / name)
    for task in TASKS:
        save_checkpoint(build(task), root / f"{task}.ckpt")
    return root


def values(result):
    """What a result holds, as tensors."""
    return {name: value for name, value in vars(result).items() if isinstance(value, torch.Tensor)}


def assert_equal(results, others, atol=1e-5):
    assert len(results) == len(others)
    for one, other in zip(results, others, strict=True):
        assert one.size == other.size
        for name, value in values(one).items():
            torch.testing.assert_close(values(other)[name], value, rtol=1e-5, atol=atol)


class TestPredict:
    @pytest.mark.parametrize("task", TASKS)
    def test_in_the_photos_own_pixels_as_the_command_says(self, given, tmp_path, capsys, task):
        photo, checkpoint = given / "photos" / "a.png", given / f"{task}.ckpt"
        options = {"segmentation": ["--labels", tmp_path], "detection": ["--score", 0]}.get(task, [])
        status, out, _ = run(capsys, "predict", photo, "--checkpoint", checkpoint, *options)
        assert status == 0
        (result,) = predict(checkpoint, photo, score=0.0)
        row = json.loads(out)
        assert result.to_dict() == {name: value for name, value in row.items() if name != "labels"}
        assert (result.size, result.path, result.task) == ((149, 150), str(photo), task)
        if task == "segmentation":
            assert result.label_map.shape == (149, 150)
            assert result.label_map.dtype == torch.uint8
            with Image.open(row["labels"]) as image:
                assert torch.equal(torch.tensor(numpy.array(image)), result.label_map)
        elif task == "detection":
            assert 96 < result.boxes[:, 2].max() <= 150, "they are not in the pixels of the photo"
            assert result.names == [result.class_names[k] for k in result.labels.tolist()]

    @pytest.mark.parametrize("task", TASKS)
    def test_each_kind_of_source(self, given, task):
        predictor = Predictor(given / f"{task}.ckpt", score=0.0)
        (wanted,) = predictor(given / "photos" / "a.png")
        array = PHOTO.permute(1, 2, 0).numpy()
        for source in (
            str(given / "photos" / "a*.png"),
            Image.fromarray(array),
            array,
            PHOTO,
            PHOTO[None],
            [PHOTO],
            iter([str(given / "photos" / "a.png")]),
        ):
            assert_equal(predictor(source), [wanted])

    def test_folder_and_lists(self, given):
        predictor = Predictor(given / "detection.ckpt", score=0.0)
        results = predictor(given / "photos")
        assert [result.size for result in results] == [(149, 150), (90, 80)]
        assert_equal(predictor([PHOTO, given / "photos" / "b.png"]), results)
        assert_equal(list(predictor.stream(iter([PHOTO, PHOTO[:, :90, :80]]))), results)
        assert_equal(Predictor(given / "detection.ckpt", score=0.0, batch_size=1)(given / "photos"), results)

    def test_address(self, given, monkeypatch):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=given / "photos")

            def log_message(self, *_):
                pass

        monkeypatch.setenv("no_proxy", "127.0.0.1")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            predictor = Predictor(given / "classification.ckpt")
            results = predictor(f"{address}/a.png")
            assert_equal(results, predictor(PHOTO))
            assert results[0].path == f"{address}/a.png"
            with pytest.raises(DataError, match=r"cannot fetch http.*/none\.png"):
                predictor(f"{address}/none.png")
            monkeypatch.setattr(sources, "_LARGEST", 1000)
            with pytest.raises(DataError, match=r"a\.png is larger than"):
                predictor(f"{address}/a.png")
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def test_files_that_cannot_be_read(self, given, tmp_path):
        bad = tmp_path / "bad.png"
        bad.write_text("hello")
        files = [bad, given / "photos" / "a.png"]
        with pytest.warns(UserWarning, match=r"skipped: .*bad\.png"):
            results = predict(given / "classification.ckpt", files)
        assert [result.index for result in results] == [1]
        assert len(results.skipped) == 1
        assert str(bad) in results.skipped[0]
        with pytest.raises(DataError, match=r"bad\.png"):
            predict(given / "classification.ckpt", files, on_error="raise")
        with pytest.raises(DataError, match=r"bad\.png"):
            predict(given / "classification.ckpt", bad)
        seen = []
        with pytest.raises(DataError, match="none of the 2 images"):
            list(predict(given / "classification.ckpt", [bad, bad], stream=True, on_error=seen.append))
        assert len(seen) == 2

    def test_stream_reads_no_further_than_it_must(self, given):
        taken = []

        def images():
            for number in range(1000):
                taken.append(number)
                yield PHOTO

        stream = predict(given / "classification.ckpt", images(), stream=True, batch_size=2)
        next(stream)
        stream.close()
        assert len(taken) < 20

    def test_a_model_stays_as_it_is(self):
        model = build("classification").train()
        (result,) = predict(model, PHOTO)
        assert model.training
        assert not model._forward_hooks
        assert_equal(predict(model.eval(), PHOTO), [result])

    @pytest.mark.parametrize("task", TASKS)
    def test_test_time_augmentation_and_windows(self, given, task):
        predict(given / f"{task}.ckpt", PHOTO, tta="flip")
        if task == "segmentation":
            assert predict(given / f"{task}.ckpt", PHOTO, window=40, stride=30)[0].label_map.shape == (149, 150)

    @pytest.mark.parametrize(
        ("source", "options", "kind", "told"),
        [
            (PHOTO, {"window": 32}, ValueError, "is for classification; window"),
            (PHOTO, {"stride": 32}, ValueError, "pass window too"),
            (PHOTO, {"score": 2.0}, ValueError, r"score 2.0 is not in \[0, 1\]"),
            (PHOTO, {"batch_size": 0}, ValueError, "batch_size 0"),
            (PHOTO, {"engine": "steam"}, ValueError, "unknown engine 'steam'; available: 'auto'"),
            (PHOTO, {"device": "abacus"}, ValueError, "device 'abacus' cannot be used here"),
            (PHOTO, {"tta": "spin"}, ValueError, "unknown transforms spin"),
            (PHOTO, {"on_error": "stop"}, ValueError, "on_error 'stop'"),
            (7, {}, TypeError, "cannot predict a int"),
            ("ftp://a.b/c.png", {}, DataError.__base__, "is an address"),
            ("", {}, DataError, "is empty"),
            ("nothing*.png", {}, DataError, "no image matches nothing"),
            (numpy.zeros((3, 40, 50), "uint8"), {}, DataError, "torch.from_numpy"),
            (numpy.zeros((40, 50, 3)), {}, DataError, "array of float64"),
            (torch.zeros(40, 50, 3, dtype=torch.uint8), {}, DataError, r"permute\(2, 0, 1\)"),
            (torch.zeros(3, 40, 50, dtype=torch.int64), {}, DataError, "torch.int64"),
            (torch.zeros(4, 40, 50), {}, DataError, "4 channels"),
        ],
    )
    def test_exception(self, given, source, options, kind, told):
        with pytest.raises(kind, match=told):
            predict(given / "classification.ckpt", source, **options)

    def test_exception_of_models(self, tmp_path):
        with pytest.raises(TypeError, match="Linear is none of this package's models"):
            predict(torch.nn.Linear(3, 3), PHOTO)
        (tmp_path / "a.mlpackage").mkdir()
        with pytest.raises(ValueError, match="Apple"):
            predict(tmp_path / "a.mlpackage", PHOTO)

    def test_videos_without_pyav(self, given, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        (tmp_path / "a.mp4").write_bytes(b"")
        with pytest.raises(ImportError, match=r"PyAV.*kornia-mvit\[video\]"):
            predict(given / "classification.ckpt", tmp_path / "a.mp4")


class TestVideo:
    """With a pretended PyAV of frames that are known."""

    @pytest.fixture
    def video(self, tmp_path, monkeypatch):
        class Frame:
            rotation = 0

            def __init__(self, number):
                self.number = number

            def to_ndarray(self, format):
                assert format == "rgb24"
                return numpy.full((40, 50, 3), 10 * self.number, "uint8")

        class Container:
            streams = types.SimpleNamespace(video=[1])

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def decode(self, video):
                yield from (Frame(number) for number in range(5))
                raise OSError("damaged data")

        monkeypatch.setitem(sys.modules, "av", types.SimpleNamespace(open=lambda _: Container()))
        path = tmp_path / "clip.mp4"
        path.write_bytes(b"x")
        return path

    def test_frames(self, given, video, tmp_path):
        with pytest.warns(UserWarning, match=r"cannot read video .*clip\.mp4: damaged data"):
            results = predict(given / "detection.ckpt", video)
        assert [(result.frame, result.path) for result in results] == [(n, str(video)) for n in range(5)]
        assert results[2].to_dict()["frame"] == 2
        assert [int(result.load()[0, 0, 0]) for result in (*results, results[1])] == [0, 10, 20, 30, 40, 10]
        assert [path.name for path in results.save(tmp_path)] == [f"000{n}_clip.png" for n in range(5)]

    def test_pyav(self, given, tmp_path):
        path = tmp_path / "clip.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for number in range(4):
                grey = numpy.full((64, 96, 3), 60 * number, "uint8")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
        results = predict(given / "classification.ckpt", path)
        assert [(result.frame, result.size) for result in results] == [(n, (64, 96)) for n in range(4)]
        assert [float(result.load().float().mean()) for result in results] == pytest.approx([0, 60, 120, 180], abs=4)

    def test_cut_off(self, given, tmp_path):
        path = tmp_path / "clip.mp4"
        path.write_bytes(b"ftyp" * 20)
        with (
            pytest.warns(UserWarning, match=r"skipped: cannot read video"),
            pytest.raises(DataError, match=r"cannot read video .*clip\.mp4"),
        ):
            predict(given / "classification.ckpt", path)


def test_exception_of_what_is_no_model(given):
    with pytest.raises(TypeError, match=r"a\.png is an image; the model comes first"):
        predict(given / "photos" / "a.png", given / "classification.ckpt")
    with pytest.raises(DataError, match=r"float64.*\* 255"):
        predict(given / "classification.ckpt", numpy.zeros((8, 8, 3)))


def test_task_of_training(given):
    """Predicts as its network does, with the names and the preprocessing that the task knows, and stays as it is."""
    network = from_pretrained(given / "classification.ckpt")
    wanted = predict(network, given / "photos")
    names, preprocess = network.class_names, network.preprocess
    network.class_names = network.preprocess = None
    task = types.SimpleNamespace(
        network=network, class_names=names, preprocess=preprocess, configure_optimizers=lambda: None
    )
    found = predict(task, given / "photos")
    assert found.to_dict() == wanted.to_dict()
    assert network.class_names is None


class TestResults:
    def test_sequence(self, given, tmp_path):
        results = predict(given / "detection.ckpt", given / "photos", score=0.0)
        assert isinstance(results[:1], Results)
        assert json.loads(results.json()) == results.to_dict()
        assert json.loads(results[0].json()) == results[0].to_dict()
        assert "2 images" in repr(results)
        assert [picture.size for picture in results.draw()] == [(150, 149), (80, 90)]
        assert [path.name for path in results.save(tmp_path)] == ["0000_a.png", "0001_b.png"]
        assert results[0].save(tmp_path / "mine.jpg") == tmp_path / "mine.jpg"
        with Image.open(tmp_path / "mine.jpg") as picture:
            assert picture.size == results[0].draw().size
        with pytest.raises(ValueError, match=r"mine\.jpg.*2 pictures.*folder"):
            results.save(tmp_path / "mine.jpg")
        rows = results.to_coco()
        assert len(rows) == sum(len(result.boxes) for result in results)
        assert {row["image_id"] for row in rows} == {0, 1}
        assert len(results[0].above(2.0).boxes) == 0

    def test_classification(self, given):
        (result,) = predict(given / "classification.ckpt", PHOTO.float() / 255)
        assert isinstance(result, ClassificationResult)
        assert result.probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert result.top[0] == (result.class_names[int(result.probabilities.argmax())], result.probabilities.max())
        assert result.draw().width > 300
        with pytest.raises(TypeError, match="result of classification"):
            result.to_coco()

    def test_supervision(self, given, monkeypatch):
        monkeypatch.setitem(sys.modules, "supervision", None)
        (boxes,) = predict(given / "detection.ckpt", PHOTO, score=0.0)
        with pytest.raises(ImportError, match="supervision"):
            boxes.to_supervision()
        fake = types.SimpleNamespace(Detections=dict, Classifications=dict)
        monkeypatch.setitem(sys.modules, "supervision", fake)
        assert boxes.to_supervision()["xyxy"].shape == boxes.boxes.shape
        (labels,) = predict(given / "segmentation.ckpt", PHOTO)
        found = labels.to_supervision()
        assert found["mask"].sum() == 149 * 150
        assert found["xyxy"].shape == (len(found["class_id"]), 4)
        (classes,) = predict(given / "classification.ckpt", PHOTO)
        assert classes.to_supervision()["confidence"].shape == (5,)


WRITERS = {"model.onnx": to_onnx, "model.xml": to_openvino, "model.pt2": to_torchexport, "model.pte": to_executorch}


def assert_same_answers(exported, checkpoint, image, score=0.2):
    """Equal to rounding; a decoded detector counts an anchor's likeliest class alone."""
    (wanted,), (found,) = (predict(model, image, score=score) for model in (checkpoint, exported))
    assert (found.size, found.class_names) == (wanted.size, wanted.class_names)
    if found.task == "classification":
        torch.testing.assert_close(found.probabilities, wanted.probabilities, rtol=0, atol=0.01)
    elif found.task == "segmentation":
        assert found.label_map.shape == wanted.label_map.shape
        assert (found.label_map == wanted.label_map).float().mean() > 0.98
    else:
        assert len(wanted.boxes) > 0
        count = min(len(wanted.boxes), len(found.boxes), 20)
        distance = (found.boxes[:count, None] - wanted.boxes).abs().amax(-1)
        distance[found.labels[:count, None] != wanted.labels] = torch.inf
        assert (distance.amin(1) < 2).float().mean() > 0.9


class TestExported:
    @pytest.mark.long
    def test_onnx(self, tmp_path):
        model = build("classification")
        path = to_onnx(model, tmp_path / "model.onnx")
        assert_equal(predict(path, [PHOTO, PHOTO[:, :90]]), predict(model, [PHOTO, PHOTO[:, :90]]), 1e-4)
        predict(path, PHOTO, tta="flip")
        with pytest.raises(ValueError, match="leave out device and engine"):
            predict(path, PHOTO, engine="compile")

    @pytest.mark.long
    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize("file", WRITERS)
    def test_the_same_answers_as_the_checkpoint(self, tmp_path, file, task):
        model = build(task)
        halves = ((True, False), (False, True)) if file == "model.onnx" else ()
        for prepare, decode in ((False, False), (True, True), *halves):
            size = {}
            if file == "model.pte" or (file == "model.pt2" and not prepare):  # which of any size begins at 65 px
                size["size"] = (160, 160) if prepare else (64, 96)
            path = WRITERS[file](model, tmp_path / file, with_preprocess=prepare, with_decode=decode, **size)
            assert_same_answers(path, model, PHOTO)
            if file == "model.xml":
                assert_same_answers(tmp_path, model, PHOTO)
            if prepare or decode:
                with pytest.raises(ValueError, match="for tta, export it without"):
                    predict(path, PHOTO, tta="flip")

    def test_not_of_this_package(self, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"hello")
        with pytest.raises(ValueError, match=r"a\.onnx is damaged, or not an ONNX file"):
            predict(tmp_path / "a.onnx", PHOTO)


# The peak of a process only grows, so that what ran before in this one would hide what is looked for.
PEAKS = """
import pathlib, resource, sys
from kornia_mvit import Predictor
from tests.exporters.scenes import build
folder = pathlib.Path(sys.argv[2])
files = [folder / ("bad.jpg" if number % 10 == 9 else "good.jpg") for number in range(300)]
predictor = Predictor(build(sys.argv[1]))
for count in (30, 300):
    bad = []
    answered = sum(1 for _ in predictor.stream(files[:count], on_error=bad.append))
    print(answered, len(bad), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_memory_of_a_stream_does_not_grow(tmp_path, task):
    """Of 300 photos of two megapixels as of 30, bad ones among them."""
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (1200, 1600, 3), "uint8"))
    picture.save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_text("hello")
    argv = [sys.executable, "-c", PEAKS, task, str(tmp_path)]
    said = subprocess.run(argv, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True).stdout
    few, many = ([int(number) for number in line.split()] for line in said.splitlines())
    assert (few[:2], many[:2]) == ([27, 3], [270, 30])
    assert many[2] - few[2] < 60, (few, many)
