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
# # Boxes around objects
#
# `SSDLite` is the light head of SSD on Apple's MobileViT and returns boxes of objects with their classes. Here its
# smallest size learns to find circles, squares and triangles, from scratch, in about a minute on two CPU cores. The
# images are synthetic, with no dataset to download, and written as files, so that you can use your own images instead.

# %%
import json
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
from PIL import ImageDraw

import kornia_mvit
from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.draw.images import draw_batch, draw_detections, stack_rows
from kornia_mvit.inference.detection import predict_boxes
from kornia_mvit.ops.boxes import assign_targets
from kornia_mvit.training import DetectionTask, Report
from kornia_mvit.training.datamodules import YOLOData

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
pl.seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The data: a text file for each image
#
# In YOLO's layout a line of such a file is a class and a box: its centre and sides as shares of the image's. COCO's and
# Pascal VOC's layouts are read as well; whatever the format, boxes become edges in pixels.

# %%
for split, count, seed in (("train", 320, 1), ("val", 48, 2)):
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number, sample in enumerate(Shapes(count, (96, 96), shapes=(1, 2), radius=(0.2, 0.35), seed=seed)):
        Picture.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(images / f"{number}.png")
        left, top, right, bottom = (sample["boxes"] / 96).unbind(1)
        rows = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1).tolist()
        lines = [f"{k} " + " ".join(map(str, row)) for k, row in zip(sample["box_label"], rows, strict=True)]
        (labels / f"{number}.txt").write_text("\n".join(lines))
(folder / "data.yaml").write_text(f"names: {list(Shapes.class_names)}")

data = YOLOData(folder, batch_size=8, num_workers=0)
data.setup()


def enlarge(image):
    """Double the sides."""
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2)


def side_by_side(pictures, titles=("",) * 5):
    """Put pictures of one size in rows of five, in few colours, so that this notebook stays small."""
    rows = []
    for start in range(0, len(pictures), 5):
        row = Picture.new("RGB", (5 * (pictures[0].width + 4), pictures[0].height), "white")
        for column, picture in enumerate(pictures[start : start + 5]):
            row.paste(picture, (column * (picture.width + 4), 0))
        rows.append(row)
    return stack_rows(rows, titles).quantize(64)


print(data.count_boxes("train"), "bad:", len(data.bad_boxes))
few = Batch.collate([data.splits["train"][i] for i in range(6)])
draw_batch(few, data.class_names).quantize(64)

# %% [markdown]
# ## Anchors
#
# An SSD head predicts boxes relative to anchors. Each place on six maps, from fine to coarse, has anchors of several
# shapes; for each anchor the network predicts a class, and how the box differs from the anchor. Anchors that overlap an
# object by half or more are matched with it, or else the anchor with the largest overlap. The scales
# are shares of the image, and worth a look at one's own data: these shapes are large, so that the smallest anchors are
# made larger than Apple's for COCO.

# %%
network = kornia_mvit.SSDLite("xxs", num_classes=3 + 1, scales=(0.3, 1.05))  # the background is a class, too
anchors = network.anchors((96, 96))
labels, _ = assign_targets(anchors, few.boxes / 96, few.box_label + 1)
print(f"{len(anchors)} anchors; for objects in each of the images above: {(labels > 0).sum(1).tolist()}")

pictures = []
for number in (0, 1, 2, 3, 5):
    picture = Picture.fromarray(enlarge(few.image[number]).permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(picture)
    for x, y, width, height in (anchors[labels[number] > 0] * 2 * 96).tolist():
        pen.rectangle((x - width / 2, y - height / 2, x + width / 2, y + height / 2), outline="yellow")
    pictures.append(picture)
side_by_side(pictures)

# %% [markdown]
# ## What the network learns from
#
# `DetectionTask` holds network, loss and optimiser, and a pipeline that augments whole batches on the device. The
# policy `detection_train` crops by overlap with the objects, zooms out, mirrors and recolours. Boxes are clipped to
# what is left of the image, and dropped where less than 30 % of them is.

# %%
task = DetectionTask(
    "xxs",
    num_classes=3,
    network=network,
    image_size=96,
    policy_args={"zoom_out": 1.0, "overlaps": (None, 0.9), "scale": (0.8, 1.0), "jitter": 0.2, "hue": 0.0},
    learning_rate=3e-3,
)
augmented, _ = task.pipeline.augment(few, seed=1)
draw_batch(augmented, data.class_names, preprocess=task.preprocess).quantize(64)

# %% [markdown]
# ## Training

# %%
trainer = pl.Trainer(
    max_epochs=12,
    check_val_every_n_epoch=2,
    gradient_clip_val=10.0,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
    callbacks=[Report(folder / "report")],
)
trainer.fit(task, data)
history = json.loads((folder / "report" / "metrics.json").read_text())["history"]

figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), dpi=80, layout="constrained")
for axis, names in zip(axes, (("train/loss", "val/loss"), ("val/map", "val/map_50")), strict=True):
    for name in names:
        rows = [row for row in history if name in row]
        axis.plot([row["epoch"] for row in rows], [row[name] for row in rows], marker="o", label=name)
    axis.set(xlabel="epoch", ylim=(0, None))
    axis.legend()
    axis.grid(alpha=0.3)

