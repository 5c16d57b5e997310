"""The command line: what it prints, and that errors take one line."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from kornia_mvit import MobileViTClassifier, SSDLite, __version__, list_weights, save_checkpoint
from kornia_mvit.cli import main
from kornia_mvit.inference import sources
from kornia_mvit.training import demo, find_recipe, list_recipes
from kornia_mvit.training.recipe_cli import build_cli
from kornia_mvit.weights.registry import find_weights, from_pretrained
from tests.data.test_datamodules import make_folder
from tests.weights.test_files import Trace

FAST = [
    "--model.image_size=32",
    "--data.batch_size=4",
    "--data.num_workers=0",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of images, and the checkpoint of a fit on it."""
    root = tmp_path_factory.mktemp("cli")
    data = make_folder(root / "data", count=6, size=(60, 50))
    recipe = str(without_report("folder", root))
    assert main(["fit", "--config", recipe, f"--data.root={data}", f"--trainer.default_root_dir={root}", *FAST]) == 0
    (checkpoint,) = root.rglob("last.ckpt")
    return data, checkpoint


def without_report(recipe, folder):
    """A recipe that draws no report, which takes as long as all else that these runs do."""
    text = find_recipe(recipe).read_text()
    lean = text.replace("    - class_path: kornia_mvit.training.Report\n", "")
    assert lean != text
    path = folder / f"{recipe}.yaml"
    path.write_text(lean)
    return path


