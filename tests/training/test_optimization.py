"""Layers, groups of parameters and the schedule."""

from itertools import pairwise

import pytest
import pytorch_lightning as pl
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kornia_mvit import DeepLabV3, MobileViTClassifier
from kornia_mvit.training import ClassificationTask
from kornia_mvit.training.networks import find_layers
from kornia_mvit.training.optimization import SHAPES, learning_rate_factor, parameter_groups, warmup_schedule
from tests.training.test_tasks import Tiny, Tones, trainer

NETWORKS = {
    "ours": (lambda: MobileViTClassifier("xxs", 5), 8, "classifier."),
    "ours, of pixels": (lambda: DeepLabV3("xxs", 5), 7, "head."),
    "ours, of pixels, with an auxiliary head": (
        lambda: DeepLabV3("xxs", 5, aux_channels=8),
        7,
        ("head.", "aux_head."),
    ),
    "timm mobilevit": (lambda: timm.create_model("mobilevit_xxs", num_classes=5), 8, "head."),
    "timm mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), 9, "classifier."),
    "timm deit": (lambda: timm.create_model("deit_tiny_patch16_224", num_classes=5), 14, "head."),
    "torchvision": (lambda: torchvision.models.resnet18(num_classes=5), 10, "fc."),
}


class TestFindLayers:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_holds_each_parameter_once_and_ends_with_the_head(self, name):
        build, count, head = NETWORKS[name]
        network = build()
        layers = find_layers(network)
        assert len(layers) == count
        names = [key for layer in layers for key in layer]
        assert sorted(names) == sorted(key for key, _ in network.named_parameters())
        assert all(key.startswith(head) for key in layers[-1])


class TestParameterGroups:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_rates_fall_towards_the_image(self, name):
        build, count, _ = NETWORKS[name]
        network = build()
        groups = parameter_groups(network, 1.0, 0.1, head_lr_multiplier=10.0, layer_decay=0.5, decay_norms=False)
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        assert len(rates) == len(list(network.parameters()))
        for depth, layer in enumerate(find_layers(network)):
            expected = 10.0 if depth == count - 1 else 0.5 ** (count - 2 - depth)
            assert {rates[id(p)] for p in layer.values()} == {expected}
        for group in groups:
            assert all((p.ndim > 1) == (group["weight_decay"] == 0.1) for p in group["params"])

    def test_one_group_by_default_but_for_the_head(self):
        groups = parameter_groups(MobileViTClassifier("xxs", 5), 1.0, 0.1)
        assert [(group["lr"], group["weight_decay"], group["head"]) for group in groups] == [
            (1.0, 0.1, False),
            (1.0, 0.1, True),
        ]

    def test_exception(self):
        network = nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"layer_decay 1.5.*\(0, 1\]"):
            parameter_groups(network, 1.0, 0.1, layer_decay=1.5)
        with pytest.raises(ValueError, match="nothing to learn"):
            parameter_groups(network.requires_grad_(False), 1.0, 0.1)


class TestWarmupSchedule:
    def test_all_but_the_head_rest_for_the_first_steps(self):
        network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2))
        optimizer = torch.optim.SGD(parameter_groups(network, 0.5, 0.0))
        schedule = warmup_schedule(optimizer, 10, warmup=0, first=0.1, last=0.0, frozen=2)
        rates = []
        for _ in range(4):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        assert [body for body, _ in rates[:2]] == [0.0, 0.0]
        assert all(body == head > 0 for body, head in rates[2:])
        assert rates[0][1] == 0.5

    def test_exception(self):
        optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.5)
        with pytest.raises(ValueError, match="'step'; available: 'cosine', 'poly'"):
            warmup_schedule(optimizer, 10, warmup=0, first=0.1, last=0.0, shape="step")


class TestLearningRateFactor:
    @given(
        total=st.integers(20, 5000),
        warmup=st.integers(0, 500),
        first=st.floats(0.01, 1.0),
        last=st.floats(0.0, 1.0),
        shape=st.sampled_from(SHAPES),
    )
    def test_rises_then_falls_between_its_ends(self, total, warmup, first, last, shape):
        values = [learning_rate_factor(step, total, warmup, first, last, shape) for step in range(total + 1)]
        peak = min(warmup, total // 10)
        assert values[peak] == pytest.approx(1.0)
        assert values[0] == pytest.approx(first if peak else 1.0)
        assert values[-1] == pytest.approx(last)
        assert all(a <= b + 1e-12 for a, b in pairwise(values[: peak + 1]))
        assert all(a >= b - 1e-12 for a, b in pairwise(values[peak:]))

    def test_follows_the_run(self, tmp_path):
        """Of 32 steps three are warm-up, however many were asked for."""
        task = ClassificationTask(
            num_classes=2, network=Tiny(), image_size=32, learning_rate=1.0, warmup_steps=500, final_factor=0.0
        )
        rates = []

        class Look(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, index):
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        trainer(tmp_path, max_epochs=8, callbacks=[Look()], limit_val_batches=0).fit(task, Tones())
        assert rates == pytest.approx([learning_rate_factor(i, 32, 3, 0.1, 0.0) for i in range(32)])
