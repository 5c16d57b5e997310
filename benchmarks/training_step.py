"""A training step (forward, cross-entropy, backward, AdamW) beside Kornia's class, timm and transformers.

    python benchmarks/training_step.py [--modes xxs,xs,s] [--sizes 128,256] [--batch 16] [--threads 1] [--compiled]
        [--timm] [--kept] [--json FILE] [--png FILE] [--short]

All start from the same weights, take the same optimiser with the same flags (AdamW, fused), and run in one process, in
turn; losses of the first step are compared. Ratios are to the faster of timm's two memory layouts, eager or compiled as
the contestant is. With ``--kept`` all keep the memory that a step gives back, as the tasks do on a CPU.
"""

import argparse
import copy
import warnings
from collections.abc import Callable

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.training.heap import keep_freed_memory


def make_step(model: nn.Module, images: Tensor, labels: Tensor, amp: torch.dtype | None) -> Callable[[], Tensor]:
    """A step of training that gives its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def contestants(mode: str, size: int, args: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Build all, and check that they start from the same loss."""
    ours = common.build_ours(mode)
    models: dict[str, nn.Module] = common.build_peers(ours, mode)
    if args.compiled or args.timm:
        models = {name: models[name] for name in common.TIMM}
    models["ours"] = ours
    models["ours, channels_last"] = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    if not args.compiled:
        saving = copy.deepcopy(models["ours, channels_last"])
        saving.set_gradient_checkpointing("activations")
        models["ours, channels_last, saving activations"] = saving
    images = torch.rand(args.batch, 3, size, size, device=args.device)
    labels = torch.arange(args.batch, device=args.device)
    amp = None if args.amp == "none" else getattr(torch, args.amp)
    steps, losses = {}, {}
    for name, model in models.items():
        model.train().to(args.device)
        network = torch.compile(model, dynamic=False) if args.compiled else model
        steps[name] = make_step(network, common.lay_out(name, images), labels, amp)
        losses[name] = steps[name]().item()
    for name, loss in losses.items():
        tolerance = 1e-3 if amp is None else 0.1
        if name != "kornia" and abs(loss - losses["timm"]) > tolerance * abs(losses["timm"]):
            raise SystemExit(f"{name} starts from another loss: {loss}, and timm from {losses['timm']}")
    return steps


def main() -> None:
    """Run the races, print tables, write JSON and a chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modes", default="xxs,xs,s")
    parser.add_argument("--sizes", default="128,256")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compiled", action="store_true", help="compiled against compiled, with timm alone")
    parser.add_argument("--timm", action="store_true", help="without Kornia's class and transformers")
    parser.add_argument("--kept", action="store_true", help="with freed memory kept for the next step")
    parser.add_argument("--amp", default="none", choices=("none", "bfloat16", "float16"))
    parser.add_argument("--short", action="store_true", help="xxs at 128 px alone")
    common.add_arguments(parser, seconds=25.0, repeats=20)
    args = parser.parse_args()
    if args.short:
        args.modes, args.sizes, args.seconds = "xxs", "128", 15.0
    warnings.filterwarnings("ignore")
    common.setup(args.threads)
    if args.kept and not keep_freed_memory():
        raise SystemExit("this machine's malloc, or its environment, does not let memory be kept")
    results, panels = {}, {}
    how = ("compiled" if args.compiled else "eager") + (", memory kept" if args.kept else "")
    for mode in args.modes.split(","):
        for size in map(int, args.sizes.split(",")):
            torch._dynamo.reset()
            times = common.race(contestants(mode, size, args), args.repeats, args.seconds)
            title = f"{mode}, batch {args.batch}, {size} px, {how}"
            results[title] = common.compare(times, common.TIMM)
            common.show(title, results[title], "the faster timm")
            panels[title] = {name: row["ratio_median"] for name, row in results[title].items()}
    common.write(args.json, common.stamp(device=args.device, amp=args.amp, batch=args.batch, results=results))
    if args.png is not None:
        common.draw_bars(args.png, panels, "time of a step, ratio to the faster timm", f"Training step, {how}")


if __name__ == "__main__":
    main()
