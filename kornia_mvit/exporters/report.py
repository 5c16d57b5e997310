"""How an exported model compares with the one that it was made from: what it gives, how large and how fast it is."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kornia_mvit.inference.engines import timing

__all__ = ["Comparison", "Row", "Table", "answers", "compare", "file_size", "model_size", "time_in_turn"]

Run = Callable[[Tensor], Any]  # takes a batch, gives a tensor or several


@dataclass
class Comparison:
    """How far outputs are from the reference's, over some images.

    Args:
        images: how many there were.
        difference: largest difference of any output, as a share of the largest value that the reference gives there.
        agreement: share of the answers that are the reference's: top-1 classes of images, of pixels or of anchors.
    """

    images: int
    difference: float
    agreement: float

    def __str__(self) -> str:
        return f"max difference {self.difference:.1e}, top-1 agreement {self.agreement:.2%} on {self.images} images"


@torch.no_grad()
def compare(run: Run, reference: Run, inputs: Iterable[Tensor], task: str | None = None) -> Comparison:
    """Run both on the same inputs, and measure how far the outputs are apart.

    Args:
        run: what is compared.
        reference: what it is to equal, such as what :func:`~kornia_mvit.exporters.deployable` gives.
        inputs: batches.
        task: what the outputs are of, see :func:`answers`; the reference's own when None.

    Returns:
        The comparison. Outputs that count, such as labels, are compared by agreement alone.

    Raises:
        ValueError: without inputs, or where the outputs have other shapes than the reference's.

    Example:
        >>> str(compare(lambda x: 2.0 * x, lambda x: x, [torch.eye(3)]))
        'max difference 1.0e+00, top-1 agreement 100.00% on 3 images'
    """
    task = getattr(reference, "task", task)
    images, same, total, differences = 0, 0, 0, []
    for batch in inputs:
        given, wanted = _outputs(run(batch)), _outputs(reference(batch))
        if [value.shape for value in given] != [value.shape for value in wanted]:
            shapes = [[tuple(value.shape) for value in values] for values in (given, wanted)]
            raise ValueError(f"outputs have shapes {shapes[0]}, the reference's {shapes[1]}")
        for one, other in zip(given, wanted, strict=True):
            if other.is_floating_point():
                scale = other.abs().max().clamp_min(1e-12)
                differences.append(float((one.float() - other.float()).abs().max() / scale))
        equal = answers(given, task) == answers(wanted, task)
        images, same, total = images + len(batch), same + int(equal.sum()), total + equal.numel()
    if not images:
        raise ValueError("there are no inputs to compare on; give one batch or more")
    # not max(), which loses a NaN
    difference = float(torch.tensor(differences).max()) if differences else 0.0
    return Comparison(images, difference, same / total)


def answers(outputs: Sequence[Tensor], task: str | None = None) -> Tensor:
    """Return the classes that outputs speak for: the output that counts, if there is one, else the most probable class.

    Args:
        outputs: of a model.
        task: what for; ``'detection'`` has its classes in the last dimension, others in the second.
    """
    for output in outputs:
        if not output.is_floating_point():
            return output
    return outputs[0].argmax(-1 if task == "detection" else 1)


def _outputs(given: Any) -> list[Tensor]:
    values = given if isinstance(given, tuple | list) else [given]
    return [torch.as_tensor(value) for value in values]


def time_in_turn(runs: Mapping[str, Callable[[], object]], rounds: int = 10, warmup: int = 2) -> dict[str, float]:
    """Time things in turn, so that what slows the machine down slows all of them.

    Args:
        runs: what to call, by name.
        rounds: calls of each that are timed.
        warmup: calls of each before.

    Returns:
        The median of each, in seconds, an accelerator's work included.
    """
    times = timing.time_in_turn(runs, rounds, warmup=warmup)
    return {name: statistics.median(taken) for name, taken in times.items()}


def file_size(path: str | Path) -> int:
    """Return the bytes of a file, or of all files in a folder; of OpenVINO's ``.xml``, with the weights beside it.

    Args:
        path: the file or folder.

    Raises:
        FileNotFoundError: if there is neither.
    """
    path = Path(path)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    beside = path.with_suffix(".bin")
    weights = beside.stat().st_size if path.suffix == ".xml" and beside.is_file() else 0
    return path.stat().st_size + weights


def model_size(model: nn.Module) -> int:
    """Return the bytes of a model's weights and buffers."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


@dataclass
class Row:
    """A line of a :class:`Table`.

    Args:
        name: of what was measured.
        size: bytes of the file.
        latency: seconds for one image.
        comparison: with the reference; None for the reference itself.
        accuracy: on labelled images, if there are any.
    """

    name: str
    size: int | None = None
    latency: float | None = None
    comparison: Comparison | None = None
    accuracy: float | None = None


@dataclass
class Table:
    """What :class:`Row` objects tell, to be printed; the first is what the others' ratios are to.

    Args:
        rows: one for each form of the model.
        note: a line below them.

    Example:
        >>> rows = [Row("eager", 4_000_000, 0.04), Row("onnx", 2_000_000, 0.01, Comparison(8, 1.5e-6, 1.0))]
        >>> print(Table(rows, "batch 1"))
                max difference  top-1 agreement  size    ratio  latency  ratio
        eager   -               -                4.0 MB  1.00   40.0 ms  1.00
        onnx    1.5e-06         100.00%          2.0 MB  0.50   10.0 ms  0.25
        batch 1
    """

    rows: list[Row] = field(default_factory=list)
    note: str = ""

    def __str__(self) -> str:
        labelled = any(row.accuracy is not None for row in self.rows)
        head = ["", "max difference", "top-1 agreement", *(["accuracy"] if labelled else [])]
        lines = [[*head, "size", "ratio", "latency", "ratio"]]
        for row in self.rows:
            found = row.comparison
            cells = [row.name]
            cells += ["-", "-"] if found is None else [f"{found.difference:.1e}", f"{found.agreement:.2%}"]
            if labelled:
                cells.append("-" if row.accuracy is None else f"{row.accuracy:.2%}")
            cells += ["-", "-"] if row.size is None else [f"{row.size / 1e6:.1f} MB", self._ratio(row, "size")]
            cells += ["-", "-"] if row.latency is None else [f"{row.latency * 1e3:.1f} ms", self._ratio(row, "latency")]
            lines.append(cells)
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        widths[0] += 1
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join([*text, *([self.note] if self.note else [])])

    def _ratio(self, row: Row, name: str) -> str:
        first, own = getattr(self.rows[0], name), getattr(row, name)
        return f"{own / first:.2f}" if first else "-"
