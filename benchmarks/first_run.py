"""Validation accuracy at the end of a short first run, with and without what should help it.

    python benchmarks/first_run.py [--root DIR] [--seeds 3] [--short] [--json FILE]

Each set is trained under the settings of the recipe ``folder``, xxs at 64 pixels, from scratch, with warm-ups of
several shares of the run. At the end the same run is evaluated with its raw weights and with averages of several
decays, each with the statistics of batch normalisation as training left them, and with statistics estimated anew from
at most 256 training images: augmented as in training, and as evaluation sees them. ``kept where better`` is what tasks
do: of the first and the last, those which classify more of these training images correctly.

Sets: plain colours and scikit-learn's digits, and from DIR, unless ``--short``, ``flowers`` (train and val with
a folder for each class), ``bccd`` (VOC's layout: crops of its cells) and ``camvid`` (tiles by their commonest class).
"""

import argparse
import copy
import json
import logging
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import common
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from kornia_mvit import Batch
from kornia_mvit.data.formats.voc import VOCFolder, read_voc
from kornia_mvit.data.masks import read_mask
from kornia_mvit.data.reading import find_classes, find_images, read_image
from kornia_mvit.training import ClassificationTask
from kornia_mvit.training.callbacks import _average
from kornia_mvit.training.datamodules import DigitsData
from kornia_mvit.training.datamodules.base import ImageData
from kornia_mvit.training.statistics import estimating

SIZE = 64
IMAGES = 256  # that statistics are estimated from
WARMUPS = {"none": 0.0, "a tenth": 0.1, "three tenths": 0.3}
DECAYS: dict[str, Callable[[int], float]] = {
    "average": lambda steps: 0.998,
    "average, a twentieth": lambda steps: min(0.998, max(0.0, 1 - 20 / steps)),
}
Samples = list[dict[str, Any]]


class Images(ImageData):
    """Images in memory."""

    def __init__(self, train: Samples, val: Samples, batch_size: int) -> None:
        super().__init__(batch_size, 0, None)
        self.splits = {"train": train, "val": val}  # type: ignore[dict-item]  # lists will do
        self._class_names = tuple(str(label) for label in sorted({one["label"] for one in train}))


