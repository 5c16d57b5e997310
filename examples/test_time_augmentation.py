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
# # Test-time augmentation
#
# On a mirrored or enlarged image, a network predicts something slightly different. When each prediction is mapped back
# to the image and all are averaged, some of the errors cancel. This costs a forward pass for each view, and needs no
# training. This notebook shows for outlines, classes and boxes what is gained, and where the result gets worse.

# %%
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

from kornia_mvit import (
    AugmentationPipeline,
    Batch,
    DeepLabV3,
    MobileViTClassifier,
    TestTimeAugmentation,
    draw_batch,
    policies,
)
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.draw.images import draw_detections, stack_rows
from kornia_mvit.inference.tta import TestTimeTransform
from kornia_mvit.ops.geometry import box_iou

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
COLOURS = [(128, 128, 128), (255, 210, 0)]  # ground, shape

# %% [markdown]
# ## A small network, trained for a few seconds
#
# It is to tell shapes from the ground, on images of 96 pixels. A hundred steps are enough to find the shapes, but with
# a map of 6×6 cells under the head, not for good outlines. The loop is plain PyTorch; the pipeline augments images with
# their masks.


# %%
def load(count: int, seed: int) -> Batch:
    """Draw images with masks: 0 for the ground, 1 for a shape."""
    batch = Shapes(count, (96, 96), shapes=(2, 4), radius=(0.1, 0.22), seed=seed).batch()
    return Batch(batch.image, mask=batch.mask.clamp(max=1)).to(device)


