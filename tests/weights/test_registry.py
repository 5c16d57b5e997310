"""Published weights by name, models from files, folders and repositories, and downloads that break."""

import hashlib
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import nn

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, info
from kornia_mvit.weights import registry
from kornia_mvit.weights.cards import model_card
from kornia_mvit.weights.checkpoints import save_checkpoint
from kornia_mvit.weights.files import CheckpointError, write_checkpoint
from kornia_mvit.weights.registry import (
    class_names,
    download,
    find_weights,
    from_pretrained,
    list_weights,
    push_to_hub,
    save_pretrained,
)
from tests.weights.peers import PEERS, randomise
from tests.weights.test_checkpoints import SMALL, ours, same


class TestListWeights:
    def test_feature(self):
        counts = {task: len(list_weights(task)) for task in ("classification", "segmentation", "detection")}
        assert counts == {"classification": 44, "segmentation": 18, "detection": 10}
        assert len(list_weights()) == 72
        sizes = {"classification": (256, 256), "segmentation": (512, 512), "detection": (320, 320)}
        for name in list_weights():
            record = find_weights(name)
            second = record.mode.startswith("v2-")
            # Apple's code read the files of the first version's training as BGR
            assert (record.channel_order == "rgb") == (second or record.layout == "timm")
            assert record.preprocess.channel_order == "rgb"
            assert record.preprocess.output_size == ((384, 384) if name.endswith("_384") else sizes[record.task])
            short = f"{round(100 * float(record.mode[3:])):03d}" if second else record.mode
            assert f"mobilevit{'v2' if second else ''}_{short}." in name
            assert all(15 < score < 100 for score in record.score.values())
            # detection's classes are listed without their background
            assert len(class_names(record.classes)) == record.num_classes - (record.task == "detection")

    def test_second_version(self):
        """Addresses as Apple's model zoo has them, and what weights do not show."""
        root = "https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2/"
        for name, place in (
            ("mobilevitv2_075.apple_in1k", "classification/mobilevitv2/imagenet1k/256x256/mobilevitv2-0.75.pt"),
            (
                "mobilevitv2_150.apple_in21k_ft_in1k_384",
                "classification/mobilevitv2/imagenet21k_to_1k/384x384/mobilevitv2-1.5.pt",
            ),
            ("ssdlite_mobilevitv2_200.apple_coco", "detection/mobilevitv2/coco-ssd-mobilevitv2-2.0.pt"),
            (
                "deeplabv3_mobilevitv2_100.apple_ade20k",
                "segmentation/ade20k/mobilevitv2/deeplabv3-mobilevitv2-1.0.pt",
            ),
        ):
            assert find_weights(name).source == root + place
        assert find_weights("mobilevitv2_200.timm_in22k_ft_in1k_384").source == (
            "timm/mobilevitv2_200.cvnets_in22k_ft_in1k_384"
        )
        strides = {
            name: find_weights(name).arguments["output_stride"]
            for name in list_weights("segmentation")
            if find_weights(name).mode == "v2-1.0"
        }
        assert strides == {
            "deeplabv3_mobilevitv2_100.apple_voc": 16,
            "deeplabv3_mobilevitv2_100.apple_ade20k": 8,
            "deeplabv3_mobilevitv2_100.transformers_voc": 16,
        }

    def test_second_version_is_built(self, tmp_path, monkeypatch):
        """As a record says, from a file at its address."""
        name = "deeplabv3_mobilevitv2_050.apple_ade20k"
        save_checkpoint(randomise(DeepLabV3("v2-0.5", 150)), tmp_path / f"{name}.pt", "apple")
        monkeypatch.setattr(registry, "_fetch", lambda record: tmp_path / f"{record.name}.pt")
        model = from_pretrained(name)
        assert (model.backbone.feature_strides[-1], model.rates, model.align_corners) == (8, (12, 24, 36), True)
        assert (model.class_names[0], model.class_names[149]) == ("wall", "flag")
        assert model.preprocess == Preprocess(size=(512, 512))

    def test_exception(self):
        with pytest.raises(ValueError, match="of that name: mobilevit_m; nearest: mobilevit_"):
            from_pretrained("mobilevit_m")
        for name in ("nope", "nope" * 300):  # near to none: no list of all of them
            for read in (from_pretrained, info):
                with pytest.raises(CheckpointError, match=r"no such file .* that name: nope.*list_weights") as error:
                    read(name)
                assert len(str(error.value)) < 400
            with pytest.raises(ValueError, match=r"unknown weights 'nope.*list_weights") as error:
                find_weights(name)
            assert len(str(error.value)) < 400
        with pytest.raises(CheckpointError, match=r"no such checkpoint: nope.ckpt"):
            info("nope.ckpt")


