"""Small networks and known weights for the tests of this folder."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kornia_mvit.models.mobilevit import MobileViTConfig, Stage

# A MobileViT with every kind of layer, small enough for gradcheck.
TINY = MobileViTConfig(
    stem=4,
    expand=2,
    stages=(Stage(4), Stage(6, stride=2, repeat=2), Stage(8, stride=2, dim=8, depth=2)),
    head_channels=10,
    heads=2,
)
# As deep as the published networks, so that images of 64 px have a single patch at the end.
DEEP = MobileViTConfig(
    stem=4,
    expand=1,
    stages=(Stage(4), Stage(4, stride=2), Stage(4, stride=2), Stage(4, stride=2), Stage(6, stride=2, dim=8, depth=1)),
    head_channels=8,
    heads=2,
)
# With attention after four halvings, so that images of 32 px have a single patch: what compiling takes goes by layers.
SHALLOW = MobileViTConfig(
    stem=4,
    expand=1,
    stages=(Stage(4, stride=2), Stage(4, stride=2), Stage(4, stride=2, dim=4, depth=1)),
    head_channels=4,
    heads=2,
)
# With attention after two halvings; in patches of 8 px, images of 32 px have a single one.
SINGLE = MobileViTConfig(stem=4, expand=1, stages=(Stage(4, stride=2, dim=4, depth=1),), head_channels=4, heads=2)
# Without attention, and with widths that make no stage's first layer a residual when it keeps the size.
CONVOLUTIONAL = MobileViTConfig(
    stem=4,
    expand=2,
    stages=(Stage(4), Stage(6, stride=2), Stage(8, stride=2), Stage(10, stride=2, repeat=3), Stage(12, 2, repeat=2)),
    head_channels=10,
)

_GOLDEN = Path(__file__).parents[1] / "golden"
APPLE = json.loads((_GOLDEN / "apple_classification_xxs.json").read_text())
DETECTION = json.loads((_GOLDEN / "apple_detection.json").read_text())  # the shapes of each name are those of its modes
# of the second version at width 0.5, by task: the names and shapes of Apple's weights, and cases
SECOND = json.loads((_GOLDEN / "apple_v2.json").read_text())


def apple_array(name: str, shape: list[int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """The values of one tensor, by its name in Apple's checkpoint, that the golden outputs were made with."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape)
    if name.endswith("running_mean"):
        return 0.1 * random.standard_normal(shape)
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape)
    if len(shape) >= 2:
        return 1.25 * random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    if name.endswith("bias"):
        return 0.1 * random.standard_normal(shape)
    return random.uniform(0.8, 1.2, shape)


def apple_image(seed: int, shape: list[int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """The images of a golden case."""
    return np.random.RandomState(seed).uniform(0, 1, shape)


def load_apple_weights(model: nn.Module) -> None:
    """Fill a classifier with the golden weights; Apple's tensors come in the order of ours."""
    ours = model.state_dict()
    assert [list(tensor.shape) for tensor in ours.values()] == list(APPLE["keys"].values())
    values = [torch.from_numpy(np.asarray(apple_array(name, shape))) for name, shape in APPLE["keys"].items()]
    model.load_state_dict(dict(zip(ours, values, strict=True)))


def apple_detector(mode: str = "xxs") -> dict[str, Tensor]:
    """The golden weights of Apple's detector, under its names."""
    shapes = {name: sizes[DETECTION["modes"].index(mode)] for name, sizes in DETECTION["keys"].items()}
    return {name: torch.from_numpy(np.asarray(apple_array(name, shape))) for name, shape in shapes.items()}


def apple_second(task: str) -> dict[str, Tensor]:
    """The golden weights of Apple's second version at width 0.5, under its names."""
    return {
        name: torch.from_numpy(np.asarray(apple_array(name, shape))) for name, shape in SECOND[task]["keys"].items()
    }


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def randomize_norms(model: nn.Module) -> nn.Module:
    """Give the vectors of a model values of their own, those of its norms among them."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0.0, 0.1)
        elif tensor.ndim == 1:
            tensor.uniform_(0.8, 1.2)
    return model


def randomize(model: nn.Module) -> nn.Module:
    """Give every tensor values of its own, so that no two of them can stand for each other unseen."""
    for tensor in randomize_norms(model).state_dict().values():
        if tensor.ndim > 1:
            tensor.normal_(0.0, 1.25 / tensor[0].numel() ** 0.5)
    return model


def kornia_state(model: nn.Module) -> list[Tensor]:
    """The tensors of kornia.models.vit_mobile.MobileViT, in the order of this package's variant='kornia'."""
    mv2, mvit = model.mv2, model.mvit
    parts = [model.conv1, *mv2[:5], mvit[0], mv2[5], mvit[1], mv2[6], mvit[2], model.conv2]
    tensors = []
    for part in parts:
        for name, tensor in part.state_dict().items():
            if name == "conv4.0.weight":  # Kornia concatenates (transformed, input), Apple the other way round
                transformed, given = tensor.chunk(2, dim=1)
                tensor = torch.cat((given, transformed), dim=1)  # noqa: PLW2901
            tensors.append(tensor)
    return tensors
