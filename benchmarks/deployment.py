"""Size and latency of one classifier in every form that runs here, batch 1, in turn in one process.

    python benchmarks/deployment.py [--mode xxs] [--size 256] [--threads 1] [--json FILE]

The process is bound to as many cores as it has threads, as ExecuTorch counts cores. Outputs of the float32 forms are
compared before the clock starts. Weights are random; int8 forms are calibrated on noise, which costs no time.
"""

import argparse
import functools
import os
import tempfile
import warnings
from pathlib import Path

import common
import torch

from kornia_mvit import Preprocess, fuse, optimize
from kornia_mvit.exporters import (
    file_size,
    load_executorch,
    load_onnx,
    load_openvino,
    quantize_executorch,
    quantize_onnx,
    to_executorch,
    to_onnx,
    to_openvino,
)


def main() -> None:
    """Write all files, race what runs them, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", default="xxs")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    common.setup(args.threads)
    model = common.build_ours(args.mode).eval()
    model.preprocess = Preprocess((args.size, args.size))
    image = torch.rand(1, 3, args.size, args.size)
    noise = [(torch.rand(3, args.size, args.size) * 255).to(torch.uint8) for _ in range(8)]
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        with torch.inference_mode(False):
            files = {
                "ONNX Runtime": to_onnx(model, folder / "model.onnx", size=args.size),
                "OpenVINO": to_openvino(model, folder / "model.xml", size=args.size),
                "ExecuTorch": to_executorch(model, folder / "model.pte", size=args.size),
                "ONNX Runtime, int8": quantize_onnx(model, folder / "int8.onnx", noise, size=args.size),
                "ExecuTorch, int8": quantize_executorch(model, folder / "int8.pte", noise, size=args.size),
            }
        loaders = {"ONNX": load_onnx, "Open": load_openvino, "Exec": load_executorch}
        runs = {"eager": model, "fused": fuse(model), "optimized": optimize(model, image)}
        print(runs["optimized"].report)
        runs |= {title: loaders[title[:4]](path) for title, path in files.items()}
        expected = model(image)
        for title, run in runs.items():
            if "int8" not in title:
                output = run(image)
                common.check_equal(title, output[0] if isinstance(output, tuple) else output, expected)
        sizes = {title: file_size(path) / 1e6 for title, path in files.items()}
        sizes |= dict.fromkeys(("eager", "fused", "optimized"), sum(p.numel() for p in model.parameters()) * 4 / 1e6)
        times = common.race({title: functools.partial(run, image) for title, run in runs.items()}, 300, args.seconds)
    rows = common.compare(times, ["eager"])
    common.show(f"{args.mode}, batch 1, {args.size} px, {args.threads} thread(s)", rows, "eager")
    for title, row in rows.items():
        row["megabytes"] = sizes[title]
        print(f"  {title:22}{sizes[title]:7.1f} MB, {sizes[title] / sizes['eager']:.2f} of the weights")
    common.write(args.json, common.stamp(mode=args.mode, size=args.size, results=rows))


if __name__ == "__main__":
    main()
