# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a checkpoint to a phone
#
# A phone has a camera image, of whatever size, and wants an answer. This notebook trains a small classifier and writes
# it as one ONNX file that takes such an image and gives probabilities: with the preprocessing inside, then in 8-bit
# numbers. Then it looks whether the files still give the same answers, and what they weigh and take.

# %%
import json
import logging
import os
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", "IProgress not found")  # there is no progress bar here to be drawn by ipywidgets
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning 2.6 on torch 2.14
warnings.filterwarnings("ignore", "The '.*' does not have many workers")  # images this small need none

import matplotlib.pyplot as plt
import onnxruntime
import pytorch_lightning as pl
import torch
from PIL import Image as Picture
from torch import nn

import kornia_mvit
from kornia_mvit.data.reading import read_image
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.exporters import compare, file_size, load_onnx, quantize_onnx, time_in_turn, to_onnx
from kornia_mvit.training import ClassificationTask
from kornia_mvit.training.datamodules import FolderData

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
pl.seed_everything(0, verbose=False)
os.chdir(tempfile.mkdtemp())  # for the files that are written below

# %% [markdown]
# ## A classifier
#
# It tells circles, squares and triangles apart, in images of one shape each.

# %%
for split, count, seed in (("train", 384, 1), ("val", 120, 2)):
    for number, sample in enumerate(Shapes(count, (80, 100), shapes=(1, 1), radius=(0.25, 0.4), seed=seed)):
        path = Path("images", split, Shapes.class_names[sample["label"]], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(path)

data = FolderData("images", batch_size=32, num_workers=0)
task = ClassificationTask(
    "xxs",
    num_classes=3,
    image_size=64,
    policy_args={"scale": (0.8, 1.0), "ratio": (1.0, 1.25)},
    learning_rate=4e-3,
)
trainer = pl.Trainer(
    max_epochs=8,
    check_val_every_n_epoch=2,
    gradient_clip_val=1.0,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
)
trainer.fit(task, data)
trainer.save_checkpoint("shapes.ckpt")
print(f"{trainer.callback_metrics['val/accuracy']:.1%} of 120 images")

# %% [markdown]
# The checkpoint carries all that the phone has to know: the network, the names of the classes, and what images go
# through before the network sees them.

# %%
model = kornia_mvit.from_pretrained("shapes.ckpt")
print(model.class_names, model.preprocess, sep="\n")

# %% [markdown]
# ## Fused
#
# In evaluation a batch normalisation multiplies and adds; the convolution before it can do that as well. `fuse` gives a
# copy without normalisations, and exports fuse by themselves.

# %%
fused = kornia_mvit.fuse(model)
image = torch.rand(1, 3, 64, 64)
with torch.no_grad():
    print(f"largest difference {(model(image) - fused(image)).abs().max():.1e}")
for name, network in {"model": model, "fused": fused}.items():
    print(f"{name}: {sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())} batch normalisations")

# %% [markdown]
# ## One file
#
# `with_preprocess` puts resize, crop, mean and std into the file, `with_decode` the softmax, and `nhwc` is how cameras
# have their pixels. The file needs ONNX Runtime and no package of ours; it even knows the names of its classes.

# %%
as_camera = {"with_preprocess": True, "with_decode": True, "layout": "nhwc"}
to_onnx(model, "shapes.onnx", **as_camera)

session = onnxruntime.InferenceSession("shapes.onnx", providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
for end in (*session.get_inputs(), *session.get_outputs()):
    print(end.name, end.type, end.shape)

# %% [markdown]
# An image as a camera might give it, of an odd size, in whole numbers from 0 to 255, goes in as it is:

# %%
photo = Shapes(1, (361, 487), shapes=(1, 1), radius=(0.3, 0.4), seed=11)[0]["image"].permute(1, 2, 0).numpy()
(probabilities,) = session.run(None, {"image": photo[None]})

figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2.4), dpi=80, layout="constrained")
left.imshow(photo)
left.set(title=f"{photo.dtype} {photo.shape}", xticks=[], yticks=[])
right.barh(names, probabilities[0])
right.set(xlim=(0, 1), title="probability")
right.grid(axis="x", alpha=0.3)

# %% [markdown]
# ## In 8-bit numbers
#
# Convolutions and linear layers can compute with 8-bit numbers. Which range these have to span, some dozens of images
# tell: they should be like those that the phone will see. What such rounding harms stays in float: normalisations,
# softmax and the first convolution.

