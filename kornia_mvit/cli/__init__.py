"""The command line: ``kornia-mvit``, or ``python -m kornia_mvit``."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kornia_mvit import MobileViT, MobileViTClassifier, __version__, list_weights
from kornia_mvit.cli.export import add_arguments as add_export_arguments
from kornia_mvit.cli.export import run as run_export
from kornia_mvit.cli.fit import COMMANDS, build_cli, run_command
from kornia_mvit.files import printable, write_whole
from kornia_mvit.inference.predictor import add_arguments as add_predict_arguments
from kornia_mvit.inference.predictor import run as run_predict
from kornia_mvit.training.preview import add_arguments as add_preview_arguments
from kornia_mvit.training.preview import run as run_preview
from kornia_mvit.weights.layouts import LAYOUTS
from kornia_mvit.weights.registry import WeightsRecord, find_weights

__all__ = ["main"]

PROMISED = 0.97  # share of right digits that the demo ends with, unless --epochs says otherwise


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        The exit status: 0 when all went well, 1 where the demo reached less than it should, 2 for a wrong argument or
        bad input, told in one line on standard error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata, which do not matter here
    parser = _parser()
    try:
        if argv and argv[0] in COMMANDS:
            return run_command(argv)
        args, rest = parser.parse_known_args(argv)
        if args.command == "preview":
            return run_preview(args, rest, build_cli)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if args.command is None:
            parser.print_help()
            return 0
        status: int = args.run(args)
        return status
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("KORNIA_MVIT_DEBUG"):
            raise
        print(printable(f"kornia-mvit: error: {_one_line(error)}"), file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kornia-mvit",
        description="Train, evaluate and use MobileViT.",
        epilog="KORNIA_MVIT_DEBUG=1 in the environment shows where an error arose.",
    )
    parser.add_argument("--version", action="version", version=f"kornia-mvit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)

    predict = commands.add_parser(
        "predict",
        help="classify images, or their pixels",
        description="Classify images or their pixels, or find objects, as the checkpoint is for: a JSON line each.",
    )
    add_predict_arguments(predict)
    predict.set_defaults(run=run_predict)

    export = commands.add_parser(
        "export",
        help="write a model as a file for phones, browsers or servers",
        description="Write a checkpoint's model as a file for a phone, a browser or a server, and compare the two: "
        "what they give, how large and how fast they are. Needs kornia-mvit[export].",
    )
    add_export_arguments(export)
    export.set_defaults(run=run_export)

    demo = commands.add_parser(
        "demo",
        help="train on handwritten digits and look at the result",
        description="Train xxs on scikit-learn's handwritten digits, evaluate it on digits kept apart, draw both.",
    )
    demo.add_argument("--output", default="runs/demo", metavar="DIR", help="folder for the results (default runs/demo)")
    demo.add_argument("--epochs", type=int, metavar="N", help="epochs in place of the recipe's")
    demo.set_defaults(run=_demo)

    preview = commands.add_parser(
        "preview",
        help="draw a dataset's images beside what augmentation makes of them",
        description="Draw images of a dataset beside their augmentations, with labels, boxes, masks and keypoints.",
        epilog="Further options are those of the recipe or of the data, such as --data.root DIR.",
    )
    add_preview_arguments(preview)
    preview.set_defaults(run=None)

    convert = commands.add_parser(
        "convert",
        help="write a checkpoint under another program's names",
        description="Read a checkpoint of Apple, timm, transformers, Kornia or ours, and write it as another's.",
    )
    convert.add_argument("source", metavar="IN", help="the checkpoint: .pt, .pth, .ckpt or .safetensors")
    convert.add_argument("target", metavar="OUT", help="the file to write; .safetensors, or what torch.load reads")
    convert.add_argument("--to", required=True, choices=tuple(LAYOUTS), help="whose names to write")
    orders = {"from": "the file that is read (default: what it says, else rgb)", "to": "the one written (default rgb)"}
    for name, text in orders.items():
        convert.add_argument(f"--{name}-order", choices=("rgb", "bgr"), help=f"channel order of {text}")
    convert.set_defaults(run=_convert)

    info = commands.add_parser("info", help="tell what is here, or what a checkpoint holds")
    info.add_argument("checkpoint", nargs="?", metavar="FILE", help="a checkpoint, or the name of published weights")
    info.set_defaults(run=_info)
    return parser


def _one_line(error: BaseException) -> str:
    """Give an error's message in one line, from below what others wrap it in.

    That of a loader's process stands at the end of a traceback, that of a class built from a recipe is the cause of
    jsonargparse's.
    """
    while "Does not validate against any of the Union" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error) or type(error).__name__
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    head, colon, items = text.partition(":\n")  # a list below a sentence
    lines = [" ".join(line.split()) for line in items.splitlines()]
    return " ".join([*f"{head}{colon}".split(), "; ".join(filter(None, lines))]).strip()


# -------------------------------------------------------------------------------------------------------------- demo


def _demo(args: argparse.Namespace) -> int:
    from kornia_mvit.draw.images import draw_batch, draw_predictions

    began = time.perf_counter()
    out = Path(args.output)
    argv = ["--config", "digits", "--trainer.default_root_dir", str(out), "--trainer.enable_model_summary", "false"]
    argv += ["--trainer.logger.class_path", "pytorch_lightning.loggers.CSVLogger"]
    argv += ["--trainer.logger.save_dir", str(out), "--trainer.logger.name", "log"]
    if args.epochs is not None:
        argv += ["--trainer.max_epochs", str(args.epochs)]
    print("Training MobileViT xxs on 1,257 handwritten digits, augmented by Kornia as they arrive.", flush=True)
    cli = build_cli(argv, run=False)
    task, data, trainer = cli.model, cli.datamodule, cli.trainer
    trainer.fit(task, data)

    loader = data.train_dataloader()
    augmented = task.pipeline.train()(next(iter(loader)))
    sheet = draw_batch(augmented[:32], data.class_names, preprocess=task.preprocess, cell=96)
    with write_whole(out / "augmented.png") as beside:
        sheet.save(beside)
    checkpoint = out / "digits.ckpt"
    trainer.save_checkpoint(checkpoint, weights_only=True)

    model, images, labels = _evaluate(checkpoint, data.test_dataloader())
    with torch.inference_mode():
        probabilities = torch.cat([model(part) for part in torch.split(images, 64)]).softmax(-1)
    wrong = probabilities.argmax(-1) != labels
    confidence = probabilities.amax(-1)
    order = torch.argsort(confidence - 2 * wrong)[:40]  # the wrong ones first, then the least sure
    sheet = draw_predictions(
        images[order], probabilities[order], labels[order], model.class_names, preprocess=model.preprocess, cell=96
    )
    with write_whole(out / "predictions.png") as beside:
        sheet.save(beside)
    if trainer.max_epochs < 5:
        print(
            "\nThe weights are averaged over the run; fewer than five epochs are too few for the average to catch up."
        )
    print(
        f"\n{1 - wrong.float().mean().item():.1%} of {len(labels)} digits kept apart are right "
        f"({int(wrong.sum())} wrong), after {(time.perf_counter() - began) / 60:.1f} minutes.\n\n"
        f"  {out / 'augmented.png'}    what the network saw while training\n"
        f"  {out / 'predictions.png'}  what it says of digits kept apart, wrong ones first, in red\n"
        f"  {out / 'digits.ckpt'}       the weights, with class names and preprocessing\n"
        f"  {Path(trainer.log_dir) / 'report' / 'index.html'}  curves, confusions and worst mistakes, for a browser\n\n"
        "Next, with a folder of your own that has a subfolder of images for each class:\n\n"
        "  kornia-mvit fit --config folder --data.root DIR\n"
    )
    if args.epochs is None and wrong.float().mean() > 1 - PROMISED:
        print(f"kornia-mvit: fewer right than the {PROMISED:.0%} that the demo is to reach", file=sys.stderr)
        return 1
    return 0


def _evaluate(checkpoint: Path, loader: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Give the model of a checkpoint, and the loader's images as it takes them, with their labels."""
    from kornia_mvit.weights.registry import from_pretrained

    model = from_pretrained(checkpoint)
    prepare = model.preprocess.module()
    batches = [(prepare(batch.image), batch.label) for batch in loader]
    return model, torch.cat([image for image, _ in batches]), torch.cat([label for _, label in batches])