class TestClassNames:
    def test_feature(self):
        assert [len(class_names(name)) for name in ("imagenet-1k", "coco", "voc", "ade20k")] == [1000, 80, 21, 150]
        assert class_names("imagenet-1k")[281] == "tabby"
        assert class_names("coco")[0] == "person"
        assert class_names("voc")[15] == "person"

    def test_exception(self):
        with pytest.raises(ValueError, match=r"'cifar'; available: 'ade20k', 'coco', 'imagenet-1k', 'voc'"):
            class_names("cifar")


class TestFromPretrained:
    @pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
    @pytest.mark.parametrize("mode", ["xxs", SMALL])
    def test_smoke(self, mode, suffix, tmp_path):
        path = tmp_path / f"a.{suffix}"
        model = randomise(MobileViTClassifier(mode, 3, in_channels=4, patch_size=(2, 3), output_stride=16))
        model.class_names, model.preprocess = ("a", "b", "c"), Preprocess(40, crop=32)
        save_checkpoint(model, path)
        again = from_pretrained(path)
        image = torch.rand(1, 4, 64, 64)
        with torch.no_grad():
            assert torch.equal(again(image), model(image))
        assert again.class_names == ("a", "b", "c")
        assert again.preprocess == Preprocess(40, crop=32)
        assert not again.training

    def test_exception(self, tmp_path):
        path = tmp_path / "a.ckpt"
        model = ours("native", num_classes=3)
        torch.save({"state_dict": {}}, path)
        with pytest.raises(CheckpointError, match=r"a\.ckpt holds no weights"):
            from_pretrained(path)
        write_checkpoint(model.state_dict(), path, {"format": 2, "version": "9.0"})
        with pytest.raises(CheckpointError, match=r"format 2.*9.0; update"):
            from_pretrained(path)
        write_checkpoint(model.state_dict(), path, model_card(MobileViTClassifier("xs", 3), None, None))
        with pytest.raises(CheckpointError, match=r"'xxs'.*'apple'.*'xs'"):
            from_pretrained(path)
        write_checkpoint(model.state_dict(), path, model_card(nn.Linear(1, 1), None, None))
        with pytest.raises(CheckpointError, match="network of its own"):
            from_pretrained(path)

    @pytest.mark.parametrize("layout", ["timm", "transformers", "apple"])
    def test_reads_files_of_others(self, layout, tmp_path):
        model = ours(layout)
        save_checkpoint(model, tmp_path / "a.pt", layout)
        with pytest.warns(UserWarning, match="preprocessing or class names; assuming Apple's"):
            again = from_pretrained(tmp_path / "a.pt", drop_path=0.1)
        assert same(model, again)
        assert again.preprocess == Preprocess(288, crop=256)
        assert again.class_names is None
        assert again.backbone.stages[1][1].drop_path.rate > 0

    @pytest.mark.parametrize(
        ("layout", "suffix"), [("native", "pt"), ("native", "safetensors"), ("timm", "safetensors")]
    )
    def test_a_file_for_bgr_gives_a_model_for_rgb(self, layout, suffix, tmp_path):
        model = ours("native")
        model.preprocess = Preprocess(40, crop=32)
        save_checkpoint(model, tmp_path / f"a.{suffix}", layout, channel_order="bgr")
        assert same(model, from_pretrained(tmp_path / f"a.{suffix}"))

    @pytest.mark.parametrize("layout", ["timm", "transformers", "apple"])
    def test_safetensors_of_others_keep_names_and_preprocessing(self, layout, tmp_path):
        model = ours(layout, num_classes=3)
        model.class_names, model.preprocess = ("a", "b", "c"), Preprocess(40, crop=32)
        save_checkpoint(model, tmp_path / "a.safetensors", layout)
        again = from_pretrained(tmp_path / "a.safetensors")
        assert same(model, again)
        assert again.class_names == ("a", "b", "c")
        assert again.preprocess == Preprocess(40, crop=32)

    def test_another_number_of_classes_and_channels(self, tmp_path):
        model = ours("native")
        model.class_names = tuple("abcdefg")
        save_checkpoint(model, tmp_path / "a.pt")
        again = from_pretrained(tmp_path / "a.pt", num_classes=3, in_channels=1)
        assert again(torch.rand(2, 1, 64, 64)).shape == (2, 3)
        assert again.class_names is None
        sums = model.backbone.stem.conv.weight.sum(1, keepdim=True)
        torch.testing.assert_close(again.backbone.stem.conv.weight, sums)

    def test_a_folder_of_transformers(self, tmp_path):
        """On a photo, with transformers' own processor and model as the other side: it flips channels, we do not."""
        from transformers import MobileViTImageProcessor

        peer = randomise(PEERS["transformers"]("xxs", 5))
        peer.config.id2label = {i: name for i, name in enumerate("vwxyz")}
        peer.save_pretrained(tmp_path)
        processor = MobileViTImageProcessor(
            size={"shortest_edge": 288}, crop_size={"height": 256, "width": 256}, resample=2, do_flip_channel_order=True
        )
        processor.save_pretrained(tmp_path)
        # 288 x 432 after the resize: where sizes are odd, transformers rounds them otherwise than torchvision and we do
        photo = torch.tensor(load_sample_image("china.jpg"))[:400, :600].permute(2, 0, 1)
        model = from_pretrained(tmp_path)
        with torch.no_grad():
            expected = peer(**processor(photo, return_tensors="pt")).logits
            logits = model(model.preprocess.module()(photo[None]))
        assert (logits - expected).abs().max() < 1e-4
        assert model.class_names == tuple("vwxyz")
        assert model.preprocess == Preprocess(288, crop=256)

    def test_exception_of_folder(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"model\.safetensors, pytorch_model\.bin"):
            from_pretrained(tmp_path)
        save_checkpoint(ours("timm"), tmp_path / "model.safetensors", "timm")
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
            from_pretrained(tmp_path)

    def test_offline(self, monkeypatch, tmp_path):
        """Neither cached nor to be had: the error says what to fetch and what to do with it."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(CheckpointError, match=r"someone/something .*give its folder"):
            from_pretrained("someone/something")


class TestSavePretrained:
    def test_there_and_back(self, tmp_path):
        model = ours("native", num_classes=3)
        model.class_names, model.preprocess = ("a", "b", "c"), Preprocess(40, crop=32)
        save_pretrained(model, tmp_path / "new")
        again = from_pretrained(tmp_path / "new")
        assert same(model, again)
        assert again.class_names == ("a", "b", "c")
        assert again.preprocess == Preprocess(40, crop=32)

    def test_push(self, monkeypatch):
        """What would be uploaded is what from_pretrained reads."""
        model, calls = ours("native", num_classes=3), []

        class Api:
            def __init__(self, token=None):
                calls.append(token)

            def create_repo(self, repository, exist_ok):
                calls.append((repository, exist_ok))

            def upload_folder(self, repo_id, folder_path, **arguments):
                calls.append((repo_id, arguments, same(model, from_pretrained(folder_path))))
                return "address"

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        assert push_to_hub(model, "me/mine", token="t", commit_message="m") == "address"
        assert calls == ["t", ("me/mine", True), ("me/mine", {"commit_message": "m"}, True)]


class Handler(BaseHTTPRequestHandler):
    """Serves one file, and cuts it off as often as it is told."""

    def __init__(self, state, *rest):
        self.state = state
        super().__init__(*rest)

    def do_GET(self):
        data, cut = self.state["data"], self.state["cuts"] > 0
        self.state["cuts"] -= 1
        self.state["count"] += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)

    def log_message(self, *rest):
        """Say nothing."""


@pytest.fixture
def server(tmp_path):
    write_checkpoint({"a": torch.rand(20_000)}, tmp_path / "served.pt")
    state = {"data": (tmp_path / "served.pt").read_bytes(), "cuts": 0, "count": 0}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state)) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/a.pt", state
        http.shutdown()
        thread.join()


class TestDownload:
    def test_once(self, server, tmp_path):
        address, state = server
        path = tmp_path / "cache" / "a.pt"
        for _ in range(2):
            assert download(address, path) == path
        assert path.read_bytes() == state["data"]
        assert state["count"] == 1
        assert sorted(p.name for p in path.parent.iterdir()) == ["a.pt", "a.pt.sha256"]

    def test_a_file_address(self, server, tmp_path):
        path = tmp_path / "cache" / "a.pt"
        sha256 = hashlib.sha256(server[1]["data"]).hexdigest()
        download((tmp_path / "served.pt").as_uri(), path, sha256)
        assert path.read_bytes() == server[1]["data"]

    def test_a_broken_transfer_leaves_nothing_and_starts_again(self, server, tmp_path):
        address, state = server
        state["cuts"] = 1
        path = tmp_path / "cache" / "a.pt"
        with pytest.raises(CheckpointError, match=r"broken off .*start again"):
            download(address, path)
        assert not path.parent.exists()
        download(address, path)
        assert path.read_bytes() == state["data"]

    def test_a_wrong_hash(self, server, tmp_path):
        path = tmp_path / "cache" / "a.pt"
        with pytest.raises(CheckpointError, match=r"sha256 [0-9a-f]{64}.*0000; it was removed"):
            download(server[0], path, "0000")
        assert list(path.parent.iterdir()) == []

    def test_a_file_that_changed(self, server, tmp_path):
        path = tmp_path / "cache" / "a.pt"
        download(server[0], path)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="removed, start again"):
            download(server[0], path)
        download(server[0], path)
        assert path.read_bytes() == server[1]["data"]

    def test_no_network(self, tmp_path):
        path = tmp_path / "cache" / "a.pt"
        with pytest.raises(CheckpointError, match=r"http://127.0.0.1:9/a.pt .* put it at .*a\.pt"):
            download("http://127.0.0.1:9/a.pt", path)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.network
class TestPublished:
    """The published weights themselves."""

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("xxs", (-1.9364, -1.2327, -0.4653)),
            ("xs", (-2.4761, -0.9399, -1.9587)),
            ("s", (-0.9866, 0.2392, -1.1241)),
        ],
    )
    def test_transformers_image(self, mode, expected, tmp_path):
        """Logits that transformers tests its own model with, on image 39769 of COCO's val2017."""
        from kornia_mvit.data.reading import read_image

        address = "http://images.cocodataset.org/val2017/000000039769.jpg"
        torch.hub.download_url_to_file(address, str(tmp_path / "cats.jpg"), progress=False)
        model = from_pretrained(f"mobilevit_{mode}.transformers_in1k")
        with torch.no_grad():
            logits = model(model.preprocess.module()(read_image(tmp_path / "cats.jpg")[None]))
        torch.testing.assert_close(logits[0, :3], torch.tensor(expected), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("mode", ["xxs", "xs", "s"])
    def test_all_sources_agree(self, mode):
        """Apple, timm and transformers publish the same weights."""
        image = torch.rand(1, 3, 256, 256)
        with torch.no_grad():
            logits = [
                from_pretrained(f"mobilevit_{mode}.{source}_in1k")(image)
                for source in ("apple", "timm", "transformers")
            ]
        for other in logits[1:]:
            torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=1e-4)
