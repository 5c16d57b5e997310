"""Augmentation that finds its own strength: ranges whose ends are learned (RangeAugment, arXiv 2212.10553)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from kornia.metrics import ssim
from torch import Generator, Tensor, nn

from kornia_mvit.augmentation.adjustments import COLOURS, adjust
from kornia_mvit.ops.seeds import combine_seed
from kornia_mvit.ops.uploads import upload

__all__ = ["PAPER", "LearnedRanges", "Target"]

Params = dict[str, Any]
Target = float | Sequence[float]


@dataclass(frozen=True)
class _Bounds:
    """Where the ends of an operation's range may be, and where they start.

    Args:
        low: least and largest value of the lower end.
        high: least and largest value of the upper end.
        start: lower and upper end at the start.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    start: tuple[float, float]


def _soft_clip(raw: float, bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) / (1 + math.exp(-raw))


def _as_apple(low: tuple[float, float], high: tuple[float, float], raw: tuple[float, float]) -> _Bounds:
    return _Bounds(low, high, (_soft_clip(raw[0], low), _soft_clip(raw[1], high)))


_FACTOR = _Bounds((0.1, 1.0), (1.0, 10.0), (0.97, 1.03))
_APPLE_FACTOR = _as_apple((0.1, 0.9), (1.1, 10.0), (0.5, 1.5))  # written as ends, and taken as their logits
_PRESETS: dict[str, dict[str, _Bounds]] = {
    "default": {
        "brightness": _FACTOR,
        "contrast": _FACTOR,
        "saturation": _Bounds((0.0, 1.0), (1.0, 10.0), (0.95, 1.05)),
        "hue": _Bounds((-0.5, 0.0), (0.0, 0.5), (-0.01, 0.01)),
        "gamma": _Bounds((0.1, 1.0), (1.0, 10.0), (0.95, 1.05)),
        "sharpness": _Bounds((0.0, 1.0), (1.0, 10.0), (0.8, 1.2)),
        "blur": _Bounds((0.0, 0.3), (0.3, 3.0), (0.05, 0.5)),
        "noise": _Bounds((0.0, 1e-3), (1e-3, 1.0), (1e-4, 0.02)),
    },
    "apple": {
        "brightness": _APPLE_FACTOR,
        "contrast": _APPLE_FACTOR,
        "noise": _as_apple((0.0, 5e-5), (1e-4, 1.0), (0.0, 0.1)),
    },
}
PAPER = ("brightness", "contrast", "noise")
_ALIKE = 60.0  # dB; of images that are more alike, and of equal ones
_WINDOW = 11  # side in pixels of SSIM's
_APPLE_WEIGHT = 100 / 255**2


