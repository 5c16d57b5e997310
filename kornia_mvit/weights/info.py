"""What is installed here, and what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kornia_mvit.files import printable
from kornia_mvit.models.mobilevitv2 import mode_width
from kornia_mvit.parsing import is_file, is_folder
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.weights.cards import GIVEN, Sketch, read_card, read_preprocess
from kornia_mvit.weights.checkpoints import VERSIONS, read_native, read_weights
from kornia_mvit.weights.files import CARD_KEY, SUFFIXES, read_checkpoint
from kornia_mvit.weights.registry import WeightsRecord, find_weights, list_weights, unknown_source

__all__ = ["CheckpointInfo", "PackageInfo", "WeightsInfo", "info"]

_RECIPES = Path(__file__).parents[1] / "training" / "recipes"  # files, which need no extra to be listed


@dataclass(frozen=True)
class PackageInfo:
    """What is installed here.

    Args:
        versions: of this package, torch and kornia, by name.
        parameters: of a classifier of 1,000 classes, by the network's size.
        recipes: names of the recipes.
    """

    versions: Mapping[str, str]
    parameters: Mapping[str, int]
    recipes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [", ".join(f"{name} {version}" for name, version in self.versions.items())]
        lines += ["", "mode     parameters with 1000 classes"]
        lines += [f"{mode:<7}  {count:>10,}" for mode, count in self.parameters.items()]
        return "\n".join([*lines, "", f"recipes: {', '.join(self.recipes)}"])


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint holds.

    Args:
        file: its path.
        layout: whose names it has.
        wrapper: what the weights stand under in the file; empty for nothing.
        task: ``'classification'``, ``'segmentation'`` or ``'detection'``; None for a backbone.
        mode: size of the network; None where it is no known one.
        variant: variant of the network.
        parameters: their number.
        in_channels: channels of the images.
        num_classes: number of classes, in detection without the background; 0 for none.
        class_names: names of the classes; empty where they are not known.
        preprocess: what images go through; None where it is not known.
        version: of MobileViT.
        backbone: the network under the head where it is none of ours: ``'timm:NAME'``, or ``'given'`` for a module.
    """

    file: str
    layout: str
    wrapper: str
    task: str | None
    mode: str | None
    variant: str
    parameters: int
    in_channels: int
    num_classes: int
    class_names: tuple[str, ...]
    preprocess: Preprocess | None
    version: int = 1
    backbone: str | None = None

    def __str__(self) -> str:
        under = f", under {self.wrapper}" if self.wrapper else ""
        number = f"{self.num_classes} and the background" if self.task == "detection" else f"{self.num_classes}"
        names = ", ".join(self.class_names) or "names not known"
        network = f"{VERSIONS[self.version]} {self.mode or 'of no known size'}, variant {self.variant}"
        if self.backbone is not None:
            network = f"on {self.backbone}" if self.backbone != GIVEN else "on a backbone of its own"
        return _table(
            {
                "file": self.file,
                "layout": f"{self.layout}{under}",
                "task": self.task or "none: a backbone",
                "model": f"{network}, {self.parameters:,} parameters",
                "input": f"{self.in_channels} channels",
                "classes": f"{number}: {names}" if self.num_classes else "none",
                "preprocess": f"{self.preprocess or 'not known'}",
            }
        )


@dataclass(frozen=True)
class WeightsInfo:
    """What is known of published weights.

    Args:
        record: their record.
    """

    record: WeightsRecord

    def __str__(self) -> str:
        record = self.record
        scores = ", ".join(f"{name} {value} %" for name, value in record.score.items())
        return _table(
            {
                "weights": f"{record.name}, published by others",
                "source": record.source,
                "licence": record.licence,
                "task": f"{record.task}, {record.num_classes} classes of {record.classes}",
                "model": f"{VERSIONS[1 if mode_width(record.mode) is None else 2]} {record.mode}",
                "score": f"{scores} ({record.score_source})",
                "preprocess": f"{record.preprocess}",
            }
        )


def info(checkpoint: str | Path | None = None) -> PackageInfo | CheckpointInfo | WeightsInfo:
    """Describe this installation, a checkpoint or published weights.

    Args:
        checkpoint: a checkpoint, or the name of published weights; this installation if it is left out.

    Returns:
        A record, which prints as a table.

    Raises:
        CheckpointError: if the checkpoint cannot be read.

    Example:
        >>> from kornia_mvit import info
        >>> info().parameters["xxs"]
        1272024
        >>> print(str(info("mobilevit_xxs.timm_in1k")).splitlines()[3])
        task        classification, 1000 classes of imagenet-1k
    """
    if checkpoint is None:
        return _describe_package()
    name = str(checkpoint)
    if name in list_weights():
        return WeightsInfo(find_weights(name))
    if not (is_file(name) or is_folder(name) or Path(name).suffix in SUFFIXES):
        raise unknown_source(name)
    data = read_checkpoint(name)
    card = read_card(data, name) if CARD_KEY in data else {}
    known = card.get("model") or {}
    other = known.get("backbone")
    found = read_weights(data, name=name) if other is None else read_native(data, name)
    weights = found.backbone | found.head
    return CheckpointInfo(
        file=name,
        layout=found.layout,
        wrapper=found.wrapper,
        task=found.task,
        mode=found.mode,
        variant=found.variant,
        parameters=sum(v.numel() for k, v in weights.items() if not k.endswith(("mean", "var", "tracked"))),
        in_channels=found.in_channels if other is None else known.get("in_channels", 3),
        num_classes=found.num_classes - (found.task == "detection"),
        class_names=tuple(card.get("class_names") or ()),
        preprocess=read_preprocess(card, name),
        version=found.version,
        backbone=other,
    )


def _describe_package() -> PackageInfo:
    import kornia

    from kornia_mvit import __version__
    from kornia_mvit.models.modes import MODES, build_classifier

    with torch.device("meta"), Sketch():
        models = {mode: build_classifier(mode) for mode in MODES}
    parameters = {mode: sum(p.numel() for p in model.parameters()) for mode, model in models.items()}
    versions = {"kornia_mvit": __version__, "torch": str(torch.__version__), "kornia": str(kornia.__version__)}
    return PackageInfo(versions, parameters, tuple(sorted(path.stem for path in _RECIPES.glob("*.yaml"))))


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"{name:<11} {printable(value)}" for name, value in rows.items())
