"""optimize: what it does, what it says, what it refuses."""

import re
import time

import pytest
import torch

from kornia_mvit import (
    CheckpointError,
    DeepLabV3,
    MobileViT,
    MobileViTClassifier,
    Preprocess,
    SSDLite,
    optimize,
    predict,
    save_checkpoint,
)
from kornia_mvit.inference.engines.optimize import _Slices, has_bfloat16
from tests.models.networks import DEEP, randomize


class TestOptimize:
    @pytest.mark.parametrize("build", [lambda: MobileViTClassifier("xxs", 4), lambda: DeepLabV3("xxs", 4)])
    def test_eager(self, build):
        model = randomize(build()).eval()
        x = torch.rand(2, 3, 64, 80)
        fast = optimize(model, x, engine="eager")
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
        assert "as asked" in fast.report
        assert "as asked" in repr(fast)
        assert not fast(x).requires_grad

    def test_passes_on_what_the_model_has(self):
        model = SSDLite("xxs", 4)
        fast = optimize(model, torch.rand(1, 3, 64, 64), engine="eager")
        logits, deltas = fast(torch.rand(1, 3, 64, 64))
        assert len(fast.decode(logits, deltas, (64, 64))) == 1
        with pytest.raises(AttributeError, match="nothing_such"):
            _ = fast.nothing_such

    @pytest.fixture(autouse=True)
    def _alone(self, monkeypatch):
        """Without other runtimes, which tests/inference/test_runtimes.py has."""
        monkeypatch.setattr("kornia_mvit.inference.engines.optimize.RUNTIMES", {})

    def test_auto_keeps_the_faster(self, monkeypatch):
        """With times given out; that the real ones decide is a matter of the benchmark."""
        model = randomize(MobileViT(DEEP)).eval()
        x = torch.rand(2, 3, 64, 70)
        monkeypatch.setattr(torch, "compile", lambda network, **_: lambda image: network(image) + 1)
        with torch.no_grad():
            expected = model(x)
        for times, kept in (({"eager": 1.0, "compiled": 2.0}, "eager"), ({"eager": 2.0, "compiled": 1.0}, "compiled")):
            given = {name: [taken / 1e3] for name, taken in times.items()}
            monkeypatch.setattr("kornia_mvit.inference.engines.optimize.time_in_turn", lambda *_, t=given, **__: t)
            fast = optimize(model, x)
            assert f"kept it {kept} on cpu" in fast.report
            torch.testing.assert_close(fast(x), expected + (kept == "compiled"), rtol=1e-4, atol=1e-4)
            assert fast.milliseconds == pytest.approx(times)

    def test_times_are_medians_in_milliseconds(self, monkeypatch):
        given = {"eager": [0.002, 0.001, 9.0], "compiled": [0.004, 0.003, 0.005]}
        monkeypatch.setattr("kornia_mvit.inference.engines.optimize.time_in_turn", lambda *_, **__: given)
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)
        fast = optimize(randomize(MobileViT(DEEP)).eval(), torch.rand(2, 3, 64, 70))
        assert fast.milliseconds == pytest.approx({"eager": 2.0, "compiled": 4.0})

    def test_the_slower_is_not_kept(self, monkeypatch):
        """With times as measured."""

        def slow(network, **_):
            return lambda image: (time.sleep(0.05), network(image))[1]

        monkeypatch.setattr(torch, "compile", slow)
        fast = optimize(randomize(MobileViT(DEEP)).eval(), torch.rand(1, 3, 32, 32))
        assert 0 < fast.milliseconds["eager"]
        assert fast.milliseconds["compiled"] >= 50
        assert ("kept it eager" in fast.report) == (fast.milliseconds["eager"] < fast.milliseconds["compiled"])

    def test_where_nothing_compiles(self, monkeypatch):
        def refuse(*_, **__):
            def run(_):
                raise RuntimeError("no compiler\nat all")

            return run

        monkeypatch.setattr(torch, "compile", refuse)
        model, x = randomize(MobileViT(DEEP)).eval(), torch.rand(2, 3, 64, 70)
        fast = optimize(model, x)
        assert "left out compiled: it cannot be compiled here (no compiler)" in fast.report
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match="no compiler"):
            optimize(model, x, engine="compile")

    @pytest.mark.long
    def test_compiles(self):
        model, x = randomize(MobileViTClassifier(DEEP, 4)).eval(), torch.rand(3, 3, 128, 128)
        fast = optimize(model, x)
        assert set(fast.milliseconds) >= {"eager", "compiled"}
        with torch.no_grad():
            for image in (x, torch.rand(2, 3, 70, 96)):
                torch.testing.assert_close(fast(image), model(image), rtol=1e-4, atol=1e-4)

    @pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16 instructions")
    def test_bfloat16(self):
        model, x = randomize(MobileViT(DEEP)).eval(), torch.rand(2, 3, 64, 70)
        fast = optimize(model, x, engine="eager", precision="bf16")
        assert fast(x).dtype == torch.float32
        with torch.no_grad():
            assert (fast(x) - model(x)).abs().max() < 0.1 * model(x).abs().max()

    def test_bfloat16_without_instructions(self, monkeypatch):
        monkeypatch.setattr("kornia_mvit.inference.engines.optimize.has_bfloat16", lambda: False)
        model, image = MobileViT(DEEP), torch.rand(1, 3, 64, 64)
        with pytest.raises(ValueError, match=r"precision 'bf16' .* no bfloat16 instructions .* leave precision out"):
            optimize(model, image, precision="bf16")
        with pytest.raises(ValueError, match=r"dtype torch.bfloat16 .* leave dtype out"):
            optimize(model, image, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match="on this CPU; leave precision out"):
            optimize(model, image, precision="fp16")
        monkeypatch.setattr("kornia_mvit.inference.engines.optimize.has_bfloat16", lambda: True)
        with pytest.raises(ValueError, match="take 'bf16' or leave precision out"):
            optimize(model, image, precision="fp16")

    def test_old_name(self):
        with pytest.warns(DeprecationWarning, match="mode is now engine"):
            fast = optimize(MobileViT(DEEP), torch.rand(1, 3, 64, 64), mode="eager")
        assert fast.engine == "eager"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"engine": "fastest"}, "unknown engine .fastest.; available: .auto."),
            ({"engine": "reduce-overhead"}, "CUDA graphs, and the model is on cpu"),
            ({"dtype": torch.float16}, "dtype torch.float16 is slower .* leave dtype out"),
            ({"precision": "fp16"}, "precision 'fp16' is slower .* leave precision out"),
            ({"dtype": torch.int8}, "precision='int8'"),
            ({"precision": "int4"}, "unknown precision 'int4'; available: .*'int8'"),
            ({"precision": "bf16", "dtype": torch.float64}, "precision is 'bf16' and dtype is torch.float64"),
            ({"precision": "int8"}, "needs calibration"),
            ({"calibration": []}, "precision='int8'"),
            ({"precision": "int8", "calibration": []}, "no calibration images"),
            ({"precision": "int8", "calibration": [torch.rand(3, 9, 9)]}, r"image 0 is torch.float32 of \(3, 9, 9\)"),
            ({"precision": "int8", "calibration": [], "engine": "compile"}, "'compile' has no int8; take 'openvino'"),
            ({"example": torch.zeros(3, 64, 64)}, r"shape \(3, 64, 64\); give images of shape"),
            ({"example": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "torch.uint8; give .* model.preprocess"),
            ({"example": torch.zeros(1, 3, 64, 64, device="meta")}, "on meta and the model on cpu"),
        ],
    )
    def test_exception(self, settings, message):
        with pytest.raises(ValueError, match=message):
            optimize(MobileViT(DEEP), **({"example": torch.rand(1, 3, 64, 64)} | settings))

    def test_a_module_that_prepares_images(self):
        """May take uint8, where this package's models do not."""
        model = torch.nn.Sequential(Preprocess((64, 64)).module(), MobileViTClassifier("xxs", 3)).eval()
        image = torch.randint(0, 256, (1, 3, 80, 96), dtype=torch.uint8)
        with torch.inference_mode():
            torch.testing.assert_close(optimize(model, image, engine="eager")(image), model(image), rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((5, torch.rand(1, 3, 64, 64)), "the model is 5; pass a module, a checkpoint"),
            ((MobileViT(DEEP), "photo.jpg"), r"the example is 'photo.jpg'; give .* a tensor \(B, C, H, W\)"),
            (("runs/demo", [1]), r"the example is \[1\]; give"),
        ],
    )
    def test_wrong_types(self, arguments, message):
        with pytest.raises(TypeError, match=message):
            optimize(*arguments)

    def test_of_a_runs_folder(self, tmp_path):
        model, x = randomize(MobileViTClassifier(DEEP, 4)).eval(), torch.rand(1, 3, 64, 64)
        save_checkpoint(model, tmp_path / "best.ckpt")
        for given in (tmp_path, str(tmp_path)):
            with torch.no_grad():
                torch.testing.assert_close(optimize(given, x, engine="eager")(x), model(x), rtol=1e-4, atol=1e-4)
        with pytest.raises(CheckpointError, match=r"no such checkpoint: .*nope"):
            optimize(tmp_path / "nope", x)

    def test_saved_whole(self, tmp_path):
        """As docs/performance.rst shows; tests/inference/test_runtimes.py pickles the runtimes."""
        model, photo = randomize(MobileViTClassifier(DEEP, 4)).eval(), torch.rand(3, 64, 64)
        model.class_names, model.preprocess = tuple("abcd"), Preprocess((64, 64))
        torch.save(optimize(model, torch.rand(1, 3, 64, 64), engine="eager"), tmp_path / "fast.pt")
        result = predict(torch.load(tmp_path / "fast.pt", weights_only=False), photo)[0]
        torch.testing.assert_close(result.probabilities, predict(model, photo)[0].probabilities, rtol=0, atol=1e-4)
        assert set(dict(result.top)) <= set("abcd")

    def test_settings_of_the_compiler_are_told_of_what_it_compiled(self, monkeypatch):
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)
        monkeypatch.setattr("kornia_mvit.inference.engines.optimize.RUNTIMES", {"other": lambda model, _: model})
        last = optimize(randomize(MobileViT(DEEP)).eval(), torch.rand(1, 3, 64, 64)).steps[-1]
        assert re.search(r" ms compiled \(inductor, freezing, cpp_wrapper\), .* ms other$", last)


class TestSlices:
    def test_equal(self):
        calls = []

        def run(x):
            calls.append(len(x))
            return x + 1, x * 2

        x = torch.rand(5, 2)
        a, b = _Slices(run, lambda s: (s + 1, s * 2), 2)(x)
        assert torch.equal(a, x + 1)
        assert torch.equal(b, x * 2)
        assert calls == [2, 2]
