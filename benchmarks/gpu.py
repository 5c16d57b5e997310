"""All that is to be measured on a GPU, in one command of six minutes, for a machine with one and without a network.

    python benchmarks/gpu.py [--device cuda] [--parts tests,speed,pipeline,memory,waits] [--minutes 6] [--short]

The parts run in this order, the most valuable first, each in a process of its own with a limit of its own. Each figure
is a row of JSON in benchmarks/results/PART-DEVICE.json as soon as it is known, so that what was measured stays where
time runs out. `--device cpu --short` runs everything in small, which the tests do, so that it cannot rot.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit import AugmentationPipeline, Batch, MobileViTClassifier, Preprocess, policies

ROOT = Path(__file__).parents[1]
SHARES = {"tests": 0.25, "speed": 0.4, "pipeline": 0.15, "memory": 0.1, "waits": 0.1}  # of the minutes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------- timing


def wait(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(run: Callable[[], Any], device: torch.device, seconds: float) -> tuple[float, float]:
    """Run for some seconds after a warm-up, and return the best and the median seconds of a run."""
    for _ in range(2):
        run()
    wait(device)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        wait(device)
        taken.append(time.perf_counter() - began)
    taken.sort()
    return taken[0], taken[len(taken) // 2]


def peers(mode: str, ours: MobileViTClassifier) -> dict[str, nn.Module]:
    """Return ours and what of timm and transformers is installed, all of the same weights, and their fastest layout."""
    found: dict[str, nn.Module] = {"ours": ours}
    try:
        built = common.build_peers(ours, mode)
    except ImportError as error:
        print(f"# without peers: {error}", file=sys.stderr)
        return found
    return found | {name: built[name] for name in ("timm", "transformers")}


# -------------------------------------------------------------------------------------------------------------- parts


def speed(device: torch.device, short: bool) -> Iterator[Row]:
    """Images a second of inference and of a training step, eager and compiled, in bf16 and fp32."""
    batch, size, seconds = (4, 64, 0.2) if short else (256, 256, 1.5)
    rounds = [("bfloat16", False), ("float32", False)] + ([] if short else [("bfloat16", True), ("float32", True)])
    for precision, compiled in rounds:
        for mode in ("xxs",) if short else ("xxs", "s"):
            for training in (True, False):
                for name, built in peers(mode, common.build_ours(mode)).items():
                    network = built.to(device, memory_format=torch.channels_last).train(training)
                    images = torch.rand(batch, 3, size, size, device=device).contiguous(
                        memory_format=torch.channels_last
                    )
                    run = (
                        step_of(network, images, precision, compiled)
                        if training
                        else look_of(network, images, precision, compiled)
                    )
                    best, median = timed(run, device, seconds)
                    yield {
                        "what": "training step" if training else "inference",
                        "network": name,
                        "mode": mode,
                        "precision": precision,
                        "compiled": compiled,
                        "batch": batch,
                        "size": size,
                        "images_a_second": round(batch / best, 1),
                        "images_a_second_median": round(batch / median, 1),
                    }
                    del network, images, run
                    torch._dynamo.reset()


def amp(device: torch.device, precision: str) -> torch.autocast:
    """Return mixed precision, or none for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def step_of(network: nn.Module, images: Tensor, precision: str, compiled: bool) -> Callable[[], Any]:
    """Return a training step: forward, cross-entropy, backward, AdamW."""
    forward = torch.compile(network, dynamic=False) if compiled else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    labels = torch.arange(len(images), device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        with amp(images.device, precision):
            loss = F.cross_entropy(forward(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()

    return step


def look_of(network: nn.Module, images: Tensor, precision: str, compiled: bool) -> Callable[[], Any]:
    """Return a forward pass without gradients."""
    forward = torch.compile(network, dynamic=False) if compiled else network

    def look() -> Any:
        with torch.inference_mode(), amp(images.device, precision):
            return forward(images)

    return look


def shipped(size: int) -> dict[str, Any]:
    """Return the policies by name."""
    return {
        "classification_train": policies.classification_train(size),
        "classification_strong": policies.classification_strong(size, num_classes=10),
        "segmentation_train": policies.segmentation_train(size),
        "detection_train": policies.detection_train(size),
    }


def batch_for(policy: str, count: int, size: int, device: torch.device) -> Batch:
    """Return images somewhat larger than the result, with the targets of a policy's task, on the device."""
    torch.manual_seed(0)
    side = size + size // 8
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=device)
    if policy == "segmentation_train":
        return Batch(images, mask=torch.randint(0, 5, (count, side, side), device=device))
    if policy == "detection_train":
        corner = torch.rand(count, 20, 2) * side * 0.7
        boxes = torch.cat([corner, corner + 4 + torch.rand(count, 20, 2) * side * 0.25], -1).clamp(max=side)
        return Batch(images, boxes=boxes.to(device), box_label=torch.randint(0, 3, (count, 20)).to(device))
    return Batch(images, torch.arange(count, device=device) % 10)


def pipeline(device: torch.device, short: bool) -> Iterator[Row]:
    """The pipeline's time for each policy, beside bare Kornia and torchvision v2, and its share of a step of xxs."""
    import kornia.augmentation as K

    count, size, seconds = (4, 48, 0.2) if short else (256, 256, 1.0)
    network = common.build_ours("xxs").to(device, memory_format=torch.channels_last).train()
    images = torch.rand(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    step, _ = timed(step_of(network, images, "bfloat16", False), device, seconds)
    preprocess = Preprocess((size, size), mean=MEAN, std=STD)
    rounds = [(name, policy, False) for name, policy in shipped(size).items()]
    if device.type == "cuda":  # each is compiled in half a minute
        rounds += [
            (name, policy, True) for name, policy, _ in rounds if name in ("classification_train", "detection_train")
        ]
    for name, policy, compiled in rounds:
        ours = AugmentationPipeline(policy, preprocess=preprocess, compile=compiled).to(device).train()
        batch = batch_for(name, count, size, device)
        best, median = timed(lambda ours=ours, batch=batch: ours(batch), device, seconds)
        yield {
            "what": "pipeline",
            "policy": name,
            "compiled": compiled,
            "batch": count,
            "size": size,
            "ms": round(best * 1e3, 3),
            "ms_median": round(median * 1e3, 3),
            "share_of_step": round(best / (best + step), 4),
            "step_ms": round(step * 1e3, 3),
        }
    images = batch_for("classification_train", count, size, device).image
    bare = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), align_corners=False), K.RandomHorizontalFlip(), K.Normalize(MEAN, STD)
    )
    contestants: dict[str, Callable[[], Any]] = {"kornia": lambda: bare(images / 255)}
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        print(f"# without torchvision: {error}", file=sys.stderr)
    else:
        each = v2.Compose(
            [
                v2.RandomResizedCrop(size, antialias=False),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        contestants["torchvision v2, image by image"] = lambda: torch.stack([each(image) for image in images])
    for name, run in contestants.items():
        best, median = timed(run, device, seconds)
        row = {"what": name, "policy": "classification_train", "batch": count, "size": size}
        yield row | {"ms": round(best * 1e3, 3), "ms_median": round(median * 1e3, 3)}


def memory(device: torch.device, short: bool) -> Iterator[Row]:
    """Peak memory of a training step, by the device's own allocator; a CPU's is measured by benchmarks/memory.py."""
    if device.type != "cuda":
        yield {"what": "peak memory", "not_measured": f"no allocator of {device.type} tells; see benchmarks/memory.py"}
        return
    batch, size = (4, 64) if short else (128, 256)
    for mode in ("xxs", "s"):
        for name, network in peers(mode, common.build_ours(mode)).items():
            for saving in (False, True) if name == "ours" else (False,):
                model = copy.deepcopy(network).to(device, memory_format=torch.channels_last).train()
                if saving:
                    model.set_gradient_checkpointing("activations")
                images = torch.rand(batch, 3, size, size, device=device)
                step = step_of(model, images, "bfloat16", False)
                step()
                wait(device)
                torch.cuda.reset_peak_memory_stats(device)
                step()
                wait(device)
                yield {
                    "what": "peak memory",
                    "network": f"{name}, saving activations" if saving else name,
                    "mode": mode,
                    "batch": batch,
                    "size": size,
                    "mib": round(torch.cuda.max_memory_allocated(device) / 2**20, 1),
                }
                del model, images, step
                torch.cuda.empty_cache()


def waits(device: torch.device, short: bool) -> Iterator[Row]:
    """Whether the pipeline waits for the device, and whether the network can be captured in a graph."""
    count, size = (4, 48) if short else (64, 128)
    preprocess = Preprocess((size, size), mean=MEAN, std=STD)
    for name, policy in shipped(size).items():
        ours = AugmentationPipeline(policy, preprocess=preprocess).to(device).train()
        batch = batch_for(name, count, size, device)
        ours(batch)
        wait(device)
        row: Row = {"what": "waits", "policy": name, "error": None}
        try:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            ours(batch)
        except RuntimeError as error:
            row["error"] = f"{error}".splitlines()[0]
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        yield row
    network = common.build_ours("xxs").to(device).train()
    images, labels = torch.rand(count, 3, size, size, device=device), torch.arange(count, device=device)
    if device.type != "cuda":
        yield {"what": "capture", "not_measured": f"{device.type} has no graphs"}
        return
    expected = float(F.cross_entropy(network(images), labels))
    captured = torch.cuda.make_graphed_callables(copy.deepcopy(network), (images,))
    loss = F.cross_entropy(captured(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's
    yield {"what": "capture", "loss": float(loss), "eager_loss": expected}


PARTS: dict[str, Callable[[torch.device, bool], Iterator[Row]]] = {
    "speed": speed,
    "pipeline": pipeline,
    "memory": memory,
    "waits": waits,
}


# ------------------------------------------------------------------------------------------------------------- running


def run_tests(device: str, short: bool, limit: float, path: Path) -> bool:
    """Run the tests that take a device, and write how they ended."""
    files = ["tests/gpu"] if short else ["tests"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    command += ["-k", "classifier or matching or prepare"] if short else []
    environment = os.environ | {"KORNIA_MVIT_DEVICE": device}
    row: Row = {"what": "tests"}
    try:
        found = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=limit, capture_output=True, text=True, check=False
        )
        lines = found.stdout.splitlines()
        row |= {"status": found.returncode, "summary": lines[-1] if lines else found.stderr[-300:]}
        row["failed"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    except subprocess.TimeoutExpired as error:
        row |= {
            "status": None,
            "summary": f"stopped after {limit:.0f} s",
            "output": (error.output or b"")[-500:].decode(),
        }
    print(json.dumps(row), flush=True)
    common.write(path, common.stamp(device=device) | {"rows": [row]})
    return row["status"] == 0


def run_part(part: str, device: str, short: bool, limit: float, path: Path) -> bool:
    """Run a part in a process of its own, and write its rows as they come."""
    command = [sys.executable, __file__, "--part", part, "--device", device, *(["--short"] if short else [])]
    stamp, rows = common.stamp(device=device), list[Row]()
    if device != "cpu" and torch.accelerator.is_available():
        stamp["device_name"] = torch.cuda.get_device_name() if device.startswith("cuda") else device
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        watch = threading.Timer(limit, child.kill)
        watch.start()
        for line in child.stdout:
            print(line, end="", flush=True)
            rows.append(json.loads(line))
            common.write(path, stamp | {"rows": rows})
        status = child.wait()
        stopped = not watch.is_alive()
        watch.cancel()
    if status != 0:
        rows.append({"what": part, "ended": f"stopped after {limit:.0f} s" if stopped else f"status {status}"})
        print(json.dumps(rows[-1]), flush=True)
        common.write(path, stamp | {"rows": rows})
    return status == 0


def main() -> None:
    """Run the parts, and say at the end which of them did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default=",".join(SHARES), help="which, in the order given (default all)")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all parts together (default 6)")
    parser.add_argument("--short", action="store_true", help="everything in small, to see that it runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON files")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.part:
        common.setup(1 if args.device == "cpu" else 0)
        for row in PARTS[args.part](torch.device(args.device), args.short):
            print(json.dumps(row), flush=True)
        return
    wanted = args.parts.split(",")
    if unknown := [part for part in wanted if part not in SHARES]:
        raise SystemExit(f"there is no part {unknown[0]!r}; the parts are {', '.join(SHARES)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU; --device cpu --short shows what would run")
    bad = []
    for part in wanted:
        limit = args.minutes * 60 * SHARES[part] / sum(SHARES[one] for one in wanted)
        path = args.out / f"{'gpu-' if part == 'tests' else ''}{part}-{args.device.partition(':')[0]}.json"
        began = time.monotonic()
        good = (
            run_tests(args.device, args.short, limit, path)
            if part == "tests"
            else run_part(part, args.device, args.short, limit, path)
        )
        print(f"# {part}: {time.monotonic() - began:.0f} of {limit:.0f} s", file=sys.stderr, flush=True)
        if not good:
            bad.append(part)
    if bad:
        raise SystemExit(f"these did not end well: {', '.join(bad)}")


if __name__ == "__main__":
    main()
