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
# # A class for each pixel
#
# `DeepLabV3` is the head of DeepLabv3 on Apple's MobileViT and predicts a class for each pixel of an image. Here its
# smallest size learns to tell circles, squares and triangles from the ground they lie on, from scratch, in less than a
# minute on two CPU cores. The images are synthetic, with no dataset to download; they are written as files, so that you
# can use your own images instead.

# %%
import logging
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", "IProgress not found")  # there is no progress bar here to be drawn by ipywidgets
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning 2.6 on torch 2.14
warnings.filterwarnings("ignore", "The '.*' does not have many workers")  # images this small need none

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from IPython.display import Image
from PIL import Image as Picture

import kornia_mvit
from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.draw.images import draw_batch, draw_overlay, label_image
from kornia_mvit.inference.sliding_window import predict_maps
from kornia_mvit.training import Report, SegmentationTask
from kornia_mvit.training.datamodules import SegmentationFolderData

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
pl.seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The data: images and label images
#
# Images lie in one folder, their label images in another under the same names. A label image is a PNG with the number
# of a class for each pixel: here 0 for the background and 1, 2, 3 for the shapes; 255 marks pixels to ignore.

# %%
for split, count, seed in (("train", 320, 1), ("val", 48, 2)):
    images, labels = folder / split, folder / f"{split}_labels"
    images.mkdir()
    labels.mkdir()
    for number, sample in enumerate(Shapes(count, (96, 96), shapes=(1, 3), radius=(0.15, 0.3), seed=seed)):
        Picture.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(images / f"{number}.png")
        label_image(sample["mask"]).save(labels / f"{number}.png")

data = SegmentationFolderData(folder, batch_size=16, num_workers=0, class_names=Shapes.mask_names)
data.setup()
print(sorted(str(path.relative_to(folder)) for path in folder.glob("*/0.png")))
few = Batch.collate([data.splits["train"][i] for i in range(8)])
draw_batch(Batch(few.image), cell=112)

# %% [markdown]
# ## What the network learns from
#
# `SegmentationTask` holds the network, the loss, the optimiser, and a pipeline that augments whole batches on the
# device. The policy `segmentation_train` resizes each image at random, cuts out a crop, turns, mirrors and recolours
# it, and the labels go through the same geometry. Here are augmented versions of the images above, plotted in grey,
# with the labels in colour. Where a crop reaches beyond its image there is no label: such pixels are hatched, and the
# loss ignores them.

# %%
task = SegmentationTask(
    "xxs",
    num_classes=4,
    image_size=64,  # of the crops; evaluation sees whole images
    resize_size=None,  # at their own size
    policy_args={"short_side": (60, 100), "max_class_share": 1.0, "rotate": 10.0, "jitter": 0.2},
    output_stride=8,  # a finer map under the head than the default of 16
    aspp_channels=64,  # a narrower head than Apple's, for small data and little time
    head_dropout=0.0,
    learning_rate=4e-3,
    head_lr_multiplier=1.0,
)
augmented, _ = task.pipeline.augment(few, seed=3)
grey = augmented.image.mean(1, keepdim=True)
draw_batch(augmented.replace(image=grey), data.class_names, preprocess=task.preprocess, background=0, cell=112)

# %% [markdown]
# ## Training
#
# Training is Lightning's. `Report` logs the metrics of every epoch, and writes a page with charts and tables.

# %%
trainer = pl.Trainer(
    max_epochs=12,
    check_val_every_n_epoch=2,
    gradient_clip_val=1.0,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
    callbacks=[Report(folder / "report")],
)
trainer.fit(task, data)
Image(folder / "report" / "curves.png", width=800)

# %% [markdown]
# `miou` is the intersection over union of prediction and label, averaged over the classes, on the 48 images that
# training did not see. Class by class, with the interval that so few images leave:

# %%
Image(folder / "report" / "per_class.png", width=600)

# %% [markdown]
# ## Predicting
#
# A checkpoint carries the network's arguments, the names of the classes and the preprocessing. So `from_pretrained`
# needs the file alone, and gives a plain PyTorch module whose logits have the size of the image.

# %%
trainer.save_checkpoint(folder / "shapes.ckpt")
model = kornia_mvit.from_pretrained(folder / "shapes.ckpt")
print(model.class_names, model.preprocess)

colours = [(70, 70, 70), (103, 140, 230), (153, 230, 46), (191, 0, 167)]
unseen = [data.splits["val"][i] for i in range(8)]
figure, axes = plt.subplots(3, len(unseen), figsize=(11, 4.3), dpi=80, layout="constrained")
for column, sample in zip(axes.T, unseen, strict=True):
    with torch.no_grad():
        logits = model(sample["image"][None] / 255)
    maps = [label_image(mask, colours).convert("RGB") for mask in (sample["mask"], logits[0].argmax(0))]
    for axis, picture in zip(column, [sample["image"].permute(1, 2, 0), *maps], strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
for axis, name in zip(axes[:, 0], ("image", "label", "prediction"), strict=True):
    axis.set_ylabel(name)

# %% [markdown]
# ## Another size
#
# The network was trained on crops of 64×64 pixels, and takes images of any height and width from 32 pixels up: here one
# of 152×264 with more shapes than it ever saw at once. `predict_maps` runs images through the model's preprocessing and
# brings the logits back to each image's own size, which matters where the preprocessing resizes. The image is drawn in
# grey again, under the colours of what was found.

# %%
image = Shapes(1, (152, 264), shapes=(7, 9), radius=(0.1, 0.19), seed=5)[0]["image"]
pipeline = AugmentationPipeline(preprocess=model.preprocess)
((_, logits, _),) = predict_maps(model, Batch(image[None]), pipeline)
print(tuple(image.shape), "->", tuple(logits.shape))


def enlarge(pixels):
    return pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)


grey = image.float().mean(0, keepdim=True).to(torch.uint8)
draw_overlay(enlarge(grey), enlarge(logits[0].argmax(0)), model.class_names, colours)

# %% [markdown]
# ## On your own images
#
# Put images and label images into four folders as above, and either take this notebook's lines or the command line,
# which does the same from a recipe:
#
# ```console
# $ kornia-mvit fit --config folder-segmentation --data.root DIR --data.num_classes 4
# $ kornia-mvit predict photo.jpg --checkpoint path/to/best.ckpt --labels labels --draw pictures
# ```
#
# `docs/segmentation.rst` has the options, and what was measured on photographs.