# -------------------------------------------------------------------------------------------------------------- info


def _info(args: argparse.Namespace) -> int:
    if args.checkpoint is None:
        return _info_package()
    if args.checkpoint in list_weights():
        return _info_weights(find_weights(args.checkpoint))
    from kornia_mvit.weights.cards import read_card, read_preprocess
    from kornia_mvit.weights.checkpoints import read_weights
    from kornia_mvit.weights.files import CARD_KEY, read_checkpoint

    data = read_checkpoint(args.checkpoint)
    card = read_card(data, args.checkpoint) if CARD_KEY in data else {}
    found = read_weights(data, name=args.checkpoint)
    weights = found.backbone | found.head
    count = sum(v.numel() for k, v in weights.items() if not k.endswith(("mean", "var", "tracked")))
    classes = printable(", ".join(card.get("class_names") or ()) or "names not known")
    print(f"file        {printable(args.checkpoint)}")
    print(f"layout      {found.layout}{printable(f', under {found.wrapper}') if found.wrapper else ''}")
    print(f"task        {found.task or 'none: a backbone'}")
    print(f"model       MobileViT {found.mode or 'of no known size'}, variant {found.variant}, {count:,} parameters")
    print(f"input       {found.in_channels} channels")
    number = f"{found.num_classes - 1} and the background" if found.task == "detection" else f"{found.num_classes}"
    print(f"classes     {f'{number}: {classes}' if found.num_classes else 'none'}")
    preprocess = read_preprocess(card, args.checkpoint) or "not known"
    print(f"preprocess  {printable(preprocess)}")
    return 0