def fit(net: torch.nn.Module, pipeline: AugmentationPipeline, batch: Batch, steps: int, size: int, rate: float) -> None:
    """Train on random parts of a batch."""
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        part = pipeline(batch[torch.randperm(len(batch))[:size]])
        target = part.label if part.mask is None else part.mask
        loss = F.cross_entropy(net(part.image), target, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()


train, test = load(128, seed=0), load(100, seed=1)
pipeline = AugmentationPipeline(policies.segmentation_train(64, short_side=(72, 128), jitter=0.2))
model = DeepLabV3("xxs", num_classes=2, output_stride=16, aspp_channels=64).to(device)
fit(model, pipeline, train, steps=100, size=16, rate=3e-3)
images = test.image / 255

# %% [markdown]
# ## Predict, invert, merge
#
# `TestTimeTransform` is one view: mirrored, scaled, rotated or cropped. Here are four of them. Upper row: the view,
# with the predicted shapes in yellow. Lower row: the prediction mapped back to the image. Areas outside a view are
# hatched, and do not count.

# %%
looks = {
    "as it is": TestTimeTransform(),
    "mirrored": TestTimeTransform(flip=True),
    "enlarged": TestTimeTransform(scale=1.33),
    "turned": TestTimeTransform(angle=20.0),
}
one = images[3:4]
seen, back = [], []
for look in looks.values():
    picture, _ = look(one)
    with torch.no_grad():
        seen.append(Batch(picture, mask=model(picture).argmax(1)))
    maps, valid = TestTimeAugmentation(model, [look]).predict_valid(one)
    back.append(Batch(one, mask=maps.argmax(1).masked_fill(~valid[:, 0], 255)))


def row(batches: list[Batch]) -> Image.Image:
    """Draw images beside each other, of whatever size they are."""
    sheets = [draw_batch(batch.to("cpu"), colours=COLOURS, cell=128, legend=False) for batch in batches]
    out = Image.new("RGB", (sum(sheet.width for sheet in sheets), sheets[0].height), "white")
    for place, sheet in enumerate(sheets):
        out.paste(sheet, (place * sheets[0].width, 0))
    return out


stack_rows([row(seen), row(back)], list(looks))

# %% [markdown]
# The merged prediction beside the true mask:

# %%
tta = TestTimeAugmentation(model, list(looks.values()))
merged = {
    "alone": back[0],
    "four looks merged": Batch(one, mask=tta(one).argmax(1)),
    "truth": Batch(one, mask=test.mask[3:4]),
}
stack_rows([row(list(merged.values()))], list(merged))

# %% [markdown]
# ## What is gained
#
# How many times the network runs, and the overlap (IoU) of predicted and true shapes, averaged over 100 images that the
# network has not seen. Names such as `flip+scale` stand for all combinations. Other views can be listed.


# %%
def overlap(tta: TestTimeAugmentation) -> float:
    """Give the mean over images of intersection over union of the shapes."""
    found, true = tta(images).argmax(1) == 1, test.mask == 1
    return float(((found & true).sum((1, 2)) / (found | true).sum((1, 2))).mean())


def compare(**sets: str | list[TestTimeTransform]) -> None:
    """Print a table."""
    for name, looks in sets.items():
        tta = TestTimeAugmentation(model, looks)
        print(f"{name.replace('_', ' '):<20} {len(tta.transforms)} x   IoU {overlap(tta):.1%}")


larger = [TestTimeTransform(scale=scale) for scale in (1.0, 1.33, 1.67)]
compare(alone="none", flip="flip", rotation="rotation", scale="scale", flip_scale="flip+scale", larger=larger)

# %% [markdown]
# Mirroring and turning bring a little. Enlarging brings more, for a reason that has nothing to do with averaging: the
# cells of the network's map become finer. So one enlarged look alone is the fair comparison, and what averaging adds to
# it is this:

# %%
mirrored = [TestTimeTransform(scale=1.67, flip=flip) for flip in (False, True)]
compare(enlarged=mirrored[:1], and_mirrored=mirrored, three_sizes=larger)

# %% [markdown]
# ## When it does not help
#
# A look that the network was not made for gives wrong answers, and averaging lets them in. At half the size, shapes
# fall between the cells of the map. Crops of 84 pixels, as `five-crop` makes of 96, are not divided by the network's
# stride of 16: its map has six cells, enough for 96 pixels, and is squeezed into 84. Crops of 80 pixels do no harm, nor
# any good:

# %%
corners = ("center", "top-left", "top-right", "bottom-left", "bottom-right")
compare(
    alone="none",
    half_size_too=[TestTimeTransform(), TestTimeTransform(scale=0.5)],
    five_crops_of_84="five-crop",
    five_crops_of_80=[TestTimeTransform(crop=corner, crop_share=80 / 96) for corner in corners],
)

# %% [markdown]
# And some looks change what the image says. A mirrored digit is another sign, or none. scikit-learn's digits, a network
# trained for a few seconds on the first 1,000 of them, tested on the other 797:

# %%
digits = load_digits()
small = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
data = Batch(F.interpolate(small, (32, 32), mode="bilinear"), torch.tensor(digits.target)).to(device)
reader = MobileViTClassifier("xxs", num_classes=10).to(device)
crops = AugmentationPipeline(policies.classification_train(32, scale=(0.6, 1.0), flip=0.0))
fit(reader, crops, data[:1000], steps=80, size=64, rate=4e-3)
rest = data[1000:]
for name in ("none", "rotation", "flip"):
    guess = TestTimeAugmentation(reader, name)(rest.image).argmax(1)
    print(f"{name:<10} {(guess == rest.label).float().mean():.1%}")

# %% [markdown]
# So choose views that do not change the class, and that training has seen; and measure on held-out images, as here.
#
# ## Boxes
#
# Boxes cannot be averaged pixel by pixel. Those of one class that overlap are taken for one object, and fused with
# their scores as weights; an object that only some of the looks found keeps a lower score. A detector is any callable
# that gives boxes, scores and labels for each image. Here it draws a box around each blob of the network's mask.


# %%
def detect(images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Find blobs of shape: a box around each, with the mean probability in it as its score."""
    with torch.no_grad():
        shape = model(images).softmax(1)[:, 1].cpu()
    out = []
    for probability in shape:
        blobs, _ = ndimage.label(probability.numpy() > 0.5)
        places = ndimage.find_objects(blobs)
        boxes = [[float(x.start), float(y.start), float(x.stop), float(y.stop)] for y, x in places]
        scores = [float(probability[torch.from_numpy(blobs) == k + 1].mean()) for k in range(len(places))]
        found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "scores": torch.tensor(scores)}
        found |= {"labels": torch.zeros(len(boxes), dtype=torch.long)}
        out.append({name: value.to(images.device) for name, value in found.items()})
    return out


def fit_of_boxes(found: list[dict[str, torch.Tensor]]) -> float:
    """Give the mean over all true boxes of their overlap with the nearest box that was found."""
    best = []
    for image, boxes, label in zip(found, truth.boxes, truth.box_label, strict=True):
        pairs = box_iou(boxes[label >= 0], image["boxes"].cpu())
        best.append(F.pad(pairs, (1, 0)).amax(1))  # 0 where nothing was found
    return float(torch.cat(best).mean())


truth = Shapes(100, (96, 96), shapes=(2, 4), radius=(0.1, 0.22), seed=1).batch()
alone, fused = detect(images), TestTimeAugmentation(detect, larger)(images)
print(f"overlap with the true boxes: alone {fit_of_boxes(alone):.1%}, fused {fit_of_boxes(fused):.1%}")

twice = F.interpolate(test.image[3:4].cpu().float(), scale_factor=2)[0].to(torch.uint8)
true = {"boxes": truth.boxes[3], "labels": truth.box_label[3], "scores": None}
sheet = Image.new("RGB", (3 * 200 - 8, 192), "white")
for place, found in enumerate((alone[3], fused[3], true)):
    real = found["labels"] >= 0
    scores = None if found["scores"] is None else found["scores"][real]
    labels = torch.zeros_like(found["labels"][real])
    sheet.paste(draw_detections(twice, 2 * found["boxes"][real], labels, scores, ["shape"]), (place * 200, 0))
stack_rows([sheet], ["alone", "three sizes fused", "truth"])

# %% [markdown]
# Boxes that one size alone found are still there, with a lower score; a threshold, or `merge="vote"`, leaves them out.
# On the command line it is `kornia-mvit predict ... --tta flip`, and in training `tta="flip"` of the tasks.
