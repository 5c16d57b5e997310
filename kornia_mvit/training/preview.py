"""A dataset's images beside what augmentation makes of them."""

import argparse
import copy
import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kornia_mvit.augmentation import policies
from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.files import FileError, check_local, printable, write_whole
from kornia_mvit.ops.seeds import combine_seed
from kornia_mvit.option_errors import describe_option_error
from kornia_mvit.parsing import count_of, parse_yaml
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.keypoints import adopt_flip_pairs

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Preview", "draw_preview", "preview"]

_FITTED = 64  # side of the part of the images that learned ranges are found on
_SIZE = 256  # side of the result where neither a recipe nor an option says it


@dataclass(frozen=True)
class Preview:
    """What :func:`preview` drew; a notebook shows the picture.

    Args:
        picture: a row for each image: the image first, then its augmentations.
        pipeline: what augmented them; printed, its stack lists the operations.
        count: number of images.
        copies: augmentations of each.
        path: the file that holds the picture; None if none was asked for.
        ranges: with learned ranges, what each column's are.
    """

    picture: "Image.Image"
    pipeline: AugmentationPipeline
    count: int
    copies: int
    path: Path | None = None
    ranges: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = "" if self.path is None else f"{printable(str(self.path))}: "
        columns = "".join(f"column {number}: {said}\n" for number, said in enumerate(self.ranges, 1))
        drawn = f"{count_of(self.count, 'image')}, each with {count_of(self.copies, 'augmentation')}"
        return f"{self.pipeline.stack!r}\n{columns}{where}{drawn}"

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.picture.save(file, "PNG")
        return file.getvalue()


def preview(
    recipe: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    data: Any = None,
    policy: "str | AugmentationPipeline | None" = None,
    policy_args: str | Mapping[str, Any] | None = None,
    size: int | None = None,
    split: str = "train",
    count: int = 6,
    copies: int = 4,
    cell: int = 220,
    seed: int = 0,
    out: str | Path | None = None,
    options: Sequence[str] = (),
) -> Preview:
    """Draw images of a dataset beside their augmentations, with labels, boxes, masks and keypoints.

    Args:
        recipe: a recipe or file, as for fit: its data and augmentation.
        folder: a dataset, as for fit; its layout tells the recipe where none is given.
        data: instead of a recipe, a data module such as VOCData, by its name or built; with a policy.
        policy: a policy by its name, such as classification_strong, or a pipeline.
        policy_args: arguments of the policy, as a mapping or YAML such as '{jitter: 0.3}'.
        size: side of the result in pixels (default: the recipe's, or 256 without one).
        split: train, val or test.
        count: number of images.
        copies: augmentations of each.
        cell: side in pixels that each is drawn with.
        seed: seed of the augmentations.
        out: the file to write the picture to.
        options: options of the recipe or of the data, such as ["--data.root", "photos"].

    Returns:
        The picture, and what augmented the images.

    Raises:
        ValueError: for an argument that does not fit, naming what would do.
    """
    for name, value in {"count": count, "copies": copies, "size": size, "cell": cell}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} {value} is not at least 1")
    if out is not None:
        _check_picture(str(out))
    if recipe is not None or folder is not None:
        if data is not None or policy is not None:
            raise ValueError(
                "give a folder or a recipe (--config), or data and a policy (--data, --policy), not both; "
                "the policy of a recipe is --model.policy"
            )
        if policy_args is not None:
            raise ValueError("policy_args is for a policy; with a recipe give the option --model.policy_args")
        data, pipeline = _of_recipe(_plan(folder, recipe, options), size)
    elif data is not None and policy is not None:
        side = _SIZE if size is None else size
        if isinstance(data, str):
            data = _data(data, options, side)
        pipeline = _pipeline(policy, policy_args, side, data) if isinstance(policy, str) else policy
    else:
        raise ValueError(
            "preview needs a folder, a recipe (--config RECIPE), or data and a policy (--data CLASS --policy NAME)"
        )
    data.prepare_data()
    data.setup("fit")
    if split not in data.splits:
        raise ValueError(f"the data have no split {split!r}; they have {', '.join(data.splits)}")
    adopt_flip_pairs(pipeline, data)
    looks: dict[str, Any] = {"count": count, "copies": copies, "seed": seed, "cell": cell}
    looks["skeleton"] = getattr(data, "keypoint_skeleton", ())
    ranges: list[str] = []
    picture = draw_preview(data.splits[split], pipeline, data.class_names, told=ranges, **looks)
    if out is None:
        return Preview(picture, pipeline, count, copies, ranges=tuple(ranges))
    with write_whole(out) as beside:
        picture.save(beside)
    return Preview(picture, pipeline, count, copies, Path(out), tuple(ranges))


