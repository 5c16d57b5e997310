"""A training step with learned ranges beside one without, augmentation included.

    python benchmarks/learned_ranges.py [--mode xxs] [--size 128] [--batch 64] [--threads 1] [--json FILE]

The step is that of the recipe ``folder``: crop and flip of uint8 images, forward, cross-entropy, backward, AdamW. So
are the others, with colour jitter, and with learned ranges whose ends learn from the similarity alone, from the task
too, or which are all eight. They run in one process, in turn.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit import AugmentationPipeline, Batch, MobileViTClassifier, Preprocess, policies

EVERY = ("brightness", "contrast", "saturation", "hue", "gamma", "sharpness", "blur", "noise")


def make_step(pipeline: AugmentationPipeline, args: argparse.Namespace) -> Callable[[], Tensor]:
    """A step of training that gives its loss."""
    torch.manual_seed(0)
    model = MobileViTClassifier(args.mode, 5).to(args.device).to(memory_format=torch.channels_last).train()
    pipeline = pipeline.to(args.device).train()
    groups: list[Any] = [{"params": list(model.parameters()), "lr": 1e-4}]
    if pipeline.ranges is not None:
        groups.append({"params": list(pipeline.ranges.parameters()), "lr": 0.05, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, fused=True)
    images = torch.randint(0, 256, (args.batch, 3, args.size, args.size), dtype=torch.uint8, device=args.device)
    batch = Batch(images, torch.arange(args.batch, device=args.device) % 5)

    def step() -> Tensor:
        optimizer.zero_grad()
        if pipeline.ranges is None:
            out, extra = pipeline.augment(batch)[0], torch.zeros((), device=args.device)
        else:
            out, _, found = pipeline.augment_with_loss(batch)
            assert found.loss is not None
            extra = found.loss
        loss = F.cross_entropy(model(out.image.contiguous(memory_format=torch.channels_last)), out.label)
        (loss + extra).backward()
        optimizer.step()
        return loss.detach()

    return step


def main() -> None:
    """Run the race, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", default="xxs")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    common.add_arguments(parser, seconds=40.0, repeats=10)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    common.setup(args.threads)

    def build(policy: Any) -> AugmentationPipeline:
        return AugmentationPipeline(policy, preprocess=Preprocess(args.size, crop=args.size))

    crop: dict[str, Any] = {"scale": (0.35, 1.0)}
    learned = policies.classification_learned
    steps = {
        "plain": build(policies.classification_train(args.size, **crop)),
        "jitter": build(policies.classification_train(args.size, jitter=0.3, **crop)),
        "learned": build(learned(args.size, target_psnr=20, **crop)),
        "learned, task gradients": build(learned(args.size, target_psnr=20, task_gradients=True, **crop)),
        "learned, eight": build(learned(args.size, target_psnr=20, operations=EVERY, **crop)),
    }
    times = common.race({name: make_step(one, args) for name, one in steps.items()}, args.repeats, args.seconds)
    rows = common.compare(times, ("plain",))
    common.show(f"{args.mode}, batch {args.batch}, {args.size} px", rows, "plain")
    common.write(args.json, common.stamp(device=args.device, batch=args.batch, size=args.size, results=rows))


if __name__ == "__main__":
    main()
