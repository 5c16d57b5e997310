"""The settings of tasks: stated once, seen by signatures, documented, and known by their former names too."""

import inspect
from dataclasses import fields

import pytest
import yaml

from kornia_mvit.cli import main
from kornia_mvit.training import ClassificationTask, DetectionTask, SegmentationTask
from kornia_mvit.training.base import ImageTask
from kornia_mvit.training.settings import TaskSettings, present_settings
from kornia_mvit.weights.settings import constructor_types
from tests.training.test_tasks import Tiny

TASKS = (ClassificationTask, DetectionTask, SegmentationTask)


class TestTaskSettings:
    @pytest.mark.parametrize("task", TASKS)
    def test_are_the_arguments_of_each_task(self, task):
        arguments = inspect.signature(task).parameters
        names = [field.name for field in fields(TaskSettings)]
        assert list(arguments)[:2] == ["mode", "num_classes"]
        assert set(names) <= set(arguments)
        assert all(f"        {name}: " in f"{ImageTask.__doc__}{task.__doc__}" for name in arguments)
        assert constructor_types(task)["learning_rate"] is float

    @pytest.mark.parametrize("task", TASKS)
    def test_wrong_arguments(self, task):
        with pytest.raises(TypeError, match=rf"{task.__name__}.__init__\(\) got an unexpected keyword argument 'rate'"):
            task(num_classes=2, rate=1)
        with pytest.raises(ValueError, match="num_classes is missing"):
            task()
        with pytest.raises(ValueError, match="unknown schedule 'step'; available: 'cosine', 'poly'"):
            task(num_classes=2, schedule="step")

    def test_of_a_subclass_are_kept(self):
        class Mine(ClassificationTask):
            def __init__(self, extra: int = 3, **settings):
                super().__init__(**settings)
                self.extra = extra

        task = Mine(5, num_classes=2, network=Tiny(), image_size=32)
        assert (task.hparams["extra"], task.hparams["image_size"]) == (5, 32)
        assert not {"network_args", "mode"} - set(task.hparams)
        assert not {"pipeline", "teacher", "dropout", "head_factor", "raw_weights"} & set(task.hparams)


class TestFormerNames:
    @pytest.mark.parametrize(
        ("task", "old", "new", "value", "kept"),
        [
            (ClassificationTask, "head_factor", "head_lr_multiplier", 3.0, 3.0),
            (ClassificationTask, "raw_weights", "use_ema_weights", True, False),
            (ClassificationTask, "dropout", "backbone_dropout", 0.1, 0.1),
            (DetectionTask, "dropout", "backbone_dropout", 0.1, 0.1),
            (DetectionTask, "negatives", "negative_ratio", 2, 2),
            (SegmentationTask, "dropout", "head_dropout", 0.2, 0.2),
            (SegmentationTask, "head_factor", "head_lr_multiplier", 1.0, 1.0),
        ],
    )
    def test_warn(self, task, old, new, value, kept):
        with pytest.warns(DeprecationWarning, match=f"{old} is now {new}") as told:
            found = task(num_classes=2, image_size=64, **{old: value})
        assert told[0].filename == __file__
        assert found.hparams[new] == kept
        assert old not in found.hparams
        saved = {old: value, "tta": None}
        assert present_settings(task, saved) == {**task.added, new: kept, "tta": None}

    def test_on_the_command_line(self, tmp_path, capsys):
        model = {"class_path": "kornia_mvit.training.ClassificationTask", "init_args": {"head_factor": 4.0}}
        (tmp_path / "old.yaml").write_text(yaml.safe_dump({"model": model}))
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["fit", "--config", str(tmp_path / "old.yaml"), "--model.dropout", "0.25", "--print_config"])
        shown = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
        assert (shown["head_factor"], shown["dropout"]) == (4.0, 0.25)