def run(capsys, *arguments):
    status = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class TestFit:
    def test_smoke(self, trained):
        _, checkpoint = trained
        assert checkpoint.is_file()
        assert (checkpoint.parent / "config.yaml").is_file()

    @pytest.mark.parametrize("command", ["validate", "test"])
    def test_evaluation_needs_a_checkpoint(self, command, capsys):
        status, _, err = run(capsys, command, "--config=digits")
        assert status == 2
        assert err == f"kornia-mvit: error: {command} needs a checkpoint: --checkpoint FILE, one that fit wrote\n"

    @pytest.mark.parametrize(
        ("option", "shown"),
        [
            ("--model.help", "--model.init_args.learning_rate"),
            ("--data.help", "--data.init_args.on_error"),
            ("--data.help=DigitsData", "--data.init_args.seed"),
            ("--data.help=ShardData", "--data.init_args.shuffle_buffer"),
        ],
    )
    def test_help_of_task_and_data(self, option, shown, capsys):
        status, text, _ = run(capsys, "fit", option)
        assert status == 0
        assert "known subclasses" not in " ".join(text.split())
        assert shown in text or shown.replace(".init_args", "") in text

    def test_help_is_of_the_recipe(self, capsys):
        for recipe, shown in (("camvid", "--model.dice_weight"), ("bccd", "--model.letterbox"), ("digits", "teacher")):
            status, text, _ = run(capsys, "fit", "--config", recipe, "--model.help")
            assert status == 0
            assert shown in text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model.imagesize=64"], "there is no option --model.imagesize; did you mean --model.image_size?"),
            (["--data.batchsize", "3"], "there is no option --data.batchsize; did you mean --data.batch_size?"),
            (["--data.zzz=3"], "there is no option --data.zzz"),
            (["--model.image_size=64x80"], "--model.image_size is 64x80; expected int"),
            (["--model.learning_rate", "fast"], "--model.learning_rate is fast; expected float"),
            (["--trainer.max_epochs=ten"], "--trainer.max_epochs is ten; expected int"),
            (["--modl.x", "3"], "there is no option --modl.x; did you mean --model.x?"),
            (
                ["--trainer.max_epoc.x", "3"],
                "there is no option --trainer.max_epoc.x; did you mean --trainer.max_epochs?",
            ),
            (["photos"], "the images are photos and --data.root x; give one of them"),
            (["--epoch", "3"], "there is no option --epoch; did you mean --epochs?"),
            (["--image_sise=3"], "there is no option --image_sise; did you mean --image_size?"),
            (["--batch-size"], "--batch-size needs a value"),
            (["--trainer.logger=CSVLogger"], "pytorch_lightning.loggers.CSVLogger needs --trainer.logger.save_dir"),
            (["--trainer.callbacks.class_path=x"], "--trainer.callbacks.class_path is x; expected the name of a class"),
        ],
    )
    def test_a_wrong_option_is_one_line(self, arguments, message, capsys):
        status, _, err = run(capsys, "fit", "--config=folder", "--data.root=x", *arguments)
        assert status == 2
        assert err.splitlines()[-1] == f"kornia-mvit: error: {message}"
        assert "usage" not in err

    def test_a_pair_is_asked_for_by_example(self, capsys):
        _, _, err = run(capsys, "fit", "--config=camvid", "--data.root=x", "--model.image_size=64x80")
        assert "--model.image_size is 64x80; expected int or tuple, such as '[64, 80]'" in err

    @pytest.mark.parametrize("command", ["fit", "validate"])
    def test_without_a_recipe(self, command, capsys):
        status, _, err = run(capsys, command, "--data.root=x", "--checkpoint=y")
        assert status == 2
        assert err.startswith(f"kornia-mvit: error: {command} needs a folder of images or a recipe")
        assert "bccd, camvid" in err

    @pytest.mark.long
    @pytest.mark.parametrize("command", ["validate", "test"])
    def test_evaluates(self, command, trained, tmp_path, capsys):
        data, checkpoint = trained
        for name in ("train", "val", "test"):
            (tmp_path / name).symlink_to(data)
        arguments = [f"--data.root={tmp_path}", "--checkpoint", checkpoint, f"--trainer.default_root_dir={tmp_path}"]
        status, out, _ = run(capsys, command, "--config=folder", *arguments, *FAST)
        assert status == 0
        assert f"{command.replace('validate', 'val')}/accuracy" in out

    @pytest.mark.long
    def test_evaluates_what_the_checkpoint_holds(self, tmp_path, capsys):
        """A network that the recipe does not name, be it timm's or of the size that training started from."""
        data = make_folder(tmp_path / "data", count=4)
        common = [f"--data.root={data}", f"--trainer.default_root_dir={tmp_path}", *FAST]
        save_checkpoint(MobileViTClassifier("xs", 3), tmp_path / "xs.pt")
        for name, option in (
            ("folder", "--model.network=timm:mobilenetv3_small_050"),
            ("linear-probe", f"--model.weights={tmp_path / 'xs.pt'}"),
        ):
            recipe, folder = without_report(name, tmp_path), f"--trainer.default_root_dir={tmp_path / name}"
            resize = "--model.resize_size=32"
            assert run(capsys, "fit", "--config", recipe, *common, option, resize, folder)[0] == 0
            (path,) = (tmp_path / name).rglob("last.ckpt")
            status, out, err = run(capsys, "validate", "--config", recipe, *common, resize, "--checkpoint", path)
            assert status == 0, err
            assert "val/accuracy" in out

    @pytest.mark.long
    def test_a_checkpoint_does_not_undo_the_options(self, trained, tmp_path, capsys):
        """It brings the size that it was trained with; what is asked for beside it is done."""
        data, checkpoint = trained
        for name in ("train", "val"):
            (tmp_path / name).symlink_to(data)
        common = [f"--data.root={tmp_path}", "--checkpoint", checkpoint, f"--trainer.default_root_dir={tmp_path}"]
        fast = [option for option in FAST if "image_size" not in option]
        assert len(fast) < len(FAST)
        recipe = ["--config", without_report("folder", tmp_path)]
        plain = run(capsys, "validate", *recipe, *common, *fast)[1]
        options = ["--model.per_class", "true", "--model.tta=flip"]
        with_options = run(capsys, "validate", *recipe, *common, *fast, *options)[1]
        assert "val/accuracy/cat" in with_options
        assert "val/accuracy/cat" not in plain
        text = recipe[1].read_text().replace("    mode: xxs\n", "    mode: xxs\n    per_class: true\n")
        (tmp_path / "mine.yaml").write_text(text)
        mine = ["--config", tmp_path / "mine.yaml"]
        assert "val/accuracy/cat" in run(capsys, "validate", *mine, *common, *fast)[1]  # a recipe's own, too

    @pytest.mark.long
    def test_goes_on_with_the_settings_of_the_last_checkpoint(self, tmp_path, capsys):
        data = make_folder(tmp_path / "data", count=4)
        folder = ["--config", without_report("folder", tmp_path), f"--data.root={data}"]
        folder += [f"--trainer.default_root_dir={tmp_path / 'run'}"]
        assert run(capsys, "fit", *folder, *FAST)[0] == 0
        fast = [option for option in FAST if "image_size" not in option]
        fast = [option.replace("max_epochs=1", "max_epochs=2") for option in fast]
        status, _, err = run(capsys, "fit", *folder, *fast, "--ckpt_path=last")
        assert status == 0, err
        saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        assert saved["epoch"] == 1
        assert saved["hyper_parameters"]["image_size"] == 32

    def test_resumes(self, trained, tmp_path):
        """In the folder of the checkpoint, wherever a new run would go."""
        data, checkpoint = trained
        recipe, copy = str(without_report("folder", tmp_path)), tmp_path / "run"
        shutil.copytree(checkpoint.parent, copy, ignore=shutil.ignore_patterns("data"))
        arguments = [
            f"--data.root={data}",
            f"--ckpt_path={copy / 'last.ckpt'}",
            f"--trainer.default_root_dir={tmp_path}",
        ]
        assert main(["fit", "--config", recipe, *arguments, *FAST, "--trainer.max_epochs=2"]) == 0
        assert torch.load(copy / "last.ckpt", weights_only=True)["epoch"] == 1
        assert not (tmp_path / "last.ckpt").exists()

    def test_resumes_a_finished_run(self, trained, capsys):
        data, checkpoint = trained
        arguments = [f"--data.root={data}", "--ckpt_path=last", f"--trainer.default_root_dir={checkpoint.parent}"]
        status, out, err = run(capsys, "fit", "--config=folder", *arguments, *FAST)
        assert status == 0, err
        assert f"resuming from {checkpoint}" in out

    @pytest.mark.parametrize("command", ["fit", "validate", "test"])
    def test_help_is_a_page(self, command, capsys):
        status, text, _ = run(capsys, command, "--help")
        assert status == 0
        assert len(text.splitlines()) < 55
        assert f"example:\n  kornia-mvit {command} photos" in text
        assert max(map(len, text.splitlines())) <= 120
        assert all(f"  {name} " in text for name in list_recipes())
        assert "--data.root DIR" in text

    def test_help_of_all_options(self, capsys):
        status, text, _ = run(capsys, "fit", "--help", "all")
        assert status == 0
        assert "--trainer.max_epochs" in text
        assert "known subclasses" not in text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "fit needs a folder of images or a recipe: kornia-mvit fit DIR, or --config RECIPE"),
            (["a b"], "no such folder: a b"),
            (["a", "b"], "b is no option, and a is the folder already"),
            (["--epochs", "3"], "fit needs a folder of images or a recipe: kornia-mvit fit DIR"),
            (["--config", "digits", "--trainer.precision", "x"], "--trainer.precision is x; expected 32-true or "),
            (["--config", "digits", "--checkpoint", "."], ". is a folder; give a file in it"),
            (["--config", "digits", "--checkpoint", "ftp://a/b"], "ftp://a/b is an address"),
            (["--config", "digits", "--trainer.default_root_dir", __file__], f"{__file__} is a file, and a folder is"),
            (["--config", "digit"], "no recipe or file 'digit'; recipes: bccd, camvid, coco-ssdlite, digits"),
            (["--config=digit"], "no recipe or file 'digit'; recipes: bccd, camvid, coco-ssdlite, digits"),
            (["--config", "folder", "--data.root", "nowhere"], "no such folder: nowhere"),
            (["--config", "digits", "--model.mode", "m"], "unknown mode 'm'; available: 'xxs', 'xs', 's'"),
            (["--config", "digits", "--model.variant", "b"], "unknown variant 'b'; available: 'apple', 'kornia'"),
            (
                ["--config", "digits", "--trainer.accelerator", "abacus"],
                "You selected an invalid accelerator name: `accelerator='abacus'`",
            ),
            (["--config", "digits", "--ckpt_path", "nowhere.ckpt"], "no such checkpoint: nowhere.ckpt"),
        ],
    )
    def test_exception(self, arguments, message, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        status, _, err = run(capsys, "fit", *arguments)
        assert status == 2
        line = err.strip().splitlines()[-1]
        assert line.startswith(f"kornia-mvit: error: {message}")
        assert "Traceback" not in err

    @pytest.mark.parametrize("form", [["--ckpt_path", "{}"], ["--ckpt_path={}"]])
    @pytest.mark.parametrize("command", ["fit", "validate"])
    def test_a_checkpoint_that_would_run_code(self, command, form, tmp_path, capsys):
        path, trace = tmp_path / "a.ckpt", tmp_path / "ran"
        torch.save({"state_dict": {}, "x": Trace(trace)}, path)
        status, _, err = run(capsys, command, "--config=digits", *(part.format(path) for part in form))
        assert status == 2
        assert err.startswith(f"kornia-mvit: error: checkpoint {path} would run code when unpickled (posix.mkdir)")
        assert err.count("\n") == 1
        assert not trace.exists()

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_unreadable_image_is_named_in_one_line(self, workers, tmp_path, capsys):
        data = make_folder(tmp_path / "data", count=6)
        for path in data.rglob("*.png"):
            path.write_bytes(path.read_bytes()[:60])
        arguments = [f"--data.root={data}", f"--trainer.default_root_dir={tmp_path}", *FAST]
        status, _, err = run(capsys, "fit", "--config=folder", *arguments, f"--data.num_workers={workers}")
        assert status == 2
        line = err.strip().splitlines()[-1]
        assert line.startswith(("kornia-mvit: error: cannot read image", "kornia-mvit: error: not an image"))
        assert ".png" in line
        assert "Traceback" not in err


class TestPredict:
    def test_feature(self, trained, tmp_path, capsys):
        data, checkpoint = trained
        odd = tmp_path / "odd.png"
        Image.new("L", (33, 90), 7).save(odd)
        pictures = tmp_path / "pictures"
        status, out, _ = run(
            capsys, "predict", data / "cat", odd, "--checkpoint", checkpoint, "--draw", pictures, "--batch-size", 4
        )
        assert status == 0
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["path"] for row in rows] == [*(str(data / "cat" / f"{i}.png") for i in range(6)), str(odd)]
        for row in rows:
            assert row["class"] in ("cat", "dog")
            assert row["top"][0] == {"class": row["class"], "probability": row["probability"]}
            assert sum(entry["probability"] for entry in row["top"]) == pytest.approx(1, abs=1e-5)
        assert len(list(pictures.glob("*.png"))) == 7

    def test_does_not_depend_on_the_batch(self, trained, capsys):
        data, checkpoint = trained
        outs = []
        for n in (1, 5):
            _, out, _ = run(capsys, "predict", data, "--checkpoint", checkpoint, "--batch-size", n)
            outs.append([json.loads(line)["probability"] for line in out.splitlines()])
        assert outs[0] == pytest.approx(outs[1], abs=1e-5)

    def test_skips_what_cannot_be_read(self, trained, tmp_path, capsys):
        data, checkpoint = trained
        bad, good = tmp_path / "bad.png", data / "cat" / "0.png"
        bad.write_bytes(b"")
        status, out, err = run(capsys, "predict", bad, good, "--checkpoint", checkpoint, "--on-error", "skip")
        assert status == 0
        assert [json.loads(line)["path"] for line in out.splitlines()] == [str(good)]
        assert f"skipped: not an image, or of a format that Pillow cannot read: {bad}" in err

    def test_exception(self, trained, tmp_path, capsys):
        data, checkpoint = trained
        text = tmp_path / "a.ckpt"
        text.write_text("hello")
        cut = tmp_path / "cut.ckpt"
        cut.write_bytes(checkpoint.read_bytes()[:5000])
        image = data / "cat" / "0.png"
        for arguments, message in (
            ((image, "--checkpoint", text), f"{text} is not a PyTorch checkpoint"),
            ((image, "--checkpoint", cut), f"checkpoint {cut} is truncated"),
            ((image, "--checkpoint", tmp_path / "b.ckpt"), "no such checkpoint: "),
            ((image, "--checkpoint", checkpoint.parents[1]), "; give a file in it, such as "),
            ((image, "--checkpoint", ""), "the name of the weights is empty"),
            ((image, "--checkpoint", "https://a.b/c.pt"), "https://a.b/c.pt is an address"),
            (("http://127.0.0.1:9/c.png", "--checkpoint", checkpoint), "cannot fetch http://127.0.0.1:9/c.png"),
            (("ftp://a.b/c.png", "--checkpoint", checkpoint), "ftp://a.b/c.png is an address"),
            (("", "--checkpoint", checkpoint), "is empty"),
            ((image, "--checkpoint", checkpoint, "--draw", text), f"--draw {text} is a file; give a folder"),
            ((tmp_path / "no.png", "--checkpoint", checkpoint), "no such image: "),
            ((text, "--checkpoint", checkpoint), f"not an image, or of a format that Pillow cannot read: {text}"),
            ((image, "--checkpoint", checkpoint, "--top", 0), "--top 0"),
            ((image, "--checkpoint", checkpoint, "--device", "abacus"), "device 'abacus' cannot be used here"),
        ):
            status, out, err = run(capsys, "predict", *arguments)
            assert status == 2
            assert out == ""
            assert err.startswith("kornia-mvit: error: ")
            assert message in err
            assert err.count("\n") == 1

    def test_an_address(self, trained, tmp_path, capsys, monkeypatch):
        """Its label image, picture and boxes are called as the address ends."""
        data, checkpoint = trained
        photo = (data / "cat" / "0.png").read_bytes()
        monkeypatch.setattr(sources, "urlopen", lambda request, timeout: io.BytesIO(photo))
        address, pictures = "https://example.org/a%20b.png?size=3", tmp_path / "pictures"
        status, out, _ = run(capsys, "predict", address, "--checkpoint", checkpoint, "--draw", pictures)
        assert status == 0
        row = json.loads(out)
        assert row["path"] == address
        _, out, _ = run(capsys, "predict", data / "cat" / "0.png", "--checkpoint", checkpoint)
        assert row["probability"] == pytest.approx(json.loads(out)["probability"])
        assert [path.name for path in pictures.iterdir()] == ["0000_a b.png"]