def _check_picture(path: str) -> None:
    """Raise, before anything is read, for a path that no picture can be written to."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("preview needs Pillow; install kornia-mvit[train]") from error

    check_local(path)
    if Path(path).is_dir():
        raise ValueError(f"out {path} is a folder; give a file")
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"out {path} has no suffix of a picture, such as .png")


def draw_preview(
    dataset: Any,
    pipeline: AugmentationPipeline,
    class_names: Any = None,
    *,
    count: int = 6,
    copies: int = 4,
    seed: int = 0,
    cell: int = 220,
    skeleton: Sequence[tuple[int, int]] = (),
    told: list[str] | None = None,
) -> "Image.Image":
    """Draw images of a dataset, evenly spread over it, each beside augmentations of it.

    Learned ranges are those that these images need for the target; of a curriculum, the columns go through it.

    Args:
        dataset: its samples are as :meth:`~kornia_mvit.Batch.collate` takes them.
        pipeline: what augments them.
        class_names: names of the classes.
        count: number of images.
        copies: augmentations of each.
        seed: seed of the augmentations.
        cell: side in pixels that each picture is drawn with.
        skeleton: numbers, from 0, of the keypoints between which lines are drawn.
        told: gets the learned ranges of each column, in words.

    Returns:
        A Pillow image with a row for each of the images: the image first, then its augmentations.
    """
    from kornia_mvit.draw.images import add_legend, classes_in, draw_batch

    count = min(count, len(dataset))
    chosen = [round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(count)]
    batch = Batch.collate([dataset[i] for i in chosen], ignore_index=pipeline.ignore_index)
    looks: dict[str, Any] = {"class_names": class_names, "cell": cell, "ignore_index": pipeline.ignore_index}
    looks |= {"legend": False, "skeleton": skeleton}
    columns = [draw_batch(batch, columns=1, **looks)]
    from PIL import Image  # the drawing before has said so if it is missing

    for view in _views(pipeline, batch, copies, seed, [] if told is None else told):
        columns.append(draw_batch(view, columns=1, preprocess=pipeline.preprocess, **looks))
    sheet = Image.new("RGB", (sum(c.width for c in columns), max(c.height for c in columns)), "white")
    left = 0
    for column in columns:
        sheet.paste(column, (left, 0))
        left += column.width
    if batch.mask is None:
        return sheet
    return add_legend(sheet, classes_in(batch.mask, pipeline.ignore_index), class_names)


def _views(pipeline: AugmentationPipeline, batch: Batch, copies: int, seed: int, told: list[str]) -> Iterator[Batch]:
    """Augment a batch several times, with learned ranges as training would find them."""
    ranges = pipeline.ranges
    if ranges is None:
        yield from (view for view, _ in pipeline.views(batch, copies, seed=seed))
        return
    kept = copy.deepcopy(ranges.state_dict())
    image = pipeline.preprocess.module().undo_values(pipeline.prepare(batch)[0].image)
    top, left = ((side - min(side, _FITTED)) // 2 for side in image.shape[-2:])
    image = image[..., top : top + _FITTED, left : left + _FITTED].repeat(-(-16 // len(image)), 1, 1, 1)
    try:
        for number in range(copies):
            ranges.set_step(number, max(1, copies - 1))
            found = ranges.fit(image, steps=100, seed=combine_seed(seed, number))
            told.append(f"{ranges.describe()}, at {found:.3g} {ranges.unit} for a target of {ranges.target:.3g}")
            yield pipeline.augment(batch, seed=combine_seed(seed, number))[0]
    finally:
        ranges.load_state_dict(kept)


def _plan(folder: str | Path | None, recipe: str | Path | None, options: Sequence[str]) -> list[str]:
    """Return the options of a recipe, and what a folder tells."""
    if folder is None:
        return [f"--config={recipe}", *options]
    from kornia_mvit.training.options import plan_run

    given = [option.partition("=")[0].removeprefix("--") for option in options if option.startswith("--")]
    given = [name.replace(".init_args.", ".") for name in given]
    if "data.root" in given:
        raise ValueError(f"the images are {folder}, and --data.root is given too; give one of them")
    name = None if recipe is None else str(recipe)
    return [*plan_run(folder, {}, recipe=name, given=given, prefix="--"), *options]


def _of_recipe(options: Sequence[str], size: int | None) -> tuple[Any, AugmentationPipeline]:
    from kornia_mvit.training.recipe_cli import build_cli

    sides = [] if size is None else ["--model.image_size", str(size)]
    cli = build_cli([*options, *sides], run=False)
    data, pipeline = cli.datamodule, cli.model.pipeline
    if data.storage_size is None:
        output = pipeline.preprocess.size
        data.storage_size = max(output) if isinstance(output, tuple) else output
    return data, pipeline


def _data(name: str, options: Sequence[str], size: int) -> Any:
    """Build a data module from options such as ``--data.root DIR``."""
    from kornia_mvit.training import datamodules

    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ImportError("options of data need jsonargparse; install kornia-mvit[train]") from error

    if name not in datamodules.__all__:
        raise ValueError(f"unknown data {name!r}; available: {', '.join(datamodules.__all__)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(datamodules, name), "data")
    parser.set_defaults({"data.storage_size": size})
    try:
        parsed = parser.parse_args(list(options))
    except argparse.ArgumentError as error:
        raise ValueError(describe_option_error(error.message)) from error
    return parser.instantiate(parsed).data


def _pipeline(policy: str, arguments: str | Mapping[str, Any] | None, size: int, data: Any) -> AugmentationPipeline:
    if policy not in policies.__all__:
        raise ValueError(f"unknown policy {policy!r}; available: {', '.join(policies.__all__)}")
    build = getattr(policies, policy)
    given = parse_yaml(arguments, "policy_args", FileError) if isinstance(arguments, str) else arguments or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"policy_args {arguments!r} is not a mapping, such as '{{jitter: 0.3}}'")
    known = inspect.signature(build).parameters
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{policy} has no argument {', '.join(unknown)}; it has {', '.join(known)}")
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if "num_classes" in known:
        settings.setdefault("num_classes", data.num_classes)
    augment = build(size, **settings)
    return AugmentationPipeline(augment, preprocess=Preprocess((size, size)), min_box_visibility=0.3)