def sample(image: Tensor, label: int) -> dict[str, Any]:
    """A sample, its image at the storage size."""
    small = F.interpolate(image[None].float(), (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return {"image": small[0].round().clamp(0, 255).to(torch.uint8), "label": label}


def colours() -> tuple[Samples, Samples]:
    """Twenty images each of red, green and blue, with a little noise: a fifth for validation."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(60):
        image = 40 + 8 * torch.randn(3, SIZE, SIZE, generator=generator)
        image[number % 3] += 150
        samples.append({"image": image.clamp(0, 255).to(torch.uint8), "label": number % 3})
    return samples[:48], samples[48:]


def digits() -> tuple[Samples, Samples]:
    """Scikit-learn's digits."""
    data = DigitsData()
    data.setup("fit")
    train, val = (
        [sample(one["image"], int(one["label"])) for one in map(split.__getitem__, range(len(split)))]  # type: ignore[arg-type]  # as above
        for split in (data.splits["train"], data.splits["val"])
    )
    return train, val


def flowers(root: Path) -> tuple[Samples, Samples]:
    """A third of the flowers for training, half of those for validation."""
    out = []
    for split, step in (("train", 3), ("val", 2)):
        classes = find_classes(root / "flowers" / split)
        files = [(path, label) for label, paths in enumerate(classes.values()) for path in paths[::step]]
        out.append([sample(read_image(path), label) for path, label in files])
    return out[0], out[1]


def cells(root: Path) -> tuple[Samples, Samples]:
    """Crops of blood cells, at most 160 of a class for training and 60 for validation."""
    folder = VOCFolder(root / "bccd", "Main", "Annotations")
    names, out = ["Platelets", "RBC", "WBC"], []
    for split, most in (("train", 160), ("val", 60)):
        samples: Samples = []
        seen: Counter[str] = Counter()
        for stem, path in folder.find_listed(split).items():
            found, image = read_voc(folder.annotation(stem)), read_image(path)
            for box, name in list(zip(found.boxes, found.names, strict=True)):
                left, top, right, bottom = (max(0, round(edge)) for edge in box)
                crop = image[:, top:bottom, left:right]
                if name not in names or min(crop.shape) < 3 or seen[name] >= most or seen[f"{stem} {name}"] > 2:
                    continue
                seen.update([name, f"{stem} {name}"])
                samples.append(sample(crop, names.index(name)))
        out.append(samples)
    return out[0], out[1]


def tiles(root: Path) -> tuple[Samples, Samples]:
    """Tiles of 60 pixels of street scenes, by their commonest class: building, road, tree or sky."""
    kept, out = {1: 0, 3: 1, 5: 2, 0: 3}, []
    for split, step, most in (("train", 3, 160), ("val", 2, 80)):
        samples: Samples = []
        seen: Counter[int] = Counter()
        for path in find_images(root / "camvid" / split)[::step]:
            image, mask = read_image(path), read_mask(root / "camvid" / f"{split}_labels" / f"{path.stem}.png")
            for top in range(0, image.shape[-2] - 59, 60):
                for left in range(0, image.shape[-1] - 59, 60):
                    label = int(mask[top : top + 60, left : left + 60].flatten().mode().values)
                    if label in kept and seen[label] < most:
                        seen[label] += 1
                        samples.append(sample(image[:, top : top + 60, left : left + 60], kept[label]))
        out.append(samples)
    return out[0], out[1]


class Averages(pl.Callback):
    """Averages of several decays, which training does not see."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.of: dict[str, AveragedModel] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the averages."""
        for name, decay in DECAYS.items():
            average: Any = partial(_average, decay(self.steps))
            self.of[name] = AveragedModel(module.network, multi_avg_fn=average, use_buffers=True)  # type: ignore[arg-type]  # a task's network is a module

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
        """Update the averages."""
        for average in self.of.values():
            average.update_parameters(module.network)  # type: ignore[arg-type]  # as above


@torch.inference_mode()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that are classified correctly."""
    found = torch.cat([network(part).argmax(1) for part in images.split(64)])
    return (found == labels).float().mean().item()


def run(samples: tuple[Samples, Samples], steps: int, share: float, seed: int) -> tuple[dict[str, float], int, float]:
    """Train once, and return the accuracy of each kind of weights and statistics, the steps and training's accuracy."""
    train, val = samples
    pl.seed_everything(seed, verbose=False)
    batch_size = min(64 if len(train) < 64 else 32, len(train))
    data = Images(train, val, batch_size)
    epochs = max(1, round(steps / max(1, len(train) // batch_size)))
    steps = epochs * max(1, len(train) // batch_size)
    task = ClassificationTask(
        num_classes=data.num_classes,
        image_size=SIZE,
        policy_args={"scale": [0.35, 1.0], "flip": 0.5, "jitter": 0.3},
        learning_rate=2e-3,
        weight_decay=0.05,
        statistics_images=0,
        warmup_steps=10**6 if share else 0,
    )
    averages = Averages(steps)
    trainer = pl.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[averages, Warmup(share, steps)] if share > 0.1 else [averages],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, data)
    learnt = trainer.callback_metrics["train/accuracy"].item()
    task.eval()
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(train), generator=generator)[:IMAGES].split(64)
    chosen = [Batch.collate([train[i] for i in part]) for part in some if len(part) > 1 or len(some) == 1]
    views: dict[str, list[Tensor]] = {
        "as trained": [],
        "anew, augmented": [task.pipeline.train()(batch).image for batch in chosen],
        "anew, as evaluated": [task.pipeline.eval()(batch).image for batch in chosen],
    }
    images = task.pipeline.eval()(Batch.collate(val)).image
    labels = torch.tensor([one["label"] for one in val])
    known = torch.cat(views["anew, as evaluated"]), torch.cat([cast(Tensor, batch.label) for batch in chosen])
    result: dict[str, float] = {}
    learnt_by: dict[str, float] = {}
    for weights, network in {"raw": task.network, **{k: v.module for k, v in averages.of.items()}}.items():
        for view, batches in views.items():
            one = copy.deepcopy(network).eval()
            with torch.no_grad(), estimating([norm for norm in one.modules() if isinstance(norm, _BatchNorm)]):
                for batch in batches:
                    one(batch)
            result[f"{weights}; {view}"] = accuracy(one, images, labels)
            learnt_by[view] = accuracy(one, *known)
        better = learnt_by["anew, as evaluated"] > learnt_by["as trained"]
        result[f"{weights}; kept where better"] = result[
            f"{weights}; {'anew, as evaluated' if better else 'as trained'}"
        ]
    return result, steps, learnt


class Warmup(pl.Callback):
    """A warm-up of another share of the run than the task's tenth."""

    def __init__(self, share: float, steps: int) -> None:
        self.share, self.steps = share, steps

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take the place of the task's schedule."""
        warmup = round(self.share * self.steps)

        def factor(step: int) -> float:
            if step < warmup:
                return 0.1 + 0.9 * step / warmup
            return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup))) / 2

        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        scheduler.lr_lambdas = [factor] * len(scheduler.lr_lambdas)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor(0)


def main() -> None:
    """Train, evaluate, print and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder with flowers, bccd and camvid")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sets", nargs="*", help="all that are there by default")
    parser.add_argument("--warmups", nargs="*", choices=WARMUPS, default=list(WARMUPS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="plain colours and digits, one seed")
    parser.add_argument("--json", type=Path, help="the runs are added to those that it has")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    common.setup(args.threads)
    sets: dict[str, tuple[Callable[[], tuple[Samples, Samples]], int]] = {
        "plain colours": (colours, 30),
        "digits": (digits, 114),
    }
    if args.root is not None and not args.short:
        for name, build, steps in (("flowers", flowers, 116), ("cells", cells, 90), ("tiles", tiles, 90)):
            sets[name] = (partial(build, args.root), steps)
    known = args.json is not None and args.json.is_file()
    results: dict[str, Any] = json.loads(args.json.read_text())["results"] if known else {}
    made = {name: sets[name][0]() for name in args.sets or sets}
    for seed in range(args.first_seed, args.first_seed + (1 if args.short else args.seeds)):
        for name, samples in made.items():
            for warmup in args.warmups:
                accuracies, steps, learnt = run(samples, sets[name][1], WARMUPS[warmup], seed)
                row = results.setdefault(
                    name, {"steps": steps, "train": len(samples[0]), "val": len(samples[1]), "runs": []}
                )
                row["runs"] = [one for one in row["runs"] if (one["seed"], one["warmup"]) != (seed, warmup)]
                row["runs"].append({"seed": seed, "warmup": warmup, "training": learnt, "accuracies": accuracies})
                common.write(args.json, common.stamp(results=results))
                print(f"{name}, seed {seed}, {steps} steps, warm-up {warmup}", flush=True)
    show(results)


def show(results: dict[str, Any]) -> None:
    """Print the mean accuracy of each variant over the seeds, and the smallest and largest."""
    for name, row in results.items():
        print(f"\n{name}: {row['train']} images for training, {row['val']} for validation, {row['steps']} steps")
        for warmup in WARMUPS:
            runs = [one for one in row["runs"] if one["warmup"] == warmup]
            if not runs:
                continue
            learnt = statistics.mean(one["training"] for one in runs)
            print(f"  warm-up {warmup}, {len(runs)} seeds, training {learnt:.3f}")
            for variant in runs[-1]["accuracies"]:
                values = [one["accuracies"][variant] for one in runs if variant in one["accuracies"]]
                print(f"    {variant:40} {statistics.mean(values):.3f}  {min(values):.3f} to {max(values):.3f}")


if __name__ == "__main__":
    main()