# %%
calibration = [read_image(path) for path in sorted(Path("images/train").rglob("*.png"))[::8]]
quantize_onnx(model, "shapes_int8.onnx", calibration, **as_camera)
print(f"calibrated on {len(calibration)} images")

# %% [markdown]
# ## Equal
#
# Four ways from an image to probabilities, on the 120 images that training did not see. The difference to the first is
# the largest of any probability; top-1 are the likeliest classes. All resize in floating point. `Preprocess` does so
# for images in [0, 1]; given whole numbers, as in training, it rounds what it resized to 8 bits, as image files have
# them.

# %%
prepare = model.preprocess.module()


@torch.no_grad()
def eager(image):
    return model(prepare(image.permute(0, 3, 1, 2) / 255)).softmax(1)


@torch.no_grad()
def eager_fused(image):
    return fused(prepare(image.permute(0, 3, 1, 2) / 255)).softmax(1)


torch.set_num_threads(1)
runs = {
    "PyTorch": eager,
    "PyTorch, fused": eager_fused,
    "ONNX": load_onnx("shapes.onnx", threads=1),
    "ONNX, int8": load_onnx("shapes_int8.onnx", threads=1),
}
paths = sorted(Path("images/val").rglob("*.png"))
images = [read_image(path).permute(1, 2, 0)[None] for path in paths]
truths = [names.index(path.parent.name) for path in paths]
for name, run in runs.items():
    found = [run(image) for image in images]
    chosen = [int((one[0] if isinstance(one, tuple) else one).argmax()) for one in found]
    right = sum(a == b for a, b in zip(chosen, truths, strict=True)) / len(truths)
    print(f"{name:<15} {right:6.1%} right, {compare(run, eager, images, 'classification')}")

# %% [markdown]
# What stays in floating point is equal to rounding. In 8-bit numbers probabilities move, most where the network was
# unsure, and what counts is whether answers stay.
#
# ## Smaller and faster
#
# Each takes the photo above in turn, from its pixels to the probabilities, on one thread, so that whatever else the
# machine does slows all of them. Times are this machine's and travel badly; the ratios of the medians travel better.

# %%
pixels = torch.from_numpy(photo)[None]
seconds = time_in_turn({name: lambda run=run: run(pixels) for name, run in runs.items()}, rounds=40, warmup=5)
torch.save(fused.state_dict(), "fused.pt")
torch.save(model.state_dict(), "model.pt")
files = dict(zip(runs, ("model.pt", "fused.pt", "shapes.onnx", "shapes_int8.onnx"), strict=True))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), dpi=80, layout="constrained", sharey=True)
for name in reversed(runs):
    size = file_size(files[name])
    left.bar_label(left.barh(name, size / 1e6, color="tab:blue"), [f"{size / file_size('model.pt'):.2f}"])
    ratio = seconds[name] / seconds["PyTorch"]
    right.bar_label(right.barh(name, seconds[name] * 1e3, color="tab:orange"), [f"{ratio:.2f}"])
left.set(title="file, MB (ratio)")
right.set(title="one image, ms (ratio)")
for axis in (left, right):
    axis.margins(x=0.15)

# %% [markdown]
# On an input as small as 64×64 pixels 8-bit numbers save size more than time; `docs/export.rst` has the times of larger
# networks at 256×256.
#
# ## On to the phone
#
# - **Android, iOS and browsers** run the ONNX file with ONNX Runtime as it is; `make browser-demo` builds a page that
#   does.
# - **ExecuTorch** makes programs for Android and others, each for images up to one size, of which `--size` tells the
#   largest; `--int8 --calibration DIR` for 8-bit numbers.
# - **Core ML** makes packages for iOS. Only macOS runs them.
#
# The command line writes all of these from the checkpoint, with a table of sizes, times and differences. The first line
# is what this notebook did:
#
# ```console
# $ kornia-mvit export shapes.ckpt shapes_int8.onnx --with-preprocess --with-decode --layout nhwc \
#     --int8 --calibration images/train --labelled images/val
# $ kornia-mvit export shapes.ckpt camera.pte --with-preprocess --with-decode --layout nhwc --size 1080x1920
# $ kornia-mvit export shapes.ckpt camera.mlpackage --with-preprocess --with-decode --size 1080x1920
# ```
#
# `docs/export.rst` has the formats, what goes in and out of them, and what was measured.
