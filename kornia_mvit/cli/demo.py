"""``kornia-mvit demo``."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kornia_mvit.cli.fit import build_cli
from kornia_mvit.files import write_whole

__all__ = ["main"]

PROMISED = 0.97  # share of right digits that the demo ends with, unless --epochs says otherwise


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    demo = argparse.ArgumentParser(
        prog="kornia-mvit demo",
        description="Train xxs on scikit-learn's handwritten digits, evaluate it on digits kept apart, draw both.",
    )
    demo.add_argument("--output", default="runs/demo", metavar="DIR", help="folder for the results (default runs/demo)")
    demo.add_argument("--epochs", type=int, metavar="N", help="epochs in place of the recipe's")
    return _demo(demo.parse_args(argv[1:]))


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
