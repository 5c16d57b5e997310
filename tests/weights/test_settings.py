"""Settings from checkpoints: plain values by name and type, or refused."""

import itertools
from typing import Any

import pytest
import torch

from kornia_mvit.training import ClassificationTask, SegmentationTask
from kornia_mvit.training.datamodules import DigitsData
from kornia_mvit.weights.files import CheckpointError
from kornia_mvit.weights.settings import check_counts, check_data, constructor_types, plain_settings
from tests.training.gadgets import (
    TASKS,
    TOKEN,
    gadgets,
    make_elsewhere,
    nothing_runs,
)

elsewhere = pytest.fixture(scope="module")(make_elsewhere)


def harmless(value: object) -> bool:
    """Whether a value is plain, and neither describes a class nor names a file or a module."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and "class_path" not in name and harmless(value[name]) for name in value)
    if isinstance(value, list | tuple):
        return all(map(harmless, value))
    return value is None or type(value) in (bool, int, float, str)


class TestPlainSettings:
    @pytest.mark.parametrize("task", TASKS)
    def test_gadgets_in_every_setting(self, task, elsewhere):
        owner, refused, kept = TASKS[task], 0, 0
        values = gadgets(elsewhere)
        with nothing_runs(elsewhere):
            for field, name in itertools.product(constructor_types(owner), values):
                try:
                    settings = plain_settings(owner, {field: values[name]}, "a.ckpt")
                except CheckpointError as error:
                    assert "a.ckpt" in str(error)
                    assert "\n" not in str(error)
                    refused += 1
                    continue
                kept += 1
                assert harmless(settings)
                assert (
                    not isinstance(values[name], dict)
                    or field in ("weights", "teacher", "pretrained")
                    or name == "timm's file"
                )
                assert TOKEN not in str(settings.get("network")).removeprefix(f"timm:planted_{TOKEN}.Planted")
                assert TOKEN not in str([settings.get(place) for place in ("network_args", "policy_args", "pipeline")])
        assert refused > 5 * kept > 0

    @pytest.mark.parametrize("name", ["popen", "planted", "planted by its private name", "system", "popen by keywords"])
    def test_settings_that_are_themselves_a_class(self, name, elsewhere):
        with nothing_runs(elsewhere):
            for owner in (*TASKS.values(), DigitsData):
                value = dict(gadgets(elsewhere)[name])
                if name == "planted by its private name":  # Lightning's own keys, which are left out
                    assert plain_settings(owner, value, "a.ckpt") == {}
                    continue
                with pytest.raises(CheckpointError, match="'class_path', which"):
                    plain_settings(owner, value, "a.ckpt")

    @pytest.mark.parametrize("saved", [5, "text", ["a"], ("a", 1), torch.ones(2)])
    def test_settings_that_are_none(self, saved):
        with pytest.raises(CheckpointError, match=r"a\.ckpt.*not a dictionary"):
            plain_settings(ClassificationTask, saved, "a.ckpt")

    def test_deep_and_wide_values(self):
        deep: list[Any] = []
        for _ in range(5000):
            deep = [deep]
        ring: dict[str, Any] = {}
        ring["jitter"] = ring
        for value in (deep, ring, [0] * 100_000, {"a": deep}):
            for field in ("policy_args", "network_args", "image_size"):
                with pytest.raises(CheckpointError, match=field):
                    plain_settings(ClassificationTask, {field: value}, "a.ckpt")

    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("learning_rate", "1e-3"),
            ("learning_rate", True),
            ("per_class", 1),
            ("num_classes", 2.0),
            ("num_classes", 10**400),
            ("multi_scale", [160, 320]),
            ("tta", "flip\x1b[2J"),
            ("mode", "x" * 1000),
            ("network", "kornia_mvit.MobileViT"),
            ("network", "timm:hf-hub:a/b"),
            ("policy_args", {"a.b": 1}),
            ("policy_args", {1: 1}),
            ("policy_args", {"__path__": 1}),
            ("policy_args", {"auto": "a: b"}),
            ("policy_args", {"auto": torch.ones(2)}),
            ("leaning_rate", 1.0),
        ],
    )
    def test_names_and_types(self, setting, value):
        with pytest.raises(CheckpointError, match=setting) as refused:
            plain_settings(ClassificationTask, {setting: value}, "a.ckpt")
        assert len(str(refused.value)) < 500
        assert str(refused.value).isprintable()

    def test_names_what_it_was_trained_as(self):
        saved = {"_class_path": "kornia_mvit.training.SegmentationTask", "aspp_channels": 256}
        with pytest.raises(CheckpointError, match="trained as SegmentationTask"):
            plain_settings(ClassificationTask, saved, "a.ckpt")

    def test_what_tasks_save(self):
        """As 0.1.0 wrote them: tuples as lists, numbers as integers, names of files that were loaded before."""
        saved = {
            "mode": "xxs",
            "multi_scale": [160, 320, 5],
            "learning_rate": 1,
            "policy_args": {"scale": [0.6, 1.0], "auto": None},
            "network": "timm:mobilenetv3_small_050.lamb_in1k",
            "network_args": {"img_size": 64, "pretrained": True, "checkpoint_path": "a.bin", "act_layer": "silu"},
            "gradient_checkpointing": "stages",
            "weights": "apple_xxs",
            "teacher": "best.ckpt",
            "_class_path": "kornia_mvit.training.ClassificationTask",
            "_instantiator": "pytorch_lightning.cli.instantiate_module",
        }
        settings = plain_settings(ClassificationTask, saved, "a.ckpt")
        assert settings["multi_scale"] == (160, 320, 5)
        assert settings["network_args"] == {"img_size": 64, "act_layer": "silu"}
        assert type(settings["learning_rate"]) is float
        assert not {"weights", "teacher", "_class_path", "_instantiator"} & settings.keys()
        assert settings["policy_args"] == saved["policy_args"]
        assert plain_settings(SegmentationTask, {"resize_size": [64, 80]}, "a")["resize_size"] == (64, 80)
        assert plain_settings(SegmentationTask, {"class_weights": [1, 2.5]}, "a")["class_weights"] == [1.0, 2.5]

    def test_arguments_of_a_class_below(self):
        class Mine(ClassificationTask):
            def __init__(self, width: int = 3, **kwargs: Any) -> None:
                super().__init__(**kwargs)

        assert plain_settings(Mine, {"width": 4, "mode": "xs"}, "a.ckpt") == {"width": 4, "mode": "xs"}
        with pytest.raises(CheckpointError, match="widths"):
            plain_settings(Mine, {"widths": 4}, "a.ckpt")


class TestCheckCounts:
    def test_no_more_than_the_weights_have(self):
        state = {"a": torch.ones(12, 3)}
        check_counts({"num_classes": 12, "aspp_channels": 256}, state, "a.ckpt")
        for settings in ({"num_classes": 10**9}, {"num_classes": 0}, {"aspp_channels": 10**6}):
            with pytest.raises(CheckpointError, match=str(next(iter(settings.values())))):
                check_counts(settings, state, "a.ckpt")
        with pytest.raises(CheckpointError, match="no weights"):
            check_counts({}, 5, "a.ckpt")


class TestCheckData:
    @pytest.mark.parametrize("value", [print, torch.nn.Linear, torch.ops, [{"a": (len,)}], {len: 1}])
    def test_functions_and_classes(self, value):
        if value is torch.ops:
            value = {"a": torch.relu}
        with pytest.raises(CheckpointError, match=r"a\.ckpt holds the function or class"):
            check_data({"state_dict": {}, "x": value}, "a.ckpt")

    def test_plain_data(self):
        ring: list[Any] = [torch.ones(2), torch.float32, torch.Size([1]), b"a", {1, 2}]
        ring.append(ring)
        assert check_data({"a": ring}, "a.ckpt") is None


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_tuples_of_any_length(count):
    class Task:
        def __init__(self, sizes: tuple[int, ...] = (), pair: tuple[int, float] = (1, 2.0)) -> None: ...

    assert plain_settings(Task, {"sizes": [4] * count}, "a.ckpt") == {"sizes": (4,) * count}
    if count != 2:
        with pytest.raises(CheckpointError, match=r"pair of a\.ckpt"):
            plain_settings(Task, {"pair": [1] * count}, "a.ckpt")