class LearnedRanges(nn.Module):
    r"""Change brightness, contrast, noise and more by magnitudes from ranges whose ends are learned.

    Each operation has a range of magnitudes, of which the lower and the upper end are parameters. For half of the
    images of a batch a magnitude is sampled uniformly from it, :math:`m = low + u (high - low)`, so that the image
    passes gradients on to both ends. The ends learn from one number that is easy to choose: how similar augmented
    images are to be to what they were, as a PSNR in dB or as SSIM. :meth:`loss` is the squared distance of the mean
    similarity of the images that were changed to it, in units of 10 dB or 0.1 of SSIM. The number may be a pair, for a
    curriculum: it goes from the first to the second along half a cosine, in dB, as :meth:`set_step` says.

    An end is kept between two bounds by a sigmoid: :math:`a + (b - a) \sigma(raw)`. Of factors
    and of hue, the value that changes nothing always lies between the two ends. The operations of a batch come in one
    random order, and values are clamped to [0, 1] once, after the last one.

    ``preset='apple'`` is what Apple's cvnets does: bounds that leave the neutral value out, a start far from it, a
    smooth L1 of each image's mean squared error, in which images that were not changed count too, a curriculum in
    mean squared errors, and gradients from the task to the ends. By default the task's gradients do not reach the
    ends, so that these find the target exactly, and a step costs no backward pass through the first layer to the
    images.

    An :class:`~kornia_mvit.AugmentationPipeline` takes it as ``ranges``, or with a policy such as
    ``classification_learned``.

    Args:
        operations: any of ``'brightness'``, ``'contrast'``, ``'saturation'``, ``'hue'``, ``'gamma'``, ``'sharpness'``,
            ``'blur'`` and ``'noise'``; the paper's three are the default.
        target_psnr: PSNR in dB below 60 between augmented and original images, or a pair of it at the start and at
            the end; (40, 20) when None and without ``target_ssim``.
        target_ssim: SSIM in (0, 1) instead, or a pair.
        preset: ``'default'`` or ``'apple'``.
        schedule: how a pair's curriculum goes: ``'cosine'`` or ``'linear'``.
        start: lower and upper ends to start with, by operation; the preset's for the others.
        task_gradients: whether the images carry gradients to the ends; True for ``preset='apple'``, else False.
        learning_rate: of the ends, which tasks use; constant, without weight decay.
        weight: factor of the loss.

    Shape:
        - Input and output: :math:`(B, C, H, W)`, floating point in [0, 1]; saturation and hue need 3 channels

    Raises:
        ValueError: for unknown operations and presets, targets out of range, and ends outside their bounds.

    References:
        S. Mehta et al.: RangeAugment: Efficient online augmentation with range learning.
        https://arxiv.org/abs/2212.10553

    Example:
        >>> ranges, images = LearnedRanges(target_psnr=20), torch.rand(8, 3, 16, 16)
        >>> drawn = ranges.sample(len(images), seed=0)
        >>> loss = ranges.loss(ranges(images, drawn), images, drawn)
        >>> loss.backward()
        >>> ranges.raw_high.grad.shape
        torch.Size([3])
    """

    def __init__(
        self,
        operations: Sequence[str] = PAPER,
        *,
        target_psnr: Target | None = None,
        target_ssim: Target | None = None,
        preset: str = "default",
        schedule: str = "cosine",
        start: Mapping[str, Sequence[float]] | None = None,
        task_gradients: bool | None = None,
        learning_rate: float = 0.05,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if preset not in _PRESETS:
            raise ValueError(f"unknown preset {preset!r}; available: {', '.join(map(repr, _PRESETS))}")
        known = _PRESETS[preset]
        self.operations: tuple[str, ...] = (operations,) if isinstance(operations, str) else tuple(operations)
        if unknown := [name for name in (*self.operations, *(start or {})) if name not in known]:
            raise ValueError(f"preset {preset!r} has no operation {unknown[0]!r}; available: {', '.join(known)}")
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations {list(self.operations)} are none, or have one twice; name each once")
        if target_ssim is not None and (target_psnr is not None or preset == "apple"):
            raise ValueError("target_ssim stands in the place of target_psnr, and not with preset='apple'; give one")
        if schedule not in ("cosine", "linear"):
            raise ValueError(f"unknown schedule {schedule!r}; available: 'cosine', 'linear'")
        if not (learning_rate > 0 and weight > 0):
            raise ValueError(f"learning_rate {learning_rate} or weight {weight} is not positive")
        self.measure: str = "psnr" if target_ssim is None else "ssim"
        self.curriculum: tuple[float, float] = (
            _pair("target_psnr", (40.0, 20.0) if target_psnr is None else target_psnr, _ALIKE)
            if target_ssim is None
            else _pair("target_ssim", target_ssim, 1.0)
        )
        self.preset = preset
        self.schedule = schedule
        self.task_gradients: bool = preset == "apple" if task_gradients is None else task_gradients
        self.learning_rate = learning_rate
        self.weight = weight
        self._step = (0, 0)  # and the number of steps of the curriculum; 0 for none told
        bounds = [known[name] for name in self.operations]
        self.bounds: Tensor
        corners = torch.tensor([(*one.low, *one.high) for one in bounds], dtype=torch.float64).view(-1, 2, 2)
        self.register_buffer("bounds", corners.float(), persistent=False)
        self.raw_low: nn.Parameter = nn.Parameter(torch.zeros(len(bounds)))
        self.raw_high: nn.Parameter = nn.Parameter(torch.zeros(len(bounds)))
        self.set_ends({name: known[name].start for name in self.operations} | dict(start or {}))

    # --------------------------------------------------------------------------------------------------------- ends

    def ends(self) -> Tensor:
        """Return the lower and the upper end of each operation's range, with gradients: (K, 2)."""
        raw = torch.stack([self.raw_low, self.raw_high], 1)
        low, high = self.bounds.to(raw.dtype).unbind(-1)
        return low + (high - low) * raw.sigmoid()

    def values(self) -> dict[str, tuple[float, float]]:
        """Return the lower and the upper end of each operation's range as numbers."""
        return {
            name: (low, high)
            for name, (low, high) in zip(self.operations, self.ends().detach().cpu().tolist(), strict=True)
        }

    def describe(self) -> str:
        """Return the ends in words.

        Example:
            >>> LearnedRanges(["hue"]).describe()
            'hue -0.01 to 0.01'
        """
        return ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in self.values().items())

    @torch.no_grad()
    def set_ends(self, ends: Mapping[str, Sequence[float]]) -> None:
        """Set lower and upper ends by operation; the others stay.

        Raises:
            ValueError: for an operation that is not learned, and an end outside its bounds or on one.
        """
        for name, pair in ends.items():
            if name not in self.operations:
                raise ValueError(f"{name} is not learned; these are: {', '.join(self.operations)}")
            if len(pair) != 2:
                raise ValueError(f"the range of {name} is {tuple(pair)}; give its lower and its upper end")
            place = self.operations.index(name)
            for end, raw, (low, high) in zip(
                pair, (self.raw_low, self.raw_high), self.bounds[place].double().tolist(), strict=True
            ):
                share = (end - low) / (high - low)
                if not 0 < share < 1:
                    raise ValueError(f"end {end} of {name} is not between {low:g} and {high:g}")
                raw[place] = math.log(share / (1 - share))

    # ------------------------------------------------------------------------------------------------------- target

    def set_step(self, step: int, total: int) -> None:
        """Set where in the curriculum the training is.

        Args:
            step: of the run, counted from 0; it may also be the epoch.
            total: number of them.

        Raises:
            ValueError: for a step below 0 or a total below 1.
        """
        if step < 0 or total < 1:
            raise ValueError(f"step {step} is negative, or total {total} not at least 1")
        self._step = (int(step), int(total))

    @property
    def unit(self) -> str:
        """Of the similarity, in words."""
        return "dB" if self.measure == "psnr" else "SSIM"

    @property
    def target(self) -> float:
        """The similarity that is aimed at now, in dB or as SSIM."""
        return self.target_at(*self._step)

    def target_at(self, step: int, total: int) -> float:
        """Return the similarity that is aimed at in a step of so many, in dB or as SSIM.

        Example:
            >>> [round(LearnedRanges(target_psnr=(40, 20)).target_at(step, 100), 1) for step in (0, 25, 50, 100)]
            [40.0, 37.1, 30.0, 20.0]
        """
        start, end = self.curriculum
        if start == end:
            return start
        step = min(step, total)
        if self.preset == "apple":  # between mean squared errors; of total + 1 entries the last is reached
            start, end = _to_mse(start), _to_mse(end)
        elif total < 1:
            return start
        if self.schedule == "linear":
            value = start + (end - start) * step / max(1, total)
        else:
            parts = total + 1 if self.preset == "apple" else total
            value = end + (start - end) * (1 + math.cos(math.pi * step / parts)) / 2
        return _to_psnr(value) if self.preset == "apple" else value

    def get_extra_state(self) -> Tensor:
        """Return the place in the curriculum, for ``state_dict``: (2,), int64."""
        return torch.tensor(self._step)

    def set_extra_state(self, state: Tensor) -> None:
        """Resume the curriculum where a saved one stopped."""
        step, total = state.tolist()
        self._step = (int(step), int(total))

    # ------------------------------------------------------------------------------------------------- augmentation

    def sample(self, count: int, seed: int) -> Params:
        """Sample, for a batch, the order of the operations, the images that get each, and shares of the ranges.

        Args:
            count: number of images, at least 1.
            seed: what is sampled depends on it alone.

        Returns:
            Plain data: ``order`` of the K operations, ``rows`` (K, n) of images, ``shares`` (K, n) of the range from
            its lower end, and the ``seed`` of the noise. n is half of the images, and at least 1.
        """
        own = Generator().manual_seed(seed)
        k, half = len(self.operations), max(1, count // 2)
        order = torch.randperm(k, generator=own).tolist()
        rows = torch.stack([torch.randperm(count, generator=own)[:half] for _ in range(k)])
        return {
            "order": [self.operations[place] for place in order],
            "rows": rows,
            "shares": torch.rand(k, half, generator=own),
            "seed": seed,
        }

    def forward(self, image: Tensor, drawn: Params, ends: Tensor | None = None) -> Tensor:
        """Augment images as was sampled.

        Args:
            image: (B, C, H, W), floating point in [0, 1].
            drawn: what :meth:`sample` gave for B images.
            ends: of the ranges, (K, 2); the present ones when None.

        Returns:
            (B, C, H, W) of the same dtype, in [0, 1].

        Raises:
            TypeError: for images that are not floating point.
            ValueError: for saturation or hue of images of other than 3 channels.
        """
        if not image.is_floating_point():
            raise TypeError(f"images are floating point in [0, 1], got {image.dtype}; divide by 255 first")
        if image.shape[1] != 3 and (of_colour := [name for name in self.operations if name in COLOURS]):
            raise ValueError(
                f"{' and '.join(of_colour)} take images of 3 channels, got {image.shape[1]}; leave them out of "
                "operations"
            )
        rows, shares = upload([drawn["rows"], drawn["shares"]], image.device)
        low, high = (self.ends() if ends is None else ends.to(image.device)).unbind(1)
        magnitudes = low[:, None] + shares.to(low.dtype) * (high - low)[:, None]
        return adjust(
            image,
            drawn["order"],
            dict(zip(self.operations, magnitudes, strict=True)),
            dict(zip(self.operations, rows, strict=True)),
            drawn["seed"],
        )

    def similarity(self, augmented: Tensor, image: Tensor) -> Tensor:
        """Return how similar augmented images are to the original ones: (B,), PSNR in dB, at most 60, or SSIM."""
        if self.measure == "ssim":
            return ssim(augmented, image, _WINDOW).mean((1, 2, 3))
        return _psnr(_mse(augmented, image))

    def loss(self, augmented: Tensor, image: Tensor, drawn: Params) -> Tensor:
        """Return what the ends learn from: the distance of the similarity to its target, a scalar.

        Args:
            augmented: (B, C, H, W), what :meth:`forward` gave.
            image: (B, C, H, W), what it was given.
            drawn: what it was done by.
        """
        return self.compare(augmented, image, drawn)[0]

    def compare(self, augmented: Tensor, image: Tensor, drawn: Params) -> tuple[Tensor, Tensor]:
        """Return :meth:`loss`, and the mean similarity of the images that were changed, without gradients."""
        chosen = self.changed(drawn, len(image)).to(image.device, image.dtype)
        if self.preset == "apple":
            errors = _mse(augmented, image)
            wanted = torch.full_like(errors, _to_mse(self.target))
            loss = _APPLE_WEIGHT * F.smooth_l1_loss(255**2 * errors, wanted)
            return self.weight * loss, (_psnr(errors.detach()) * chosen).sum() / chosen.sum()
        mean = (self.similarity(augmented, image) * chosen).sum() / chosen.sum()
        unit = 10.0 if self.measure == "psnr" else 0.1
        return self.weight * ((mean - self.target) / unit).square(), mean.detach()

    def fit(self, image: Tensor, *, steps: int = 200, seed: int = 0) -> float:
        """Move the ends on some images until these have the target, without a network.

        Args:
            image: (B, C, H, W), floating point in [0, 1]; 16 images or more for a target that is met within 0.5 dB.
            steps: of Adam, whose learning rate falls to 0.
            seed: what is sampled depends on it alone.

        Returns:
            The mean similarity of the last quarter of the steps, in dB or as SSIM.

        Raises:
            ValueError: for fewer steps than 4.

        Example:
            >>> ranges = LearnedRanges(target_psnr=25)
            >>> abs(ranges.fit(torch.rand(16, 3, 8, 8)) - 25) < 1
            True
        """
        if steps < 4:
            raise ValueError(f"steps {steps} are not at least 4")
        optimiser = torch.optim.Adam(self.parameters(), 0.1)
        found = []
        for step in range(steps):
            drawn = self.sample(len(image), combine_seed(seed, step))
            for group in optimiser.param_groups:
                group["lr"] = 0.1 * (1 - step / steps)
            optimiser.zero_grad()
            with torch.enable_grad():
                loss, similarity = self.compare(self(image, drawn), image, drawn)
                torch.autograd.backward([loss])
            optimiser.step()
            found.append(similarity)
        optimiser.zero_grad()
        return float(torch.stack(found[-(steps // 4) :]).mean())

    @staticmethod
    def changed(drawn: Params, count: int) -> Tensor:
        """Return which of so many images get any operation: (B,), bool, on the CPU."""
        return torch.zeros(count, dtype=torch.bool).index_fill(0, drawn["rows"].flatten().cpu(), True)

    def extra_repr(self) -> str:
        """Show target and ends."""
        aim = " to ".join(f"{value:g}" for value in dict.fromkeys(self.curriculum))
        return (
            f"{self.describe()}, target={aim} {self.unit}, preset={self.preset}, task_gradients={self.task_gradients}"
        )

    def __repr__(self) -> str:
        return f"LearnedRanges({self.extra_repr()})"


def _pair(name: str, given: Any, limit: float) -> tuple[float, float]:
    pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given, given)
    numbers = all(isinstance(value, int | float) for value in pair)
    if len(pair) != 2 or not numbers or not all(0 < value < limit for value in pair):
        raise ValueError(f"{name} {given} is not a number in (0, {limit:g}), or a pair of such")
    return float(pair[0]), float(pair[1])


def _mse(augmented: Tensor, image: Tensor) -> Tensor:
    """Return the mean squared error of each image: (B,)."""
    return (augmented - image).flatten(1).square().mean(1)


def _psnr(mse: Tensor) -> Tensor:
    """Return the PSNR in dB for mean squared errors of images in [0, 1]; at most the one of images that are alike."""
    return -10 * (mse + 10 ** (-_ALIKE / 10)).log10()


def _to_mse(psnr: float) -> float:
    """Return the mean squared error of images in [0, 255] with a PSNR in dB."""
    return 255**2 * 10 ** (-psnr / 10)


def _to_psnr(mse: float) -> float:
    return 10 * math.log10(255**2 / mse)
