"""Models in folders with a model card, and what is uploaded to the hub."""

import json
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import kornia_mvit
from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, Preprocess, SSDLite, from_pretrained, fuse, optimize
from kornia_mvit.weights.files import CheckpointError
from kornia_mvit.weights.hub import push_to_hub, save_pretrained
from tests.weights.peers import randomise
from tests.weights.test_checkpoints import SMALL

FILES = ["README.md", "config.json", "model.safetensors"]


def named(model):
    model.class_names, model.preprocess = ("red|`x`", "green\nblue", "# grey"), Preprocess((64, 64), std=(0.5,) * 3)
    return model


def equal(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Api:
    """Stands in for huggingface_hub.HfApi, and keeps what it is called with."""

    calls: ClassVar[list] = []

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, **options):
        loaded = from_pretrained(folder_path)
        content = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.calls.append(("upload", repo_id, options, loaded, content))
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(Api, "calls", [])
    return Api.calls


class TestSavePretrained:
    @pytest.mark.parametrize(
        "build",
        [
            lambda: named(MobileViTClassifier(SMALL, 3, in_channels=4)),
            lambda: named(DeepLabV3(SMALL, 3, aspp_channels=8)),
            lambda: named(SSDLite("xxs", 4)),
        ],
    )
    def test_there_and_back(self, build, tmp_path):
        model = randomise(build())
        model.save_pretrained(tmp_path)
        again = from_pretrained(tmp_path)
        assert type(again) is type(model)
        assert equal(model, again)
        assert (again.class_names, again.preprocess) == (model.class_names, model.preprocess)
        assert sorted(path.name for path in tmp_path.iterdir()) == FILES

    @pytest.mark.parametrize(
        "backbone",
        [
            MobileViT("xxs"),
            MobileViT("xxs", 1, 4, variant="kornia"),
            MobileViT(SMALL, output_stride=16, head_conv=False),
        ],
    )
    def test_backbone(self, backbone, tmp_path):
        backbone = randomise(backbone)
        backbone.save_pretrained(tmp_path)
        again = from_pretrained(tmp_path)
        assert equal(backbone, again.backbone)
        image = torch.rand(1, backbone.in_channels, 64, 64)
        with torch.no_grad():
            maps = backbone.eval()(image)
            assert torch.equal(again.backbone(image), maps)
            assert torch.equal(again(image), maps.mean((2, 3)))
        assert next(backbone.parameters()).device.type == "cpu"

    def test_model_card(self, tmp_path):
        save_pretrained(
            named(SSDLite("xxs", 4)),
            tmp_path,
            score={"mAP": 0.4321},
            score_source="validation split of shapes, 64 px",
            licence="apache-2.0",
        )
        text = (tmp_path / "README.md").read_text()
        front, body = text.split("---\n", 2)[1:]
        assert "pipeline_tag: object-detection\n" in front
        assert 'license: "apache-2.0"\n' in front
        assert "| mAP | 0.4321 |" in body
        assert "validation split of shapes, 64 px" in body
        assert "- size: [64, 64]" in body
        assert "- std: [0.5, 0.5, 0.5]" in body
        # as a block of text: a line a class, whatever is in its name
        assert "    0  red|`x`\n    1  green\\nblue\n    2  # grey\n" in body
        assert "3 classes" in body

    @pytest.mark.parametrize("absolute", [True, False])
    def test_its_line_of_code_loads_the_model(self, absolute, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model = randomise(named(MobileViTClassifier(SMALL, 3)))
        model.save_pretrained(tmp_path / "mine" if absolute else "mine")
        card = (tmp_path / "mine" / "README.md").read_text()
        assert str(tmp_path) not in card
        code = re.search(r"```python\n(.*?)results", card, re.DOTALL)
        scope = {}
        exec(code[1], scope)
        assert equal(model, scope["model"])

    def test_what_is_not_known(self, tmp_path):
        save_pretrained(MobileViTClassifier(SMALL, 3), tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert "license" not in text
        assert text.count("Not stated.") == 2  # preprocessing and score
        assert "names are not stated" in text

    def test_many_classes(self, tmp_path):
        model = MobileViTClassifier(SMALL, 300)
        model.class_names = tuple(f"class {n}" for n in range(300))
        save_pretrained(model, tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert "class 199\n" in text
        assert "class 200" not in text
        assert "100 more" in text
        assert len(json.loads((tmp_path / "config.json").read_text())["class_names"]) == 300

    def test_a_readme_of_another_kind_stays(self, tmp_path):
        (tmp_path / "README.md").write_text("my project")
        save_pretrained(MobileViTClassifier(SMALL, 3), tmp_path)
        assert (tmp_path / "README.md").read_text() == "my project"
        (tmp_path / "README.md").unlink()
        for classes in (3, 4):
            save_pretrained(MobileViTClassifier(SMALL, classes), tmp_path)
            assert f"\n{classes} classes" in (tmp_path / "README.md").read_text()


class TestPushToHub:
    def test_what_is_uploaded(self, calls):
        model = randomise(named(DeepLabV3(SMALL, 3, aspp_channels=8)))
        address = model.push_to_hub("me/mine", token="t", private=True, commit_message="m", score={"mIoU": 71.5})
        assert address == "https://huggingface.co/me/mine/commit/1"
        token, created, (_, repository, options, loaded, content) = calls
        assert token == ("token", "t")
        assert created == ("create", "me/mine", {"exist_ok": True, "private": True})
        assert (repository, options) == ("me/mine", {"commit_message": "m"})
        assert sorted(content) == FILES
        assert equal(model, loaded)
        card = content["README.md"].decode()
        assert 'from_pretrained("me/mine")' in card
        assert "# mine\n" in card
        assert "| mIoU | 71.5 |" in card
        assert json.loads(content["config.json"])["class_names"] == list(model.class_names)

    def test_backbone(self, calls):
        backbone = randomise(MobileViT(SMALL))
        backbone.push_to_hub("me/mine")
        assert calls[1] == ("create", "me/mine", {"exist_ok": True})
        assert equal(backbone, calls[2][3].backbone)
        assert b"image-feature-extraction" in calls[2][4]["README.md"]

    def test_a_model_that_cannot_be_saved_makes_no_repository(self, calls):
        with pytest.raises(TypeError, match="Linear is none of this package's models; pass a backbone"):
            push_to_hub(torch.nn.Linear(1, 1), "me/mine")
        assert not calls

    @pytest.mark.parametrize(
        "build",
        [
            lambda: MobileViTClassifier(SMALL, 3),
            lambda: DeepLabV3(SMALL, 3, aspp_channels=8),
            lambda: SSDLite("xxs", 3),
            lambda: MobileViT(SMALL),
        ],
    )
    def test_fused_copies_are_refused(self, build, calls, tmp_path):
        model = build().eval()
        fast = optimize(model, torch.rand(1, 3, 64, 64), engine="eager")
        for copy in (fuse(model), fast):
            for save in (lambda one=copy: one.save_pretrained(tmp_path), lambda one=copy: one.push_to_hub("me/mine")):
                with pytest.raises(ValueError, match="save or load the model that was given to optimize"):
                    save()
        with pytest.raises(ValueError, match="fused copy"):
            save_pretrained(fast, tmp_path)
        assert not calls
        assert not list(tmp_path.iterdir())
        model.save_pretrained(tmp_path)  # the model itself stays as it was


def test_the_prefix_of_the_hub(monkeypatch, tmp_path):
    model = randomise(MobileViTClassifier(SMALL, 3))
    model.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or tmp_path)
    for source in ("me/mine", "hf-hub:me/mine"):
        assert equal(model, kornia_mvit.from_pretrained(source))
    assert asked == ["me/mine"] * 2


def test_a_folder_that_is_not_there_is_no_repository(monkeypatch, tmp_path):
    """A mistyped run is told of as such, and nothing is asked for from the hub."""
    (tmp_path / "runs" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(CheckpointError, match=r"no such checkpoint: runs/foldr; did you mean runs/folder\?"):
        kornia_mvit.from_pretrained("runs/foldr")
