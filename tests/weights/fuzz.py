"""Checkpoints as training programs write them: weights are found among all that stands around them, or a line says why.

``python -m tests.weights.fuzz --cases 20000`` wraps true weights of every layout at random: in dictionaries under any
keys, with prefixes, beside tensors, settings and optimisers, in other dtypes, with other heads. The one that wraps them
knows what must come out: the same weights, and so the same outputs, or an error of one line.
"""

import argparse
import collections
import random
import sys
import tempfile
import time
import traceback
import warnings
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, SSDLite
from kornia_mvit.weights.checkpoints import load_checkpoint
from kornia_mvit.weights.files import CheckpointError, read_checkpoint
from kornia_mvit.weights.layouts import LAYOUTS, from_native
from kornia_mvit.weights.layouts.heads import HEADS, head_from_native, head_name

CLASSES = 3
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "best", "generator"),
    *("teacher", "student", "ema", "model_ema", "state_dict_ema", "shadow", "swa"),
)
AVERAGED = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema", "swa_model")
RAW = ("state_dict", "model", "net", "network", "model_state_dict")
PREFIXES = ("", "", "", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "ema_model.module.")
DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.complex64)
SCORE = torch.tensor(0.7)


@dataclass
class Case:
    """A checkpoint, and what must come of it.

    Args:
        data: what the file holds.
        task: what the model to load it into is for; None for a backbone.
        expected: the model's weights after loading, by our names; None where an error must come.
        told: what was done, for reports.
    """

    data: dict[str, Any]
    task: str | None
    expected: dict[str, Tensor] | None
    told: str


class Models:
    """Networks of each task and variant, and weights under our names that tell every tensor from every other."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.targets: dict[tuple[str, str | None], Any] = {}
        for variant in ("apple", "kornia"):
            self.targets[variant, None] = MobileViT("xxs", variant=variant)
            self.targets[variant, "classification"] = MobileViTClassifier("xxs", CLASSES, variant=variant)
        self.targets["apple", "segmentation"] = DeepLabV3("xxs", CLASSES, aspp_channels=8)
        self.targets["apple", "detection"] = SSDLite("xxs", CLASSES)
        self.live = {key: model.state_dict() for key, model in self.targets.items()}  # their own memory
        self.states = {key: _distinct(model.state_dict()) for key, model in self.targets.items()}


def _distinct(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of numbers that every dtype here holds, except int8, each tensor with others."""
    out = {}
    for number, (name, value) in enumerate(state.items()):
        start = (37 * number) % 101
        flat = torch.arange(start, start + value.numel()) % 101 + number % 7
        out[name] = flat.to(value.dtype).reshape(value.shape) / (1 if value.dtype == torch.int64 else 8)
        out[name] = out[name].to(value.dtype)
    return out


def make_case(models: Models, rng: random.Random) -> Case:
    """Wrap the weights of a layout at random."""
    layout = rng.choice(list(LAYOUTS))
    variant = "kornia" if layout == "kornia" else "apple"
    held: str | None = rng.choice([None, *HEADS[layout]])
    task = held if rng.random() < 0.8 else None  # a backbone takes those of any task
    own = models.states[variant, held]
    expected: dict[str, Tensor] | None = dict(own)
    state = _name(own, layout, held, rng)
    told = [f"{layout}, {held} into {task}"]
    if layout == "kornia" and held:
        state.pop("fc.bias")
        expected = own | {"classifier.bias": torch.zeros(CLASSES)}
    if task is None and held is not None:
        body = {key.removeprefix("backbone."): value for key, value in own.items() if key.startswith("backbone.")}
        whole = models.live[variant, None].keys() <= body.keys()
        expected = body if whole else None  # those of other tasks lack the last convolution

    dtype = rng.choice(DTYPES)
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    if not dtype.is_floating_point:
        expected = None
    if rng.random() < 0.3:
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        if expected is not None:  # counters stay as they are
            expected = {k: v for k, v in expected.items() if not k.endswith("num_batches_tracked")}
    if rng.random() < 0.1:
        gone = rng.choice([key for key in state if not key.endswith("num_batches_tracked")])
        misspelt = rng.random() < 0.5
        if task or not held or head_name(gone, layout, held) is None:  # a backbone takes nothing of a head
            expected = None
        value = state.pop(gone)
        if misspelt:
            state[f"{gone}s"] = value
        told.append(f"{gone} {'misspelt' if misspelt else 'gone'}")
    prefix = rng.choice(PREFIXES)
    state = {f"{prefix}{key}": value for key, value in state.items()}
    if prefix and rng.random() < 0.3:
        state["n_averaged"] = torch.tensor(5)
    if rng.random() < 0.1:
        state["best_acc1"] = SCORE
    items = list(state.items())
    rng.shuffle(items)
    data: Any = dict(items)
    told.append(f"{dtype}, prefix {prefix!r}")
    data, keys = _wrap(data, rng)
    told.append(f"under {keys}")
    return Case(data, task, expected, "; ".join(told))