# %% [markdown]
# `map` is COCO's average precision: the mean over ten overlaps, from 0.5 to 0.95, that a box has to have with the true
# one to count as found. `map_50` asks for half. Class by class, on the 48 images that training did not see:

# %%
Image(folder / "report" / "per_class.png", width=600)

# %% [markdown]
# ## Prediction
#
# A checkpoint carries network, names and preprocessing, so that `from_pretrained` needs the file alone. The model gives
# raw outputs; `decode` turns them into boxes, in pixels.

# %%
trainer.save_checkpoint(folder / "shapes.ckpt")
model = kornia_mvit.from_pretrained(folder / "shapes.ckpt")
unseen = Batch.collate([data.splits["val"][i] for i in range(5)])
prepared = AugmentationPipeline(preprocess=model.preprocess).eval()(unseen.image)
with torch.no_grad():
    logits, deltas = model(prepared)
print(tuple(logits.shape), tuple(deltas.shape))


def find(number, **options):
    (found,) = model.decode(logits[[number]], deltas[[number]], (96, 96), **options)
    return draw_detections(
        enlarge(unseen.image[number]), 2 * found.boxes, found.labels, found.scores, model.class_names
    )


side_by_side([find(number, score_threshold=0.3) for number in range(5)])

# %% [markdown]
# After so short a training the network is less sure of large circles than of triangles, and may miss one at this
# threshold. Average precision asks for order alone, not for high scores, so that it can be good all the same.
#
# ## What `decode` leaves out
#
# Hundreds of anchors predict a box, many of them for the same object. `decode` drops boxes below `score_threshold`; of
# boxes of one class that overlap by more than `iou_threshold` it keeps the one with the highest score. So a low score
# threshold shows the less likely objects, and an overlap threshold of 1 shows how many boxes there are for each object.

# %%
options = {
    "score above 0.3": {"score_threshold": 0.3},
    "above 0.1": {"score_threshold": 0.1},
    "above 0.9": {"score_threshold": 0.9},
    "0.1, unsuppressed": {"score_threshold": 0.1, "iou_threshold": 1.0},
    "one at most": {"score_threshold": 0.1, "max_detections": 1},
}
side_by_side([find(4, **option) for option in options.values()], list(options))

# %% [markdown]
# ## Another size
#
# `predict_boxes` brings images of any size through the model's preprocessing, here to 96×96, and the boxes back into
# the image's own pixels.

# %%
image = Shapes(1, (110, 150), shapes=(3, 3), radius=(0.2, 0.3), seed=13)[0]["image"]


def detect(images):
    found = model.decode(*model(images), images.shape[-2:], score_threshold=0.4)
    return [one._asdict() for one in found]


(found,) = predict_boxes(detect, Batch(image[None]), AugmentationPipeline(preprocess=model.preprocess))
for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
    print(f"{model.class_names[label]:<9} {score:.2f} {[round(edge) for edge in box.tolist()]}")
draw_detections(enlarge(image), 2 * found["boxes"], found["labels"], found["scores"], model.class_names).quantize(64)

# %% [markdown]
# ## On your own images
#
# Put images and boxes into folders as above (or give COCO's or VOC's), and either take this notebook's lines or the
# command line, which does the same from a recipe:
#
# ```console
# $ kornia-mvit fit --config folder-detection --data.root DIR
# $ kornia-mvit predict photo.jpg --checkpoint path/to/best.ckpt --score 0.4 --draw pictures
# ```
#
# `docs/detection.rst` has the options, and what was measured on photographs.