def _info_weights(record: WeightsRecord) -> int:
    scores = ", ".join(f"{name} {value} %" for name, value in record.score.items())
    print(f"weights     {record.name}, published by others")
    print(f"source      {record.source}")
    print(f"licence     {record.licence}")
    print(f"task        {record.task}, {record.num_classes} classes of {record.classes}")
    print(f"model       MobileViT {record.mode}")
    print(f"score       {scores} ({record.score_source})")
    print(f"preprocess  {record.preprocess}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from kornia_mvit.weights.cards import read_preprocess
    from kornia_mvit.weights.checkpoints import from_card, load_checkpoint, read_card, read_weights, save_checkpoint
    from kornia_mvit.weights.files import CARD_KEY, read_checkpoint

    data = read_checkpoint(args.source)
    card = read_card(data, args.source) if CARD_KEY in data else {}
    known = card.get("model") or {}
    # What a file says of itself is more than its weights show, such as dilations and anchors.
    whole = isinstance(known.get("mode"), str)
    model = from_card(data, args.source) if whole else read_weights(data, name=args.source).build()
    order = args.from_order or card.get("channel_order", "rgb")
    report = load_checkpoint(model, data, channel_order=order, name=args.source)
    if card and not isinstance(model, MobileViT):
        model.class_names = card.get("class_names")
        model.preprocess = read_preprocess(card, args.source)
    save_checkpoint(model, args.target, args.to, channel_order=args.to_order or "rgb")
    print("\n".join(printable(line) for line in str(report).splitlines()))
    print(f"{printable(args.target)}: written in layout {args.to!r}")
    lost = bool(card) and args.to != "native" and Path(args.target).suffix != ".safetensors"
    if lost:
        print("class names and preprocessing are not in it; a .safetensors file or layout 'native' keeps them")
    return 0


def _info_package() -> int:
    import kornia

    from kornia_mvit.models.mobilevit import VARIANTS

    print(f"kornia_mvit {__version__}, torch {torch.__version__}, kornia {kornia.__version__}")
    print("\nmode  parameters with 1000 classes")
    for mode in VARIANTS["apple"]:
        with torch.device("meta"):
            print(f"{mode:<4}  {_count(MobileViTClassifier(mode)):>10,}")
    try:
        from kornia_mvit.training import list_recipes
    except ImportError as error:
        print(f"\nno recipes: {error}")
        return 0
    print(f"\nrecipes: {', '.join(list_recipes())}")
    return 0


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