class TestInfo:
    def test_smoke(self, trained, capsys):
        status, out, _ = run(capsys, "info")
        assert status == 0
        assert "1,272,024" in out
        assert "folder, folder-detection, folder-learned-ranges, folder-segmentation, imagenet-s" in out
        status, out, _ = run(capsys, "info", trained[1])
        assert status == 0
        assert "2: cat, dog" in out
        assert "Preprocess(size=32, crop=32" in out

    def test_licence_of_published_weights(self, capsys):
        for name in list_weights():
            status, out, _ = run(capsys, "info", name)
            assert status == 0
            assert f"licence     {find_weights(name).licence}\n" in out
            assert ("apple-amlr" in out) == (".transformers_" in name)


class TestConvert:
    def test_there_and_back(self, trained, tmp_path, capsys):
        """Our checkpoint as timm's and back predicts as it did; a native file keeps names and Preprocess."""
        _, checkpoint = trained
        timm, native = tmp_path / "timm.safetensors", tmp_path / "native.ckpt"
        status, out, _ = run(capsys, "convert", checkpoint, timm, "--to", "timm", "--to-order", "bgr")
        assert status == 0
        assert f"{checkpoint}: MobileViT xxs of 2 classes in layout 'native', under state_dict.network" in out
        assert f"{timm}: written in layout 'timm'" in out
        assert run(capsys, "convert", timm, native, "--to", "native")[0] == 0  # the file says that it is for BGR
        before, after = from_pretrained(checkpoint).state_dict(), from_pretrained(native).state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        assert run(capsys, "convert", checkpoint, native, "--to", "native")[0] == 0
        assert from_pretrained(native).class_names == ("cat", "dog")
        assert from_pretrained(native).preprocess == from_pretrained(checkpoint).preprocess
        status, out, _ = run(capsys, "info", timm)
        assert "layout      timm" in out
        assert "MobileViT xxs, variant apple, 951,666 parameters" in out
        assert "2: cat, dog" in out  # beside the tensors, where timm does not look
        bare = tmp_path / "timm.pt"
        status, out, _ = run(capsys, "convert", checkpoint, bare, "--to", "timm")
        assert "class names and preprocessing are not in it" in out
        status, out, err = run(capsys, "predict", trained[0] / "cat" / "0.png", "--weights", bare)
        assert status == 0
        assert "kornia-mvit: warning: " in err
        assert "says nothing of its preprocessing or class names" in err

    def test_detector(self, tmp_path, capsys):
        """Apple's names, ours and back; what a native file says of its anchors stays."""
        model = SSDLite("xxs", 3, widths=(8, 8, 8, 8, 8, 4), scales=(0.2, 0.9))
        model.class_names = ("cat", "dog")
        native, apple, again = (tmp_path / name for name in ("a.ckpt", "b.pt", "c.safetensors"))
        save_checkpoint(model, native)
        status, out, _ = run(capsys, "info", native)
        assert status == 0
        assert "task        detection" in out
        assert "classes     2 and the background: cat, dog" in out
        assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in out
        status, out, _ = run(capsys, "convert", native, apple, "--to", "apple")
        assert f"{native}: SSDLite on MobileViT xxs of 3 classes in layout 'native'" in out
        assert run(capsys, "convert", apple, again, "--to", "native")[0] == 0
        assert all(torch.equal(a, b) for a, b in zip(_state(again), model.state_dict().values(), strict=True))
        assert run(capsys, "convert", native, again, "--to", "native")[0] == 0
        assert from_pretrained(again).scales == (0.2, 0.9)
        assert from_pretrained(again).class_names == ("cat", "dog")

    def test_exception(self, tmp_path, capsys):
        text = tmp_path / "a.txt"
        text.write_text("hello")
        status, _, err = run(capsys, "convert", text, tmp_path / "b.pt", "--to", "timm")
        assert status == 2
        assert err == f"kornia-mvit: error: {text} is not a PyTorch checkpoint\n"
        save_checkpoint(MobileViTClassifier("xxs", 2), text.with_suffix(".pt"))
        status, _, err = run(capsys, "convert", text.with_suffix(".pt"), "https://a.b/c.pt", "--to", "timm")
        assert (status, err.count("\n")) == (2, 1)
        assert "https://a.b/c.pt is an address" in err
        status, _, err = run(capsys, "convert", "a", "b", "--to", "jax")
        assert status == 2
        assert err.startswith("kornia-mvit: error: --to is 'jax'; available: 'native', 'apple'")
        assert err.count("\n") == 1


