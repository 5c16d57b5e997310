"""Inference beside Kornia's class, timm and transformers with the same weights, in turn in one process.

    python benchmarks/inference.py [--modes xxs,xs,s] [--batches 1,8] [--sizes 256] [--threads 1] [--compiled]
        [--runtimes] [--json FILE] [--png FILE] [--short]

Outputs are compared before the clock starts. Ratios are to the better of timm's two memory layouts, eager or compiled
as the contestant is. `--compiled` adds torch.compile with freezing, `--runtimes` ONNX Runtime and OpenVINO on the same
weights, for what is possible. The matrix-multiply bound is the network's multiplications at the rate of one large
torch.mm on the same threads. On a GPU, `--device cuda` with `--dtype float16`.
"""

import argparse
import functools
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kornia_mvit import fuse, optimize

FREEZING = {"options": {"freezing": True}}


def contestants(mode: str, images: Tensor, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Build all, and check that they agree."""
    ours = common.build_ours(mode)
    models: dict[str, nn.Module] = common.build_peers(ours, mode)
    if any(side % 64 for side in images.shape[-2:]):
        models.pop("kornia", None)  # which takes no size that a patch does not divide at the deepest map
        if mode.startswith("v2-"):
            del models["transformers"]  # which leaves out what a patch does not divide
    models["ours"] = ours
    models["ours, fused"] = fuse(ours)
    for model in models.values():
        model.eval().requires_grad_(False).to(args.device)
    runs: dict[str, Callable[[], Any]] = {}
    with torch.inference_mode():
        expected = ours(images)
        dtype = getattr(torch, args.dtype)
        for name, model in models.items():
            x = common.lay_out(name, images)
            if name != "kornia":
                common.check_equal(name, model(x), expected)
            runs[name] = functools.partial(model.to(dtype), x.to(dtype))
        settings = FREEZING if args.device == "cpu" else {}
        if args.compiled:
            for name in common.TIMM:
                x = common.lay_out(name, images).to(dtype)
                compiled = torch.compile(models[name], dynamic=False, **settings)
                common.check_equal(name, compiled(x).float(), expected, 1e-4 if dtype == torch.float32 else 0.1)
                runs[f"{name}, compiled"] = functools.partial(compiled, x)
        if args.compiled or args.optimized:
            fast = optimize(ours, images, dtype=None if dtype == torch.float32 else dtype)
            print(f"\n{fast.report}")
            common.check_equal("ours, optimized", fast(images), expected, 1e-4 if dtype == torch.float32 else 0.1)
            runs["ours, optimized"] = functools.partial(fast, images)
        if args.compiled:
            x = common.lay_out("channels_last", images).to(dtype)
            compiled = torch.compile(models["ours, fused"], dynamic=False, **settings)
            compiled(x)
            runs["ours, fused, compiled"] = functools.partial(compiled, x)
        if args.runtimes:
            for name, run in runtimes(models["ours, fused"], images).items():
                common.check_equal(name, torch.as_tensor(run()), expected)
                runs[name] = run
    return runs


def runtimes(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Any]]:
    """ONNX Runtime and OpenVINO, on as many threads as torch has, for images of this size."""
    import onnxruntime
    import openvino

    threads, array = torch.get_num_threads(), images.numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (images,), path, dynamo=True, external_data=False, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(path),
            "CPU",
            {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"},
        )
    feed = {session.get_inputs()[0].name: array}
    request = compiled.create_infer_request()
    return {
        "ONNX Runtime": lambda: session.run(None, feed)[0],
        "OpenVINO": lambda: next(iter(request.infer([array]).values())),
    }


def bound(mode: str, images: Tensor) -> dict[str, float]:
    """Multiplications and additions of the network, and how long they take at the rate of one large product."""
    model = common.build_ours(mode).eval().to(images.device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(images)
    a, b = (torch.rand(1024, 1024, device=images.device) for _ in range(2))
    taken = min(common.race({"mm": lambda: torch.mm(a, b)}, 20)["mm"])
    rate = 2 * 1024**3 / taken
    flops = counter.get_total_flops()
    return {"gflop": flops / 1e9, "gflop_per_s": rate / 1e9, "ms": 1e3 * flops / rate}


def main() -> None:
    """Run the races, print tables, write JSON and a chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modes", default="xxs,xs,s", help="v2-0.5 and so on for the second version")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--sizes", default="256", help="sides, or heights x widths: 256,224,320x192")
    parser.add_argument("--compiled", action="store_true", help="torch.compile too, some minutes more")
    parser.add_argument("--optimized", action="store_true", help="what optimize keeps, too; --compiled has it")
    parser.add_argument("--runtimes", action="store_true", help="ONNX Runtime and OpenVINO too")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--short", action="store_true", help="6 seconds a race")
    common.add_arguments(parser, seconds=12.0, repeats=40)
    args = parser.parse_args()
    if args.short:
        args.seconds = 6.0
    warnings.filterwarnings("ignore")
    common.setup(args.threads)
    results, panels, began = {}, {}, time.perf_counter()
    for mode in args.modes.split(","):
        for size in args.sizes.split(","):
            height, _, width = size.partition("x")
            for batch in map(int, args.batches.split(",")):
                images = torch.rand(batch, 3, int(height), int(width or height), device=args.device)
                torch._dynamo.reset()
                runs = contestants(mode, images, args)
                with torch.inference_mode():
                    times = common.race(runs, args.repeats, args.seconds)
                rows = common.compare(times, common.TIMM)
                title = f"{mode}, batch {batch}, {size} px"
                limit = bound(mode, images)
                common.show(title, rows, "the better timm, eager")
                if args.compiled:
                    theirs = [f"{name}, compiled" for name in common.TIMM]
                    against = common.compare(times, theirs)["ours, optimized"]
                    print(
                        f"  optimized to the better timm compiled: {against['ratio_of_bests']:.2f} of bests, "
                        f"{against['ratio_median']:.2f} median"
                    )
                    rows["ours, optimized"]["ratio_to_compiled_of_bests"] = against["ratio_of_bests"]
                    rows["ours, optimized"]["ratio_to_compiled_median"] = against["ratio_median"]
                best = min(row["best_ms"] for name, row in rows.items() if name in common.TIMM)
                print(f"  matrix-multiply bound {limit['ms']:.1f} ms: {limit['ms'] / best:.2f} of the better timm")
                results[title] = {"rows": rows, "bound": limit}
                panels[title] = {name: row["ratio_median"] for name, row in rows.items()}
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    common.write(args.json, common.stamp(device=args.device, dtype=args.dtype, results=results))
    if args.png is not None:
        threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
        common.draw_bars(args.png, panels, "time, ratio to the better timm (eager)", f"Inference, {threads}")


if __name__ == "__main__":
    main()