def _name(own: dict[str, Tensor], layout: str, task: str | None, rng: random.Random) -> dict[str, Tensor]:
    if task is None:
        return from_native(own, layout)
    body = {key.removeprefix("backbone."): value for key, value in own.items() if key.startswith("backbone.")}
    head = {key: value for key, value in own.items() if not key.startswith("backbone.")}
    prefix = HEADS[layout][task].prefix
    return {f"{prefix}{k}": v for k, v in from_native(body, layout).items()} | head_from_native(head, layout, task)


def _wrap(state: dict[str, Tensor], rng: random.Random) -> tuple[dict[str, Any], str]:
    """Put weights into dictionaries, beside whatever training programs put there."""
    data: Any = state
    keys = []
    if rng.random() < 0.25:  # raw weights of the same names beside averaged ones
        averaged, raw = rng.choice(AVERAGED), rng.choice(RAW)
        other = {key: torch.zeros_like(value) for key, value in state.items()}
        inner = {"decay": SCORE, "module": state} if rng.random() < 0.3 else state
        data = dict(rng.sample([(averaged, inner), (raw, other)], 2))
        keys.append(averaged)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        key = rng.choice(WRAPPERS)
        data = {key: data} if rng.random() < 0.9 else {key: [data]}
        keys.append(key)
        beside = _beside(rng) if rng.random() < 0.8 else {}
        items = [*data.items(), *((k, v) for k, v in beside.items() if k not in data)]
        rng.shuffle(items)
        data = dict(items)
    return data, ".".join(reversed(keys))


def _beside(rng: random.Random) -> dict[str, Any]:
    moments = {n: {"step": SCORE, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)} for n in range(4)}
    known: dict[str, Any] = {
        "best_acc1": SCORE,
        "epoch": 3,
        "scores": torch.rand(5),
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
        "optimizer_states": [{"state": moments}],
        "scaler": {"scale": SCORE},
        "ema": None,
        "model": {},
        "criterion": {"weight": torch.ones(CLASSES)},
        "discriminator": {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.ones(4)},
        "arch": "mobilevit_xxs",
        "args": Namespace(lr=0.1, names=["a"], nested=Namespace(b=None)),
        "metric": np.float64(76.5),
        "output": Path("runs"),
        "rng": [torch.zeros(8, dtype=torch.uint8)],
    }
    return {key: known[key] for key in rng.sample(list(known), rng.randint(1, 5))}


def complaint(models: Models, case: Case, path: Path | None) -> str | None:
    """Load a checkpoint, and say what is wrong with what comes of it; None for nothing.

    Args:
        models: what they are loaded into.
        case: the checkpoint.
        path: a file to write it to, and to read it from; None to load what it would hold.
    """
    variant = "kornia" if case.told.startswith("kornia") else "apple"
    model, found = models.targets[variant, case.task], models.live[variant, case.task]
    torch._foreach_zero_([value for value in found.values() if value.is_floating_point()])
    try:
        data = case.data
        if path is not None:
            torch.save(data, path)
            data = read_checkpoint(path)
        load_checkpoint(model, data, name="a.pt")
    except CheckpointError as refusal:
        message = str(refusal)
        if "\n" in message or len(message) > 2000 or "a.pt" not in message:
            return f"not one line that names the file: {message[:200]!r}"
        return None if case.expected is None else f"refused: {message[:300]}"
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "kornia_mvit" in f.filename]
        return f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {str(error)[:150]!r}"
    if case.expected is None:
        return "no error"
    wrong = [key for key, value in case.expected.items() if not torch.equal(found[key], value)]
    return f"{len(wrong)} weights are others, such as {wrong[0]}" if wrong else None


def run(models: Models, cases: int, seed: int, folder: Path) -> dict[str, list[str]]:
    """Load random checkpoints, one in 32 through a file; return what went wrong, and in which cases."""
    wrong: dict[str, list[str]] = collections.defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(cases):
            case = make_case(models, random.Random(f"{seed} {number}"))
            found = complaint(models, case, folder / "a.pt" if number % 32 == 0 else None)
            if found is not None:
                wrong[found].append(f"{number} ({case.told})")
    return dict(wrong)


def main() -> int:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        wrong = run(Models(), args.cases, args.seed, Path(folder))
    print(f"{args.cases} cases, seed {args.seed}, {time.perf_counter() - began:.0f} s, {len(wrong)} faults", flush=True)
    for fault, cases in wrong.items():
        print(f"  {len(cases)} times, first in case {cases[0]}: {fault}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