def _state(path):
    return from_pretrained(path).state_dict().values()


class TestMain:
    def test_as_a_module(self):
        command = [sys.executable, "-W", "error", "-m", "kornia_mvit", "--version"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout == f"kornia-mvit {__version__}\n"
        assert result.stderr == ""

    def test_help(self, capsys):
        assert main([]) == 0
        text = capsys.readouterr().out
        for command in ("fit", "validate", "test", "predict", "convert", "demo", "info"):
            assert f"    {command} " in text


class TestDemo:
    @pytest.fixture(autouse=True)
    def short(self, monkeypatch):
        """One epoch of two batches, whatever the recipe says."""
        few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
        monkeypatch.setattr(demo, "build_cli", lambda argv, **how: build_cli([*argv, *few], **how))

    @pytest.mark.long
    def test_smoke(self, tmp_path, capsys):
        status, out, _ = run(capsys, "demo", "--output", tmp_path, "--epochs", 1)
        assert status == 0
        assert "of 360 digits kept apart are right" in out
        for name in ("augmented.png", "predictions.png", "digits.ckpt"):
            assert (tmp_path / name).is_file()
            assert str(tmp_path / name) in out
        status, out, _ = run(capsys, "info", tmp_path / "digits.ckpt")
        assert "10: 0, 1, 2" in out

    def test_files_are_listed_where_there_are_any(self, tmp_path):
        found = demo.DemoRun(tmp_path, 0.5, 10, 0, 6.0, tmp_path / "report" / "index.html")
        (tmp_path / "augmented.png").touch()
        (tmp_path / "digits.ckpt").touch()
        first, second = str(found).splitlines()[-2:]
        assert first == f"  {tmp_path / 'augmented.png'}  what the network saw while training"
        assert second == f"  {tmp_path / 'digits.ckpt'}    the weights, with class names and preprocessing"

    @pytest.mark.long
    def test_fewer_right_than_promised_is_a_failure(self, tmp_path, capsys):
        """As CI's `make demo` relies on; with --epochs nothing is promised, as above."""
        status, out, err = run(capsys, "demo", "--output", tmp_path)
        assert "of 360 digits kept apart are right" in out
        assert status == 1
        assert "97%" in err.splitlines()[-1]
