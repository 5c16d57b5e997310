"""``kornia-mvit preview``: a dataset's images beside what augmentation makes of them."""

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kornia_mvit.augmentation import policies
from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.files import FileError, check_local, printable, write_whole
from kornia_mvit.parsing import parse_yaml
from kornia_mvit.preprocess import Preprocess

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["add_arguments", "draw_preview", "run"]

_SIZE = 256  # side of the result where neither a recipe nor an option says it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments; the others are the data's and the recipe's."""
    parser.add_argument("--config", metavar="RECIPE", help="a recipe or file, as for fit: its data and augmentation")
    parser.add_argument("--data", metavar="CLASS", help="a data module instead, such as VOCData; with --policy")
    parser.add_argument("--policy", metavar="NAME", help=f"a policy: {', '.join(policies.__all__)}")
    parser.add_argument("--policy-args", metavar="YAML", help="its arguments, such as '{jitter: 0.3}'")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="side of the result (default the recipe's, or 256 without one)"
    )
    parser.add_argument("--split", default="train", help="train, val or test (default train)")
    parser.add_argument("--count", type=int, default=6, metavar="N", help="images (default 6)")
    parser.add_argument("--copies", type=int, default=4, metavar="N", help="augmentations of each (default 4)")
    parser.add_argument("--cell", type=int, default=220, metavar="PIXELS", help="size that each is drawn with")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument("--out", default="preview.png", metavar="FILE", help="the picture (default preview.png)")


def run(args: argparse.Namespace, rest: list[str], build: Any) -> int:
    """Run the command.

    Args:
        args: the command's own arguments.
        rest: what is left of the command line, for the data and the recipe, such as ``--data.root``.
        build: makes Lightning's command line from arguments, without running it.
    """
    for name in ("count", "copies", "size", "cell"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} {value} is not at least 1")
    _check_picture(args.out)
    if args.config is not None:
        if args.data or args.policy:
            raise ValueError("give --config, or --data and --policy, not both")
        if args.policy_args is not None:
            raise ValueError("--policy-args is for --policy; with --config give --model.policy_args")
        size = [] if args.size is None else ["--model.image_size", str(args.size)]
        cli = build(["--config", args.config, *size, *rest], run=False)
        data, pipeline = cli.datamodule, cli.model.pipeline
        if data.storage_size is None:
            size = pipeline.preprocess.size
            data.storage_size = max(size) if isinstance(size, tuple) else size
    elif args.data is not None and args.policy is not None:
        side = _SIZE if args.size is None else args.size
        data = _data(args.data, rest, side)
        pipeline = _pipeline(args.policy, args.policy_args, side, data)
    else:
        raise ValueError("preview needs --config RECIPE, or --data CLASS and --policy NAME")
    data.prepare_data()
    data.setup("fit")
    if args.split not in data.splits:
        raise ValueError(f"the data have no split {args.split!r}; they have {', '.join(data.splits)}")
    sheet = draw_preview(
        data.splits[args.split],
        pipeline,
        data.class_names,
        count=args.count,
        copies=args.copies,
        seed=args.seed,
        cell=args.cell,
    )
    with write_whole(args.out) as beside:
        sheet.save(beside)
    print(f"{pipeline.stack!r}\n{printable(args.out)}: {args.count} images, each with {args.copies} augmentations")
    return 0


def _check_picture(path: str) -> None:
    """Raise, before anything is read, for a path that no picture can be written to."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("preview needs Pillow; install kornia-mvit[train]") from error

    check_local(path)
    if Path(path).is_dir():
        raise ValueError(f"--out {path} is a folder; give a file")
    if Path(path).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {path} has no suffix of a picture, such as .png")


def draw_preview(
    dataset: Any,
    pipeline: AugmentationPipeline,
    class_names: Any = None,
    *,
    count: int = 6,
    copies: int = 4,
    seed: int = 0,
    cell: int = 220,
) -> "Image.Image":
    """Draw images of a dataset, evenly spread over it, each beside augmentations of it.

    Args:
        dataset: gives samples as :meth:`~kornia_mvit.Batch.collate` takes them.
        pipeline: what augments them.
        class_names: names of the classes.
        count: images.
        copies: augmentations of each.
        seed: of what is drawn.
        cell: side in pixels that each picture is drawn with.

    Returns:
        A Pillow image with a row for each of the images: the image first, then its augmentations.
    """
    from kornia_mvit.draw.images import add_legend, classes_in, draw_batch

    count = min(count, len(dataset))
    chosen = [round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(count)]
    batch = Batch.collate([dataset[i] for i in chosen], ignore_index=pipeline.ignore_index)
    looks: dict[str, Any] = {"class_names": class_names, "cell": cell, "ignore_index": pipeline.ignore_index}
    looks["legend"] = False
    columns = [draw_batch(batch, columns=1, **looks)]
    from PIL import Image  # the drawing before has said so if it is missing

    for view, _ in pipeline.views(batch, copies, seed=seed):
        columns.append(draw_batch(view, columns=1, preprocess=pipeline.preprocess, **looks))
    sheet = Image.new("RGB", (sum(c.width for c in columns), max(c.height for c in columns)), "white")
    left = 0
    for column in columns:
        sheet.paste(column, (left, 0))
        left += column.width
    if batch.mask is None:
        return sheet
    return add_legend(sheet, classes_in(batch.mask, pipeline.ignore_index), class_names)


def _data(name: str, rest: list[str], size: int) -> Any:
    """Build a data module from arguments such as ``--data.root DIR``."""
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
        parsed = parser.parse_args(rest)
    except argparse.ArgumentError as error:
        raise ValueError(error.message) from error
    return parser.instantiate(parsed).data


def _pipeline(policy: str, arguments: str | None, size: int, data: Any) -> AugmentationPipeline:
    if policy not in policies.__all__:
        raise ValueError(f"unknown policy {policy!r}; available: {', '.join(policies.__all__)}")
    build = getattr(policies, policy)
    given = parse_yaml(arguments, "--policy-args", FileError) if arguments else {}
    if not isinstance(given, dict):
        raise ValueError(f"--policy-args {arguments!r} is not a mapping, such as '{{jitter: 0.3}}'")
    known = inspect.signature(build).parameters
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{policy} has no argument {', '.join(unknown)}; it has {', '.join(known)}")
    if "num_classes" in known:
        given.setdefault("num_classes", data.num_classes)
    augment = build(size, **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    return AugmentationPipeline(augment, preprocess=Preprocess((size, size)), min_box_visibility=0.3)
