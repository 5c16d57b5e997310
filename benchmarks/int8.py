"""What int8 by OpenVINO does to the scores of a checkpoint on the validation images of its dataset.

    python benchmarks/int8.py DIR CHECKPOINT [--calibration FOLDER] [--images 64] [--ignore-label 11] [--json FILE]

DIR is the dataset, in a layout that ``kornia_mvit.evaluate`` finds by itself; FOLDER has images of its training part.
"""

import argparse
import warnings
from pathlib import Path

import common
import torch

import kornia_mvit
from kornia_mvit.data.reading import find_images, read_image


def main() -> None:
    """Evaluate twice, print both, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, help="a folder of images; train/ of the data unless given")
    parser.add_argument("--images", type=int, default=64, help="how many of them are read")
    parser.add_argument("--ignore-label", type=int, help="of label images")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    files = find_images(args.calibration or args.data / "train")
    chosen = [files[round(n)] for n in torch.linspace(0, len(files) - 1, min(args.images, len(files))).tolist()]
    images = [read_image(file) for file in chosen]
    model = kornia_mvit.from_pretrained(args.checkpoint)
    assert model.preprocess is not None
    prepared = model.preprocess(images[0])
    fast = kornia_mvit.optimize(model, prepared, precision="int8", calibration=images)
    options = {} if args.ignore_label is None else {"ignore_label": args.ignore_label}
    before = kornia_mvit.evaluate(model, args.data, **options)
    model.forward = fast.forward  # evaluate copies the model, and this with it
    after = kornia_mvit.evaluate(model, args.data, **options)
    print(fast.report)
    for name in sorted(before.keys() & after.keys()):
        print(f"{name:24s}{before[name]:10.4f}{after[name]:10.4f}{after[name] - before[name]:+10.4f}")
    common.write(args.json, common.stamp(images=len(images), results={"float32": before, "int8": after}))


if __name__ == "__main__":
    main()
