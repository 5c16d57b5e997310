"""int8 that costs no more than a given drop of accuracy: the layers that hurt most stay in float32."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.exporters.quantize import KEEP, layer_errors
from kornia_mvit.exporters.report import compare
from kornia_mvit.weights.cards import Model

__all__ = ["limit_drop", "score_agreement", "worst_first"]

Run = Callable[[Tensor], Any]


def limit_drop(
    quantize: Callable[[Sequence[str]], Path],
    score: Callable[[Path | None], float],
    layers: Sequence[str],
    max_drop: float,
) -> tuple[str, ...]:
    """Quantise with none of the layers in float32, then with the first, the first two, four, … of them.

    Args:
        quantize: writes the file, with the layers of these names in float32, and returns its path.
        score: of a file, or of the model itself when None; higher is better.
        layers: all of them, those that hurt most first.
        max_drop: by how much the file's score may lie below the model's.

    Returns:
        The layers in float32 of the first file that holds it, which is the one that is left.

    Raises:
        ValueError: where no file holds it.

    Example:
        >>> from pathlib import Path
        >>> scores = {0: 0.80, 1: 0.85, 2: 0.89}
        >>> written = []
        >>> limit_drop(
        ...     lambda kept: written.append(len(kept)) or Path(str(len(kept))),
        ...     lambda file: 0.9 if file is None else scores[int(str(file))],
        ...     ["stem", "head", "neck"],
        ...     max_drop=0.02,
        ... )
        ('stem', 'head')
    """
    if not 0 <= max_drop < 1:
        raise ValueError(f"max_drop {max_drop} is not within [0, 1); give a share, such as 0.01 for one point")
    wanted, found, count = score(None) - max_drop, -float("inf"), 0
    while True:
        kept = tuple(layers[:count])
        found = max(found, score(quantize(kept)))
        if found >= wanted - 1e-9:
            return kept
        if count == len(layers):
            raise ValueError(
                f"int8 comes to {found:.4f} at best, and {wanted:.4f} is asked for: allow a larger max_drop, or more "
                "calibration images"
            )
        count = min(max(1, 2 * count), len(layers))


def worst_first(model: Model, images: Sequence[Tensor]) -> list[str]:
    """Return the layers with weights, those first that hurt most in int8; the image's own first of all.

    Args:
        model: what is quantised.
        images: uint8 RGB (3, H, W), for calibration.
    """
    names = [layer.name for layer in layer_errors(model, images)]
    return sorted(names, key=lambda name: not name.startswith(KEEP))


def score_agreement(run: Run, reference: Run, inputs: Sequence[Tensor]) -> float:
    """Return the share of the answers that are the reference's.

    Args:
        run: what is scored.
        reference: the model, with the same things around it.
        inputs: batches.
    """
    with torch.no_grad():
        return compare(run, reference, inputs).agreement
