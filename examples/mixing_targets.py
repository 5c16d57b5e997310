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
# # Mixed images, and what becomes of their targets
#
# Mosaic, CutMix, MixUp and copy-paste make one image of several. Boxes, masks and labels have to follow: a box that is
# half hidden is a smaller box, and a class that covers a third of the pixels is a third of the label. In a pipeline
# they do, on the device of the batch, and a seed gives the same mixes again. This notebook looks at each of them on
# drawn shapes, whose targets are known to the pixel.

# %%
import torch

from kornia_mvit import (
    AugmentationPipeline,
    Batch,
    CopyPaste,
    CutMix,
    MixUp,
    Mosaic,
    SSDLite,
    draw_batch,
    policies,
)
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.ops.boxes import assign_weighted_targets
from kornia_mvit.ops.losses import multibox_loss

device = "cuda" if torch.cuda.is_available() else "cpu"
shapes = Shapes(4, (120, 160), shapes=(2, 4), seed=3)
batch = shapes.batch().to(device)
photos = batch.replace(label=None, mask=None)


def show(mixed: Batch, **options):
    """Draw the first three images."""
    return draw_batch(mixed[:3].to("cpu"), shapes.class_names, columns=3, cell=160, legend=False, **options)


show(photos)

# %% [markdown]
# ## Mosaic
#
# Four images of the batch in the quarters of one. Each box is moved and cut at the edge of its quarter; the pipeline
# drops those of which less than `min_box_visibility` is left. `box_source` is the image that a box is from.

# %%
pipeline = AugmentationPipeline(mix=Mosaic(p=1.0), min_box_visibility=0.3)
mosaics, params = pipeline.augment(photos, seed=1)
print("boxes of the first mosaic are from the images", mosaics.box_source[0][mosaics.box_label[0] >= 0].tolist())
print("the same again, to the bit:", torch.equal(pipeline.replay(photos, params).image, mosaics.image))
show(mosaics)

# %% [markdown]
# What was mixed cannot be undone, and says so:

# %%
try:
    pipeline.inverse_boxes(mosaics.boxes, params)
except ValueError as error:
    print(error)

# %% [markdown]
# ## CutMix
#
# A rectangle of another image. Masks show what is seen, and labels become the shares of the pixels of each image, here
# the number of the image as its class.

# %%
numbered = batch.replace(label=torch.arange(4, device=device))
patched, params = AugmentationPipeline(mix=CutMix(p=1.0, num_classes=4)).augment(numbered, seed=7)
left, top, right, bottom = params["mix"]["steps"][0]["patch"][0].tolist()
share = (right - left) * (bottom - top) / (120 * 160)
print(f"the rectangle covers {share:.1%}, the label says {1 - patched.label[0, 0].item():.1%}")
show(patched.replace(label=None))

# %% [markdown]
# ## MixUp
#
# Two images blended, with the boxes of both. Each box carries the weight of its image, `box_weight`, which is drawn
# beside its class and which the loss of `DetectionTask` multiplies.

# %%
blended, _ = AugmentationPipeline(mix=MixUp(p=1.0)).augment(photos, seed=4)
show(blended)

# %%
network = SSDLite("xxs", num_classes=4).to(device).eval()
with torch.no_grad():
    logits, deltas = network(blended.image)
height, width = blended.image.shape[2:]
anchors = network.anchors((height, width), device=logits.device)
boxes = blended.boxes / torch.tensor([width, height, width, height], device=device)
labels = torch.where(blended.box_label >= 0, blended.box_label + 1, -1)
*targets, weights = assign_weighted_targets(anchors, boxes, labels, blended.box_weight)
plain, weighted = multibox_loss(logits, deltas, *targets), multibox_loss(logits, deltas, *targets, weights=weights)
print(f"loss of the places with an untrained network: {plain.regression:.2f}, weighted {weighted.regression:.2f}")

# %% [markdown]
# ## Copy-paste
#
# Single objects of another image, cut out by their instance masks. Pasted pixels are exactly those of the masks. What
# they hide is taken from the masks below, whose boxes shrink to what is left.

# %%
row, column = (torch.arange(n, device=device) + 0.5 for n in batch.image.shape[2:])
x1, y1, x2, y2 = (side[..., None] for side in batch.boxes.unbind(-1))
within = ((row > y1) & (row < y2))[..., None] & ((column > x1) & (column < x2))[..., None, :]
objects = within & (batch.mask[:, None] == 1 + batch.box_label[..., None, None])  # shapes lie apart from each other
instances = photos.replace(instance_masks=objects)
pasted, params = AugmentationPipeline(mix=CopyPaste(p=1.0, objects=0.6)).augment(instances, seed=0)
show(pasted)

# %%
rows = pasted.box_label[0] >= 0
for source, box, mask in zip(
    pasted.box_source[0][rows], pasted.boxes[0][rows], pasted.instance_masks[0][rows], strict=True
):
    tight = mask.any(0).nonzero()[[0, -1], 0].tolist()
    print(f"from image {int(source)}: {int(mask.sum())} pixels, columns {tight[0]} to {tight[1]}, box {box.tolist()}")

# %% [markdown]
# ## In a policy
#
# `detection_train` has `mosaic` and `mixup` as options, `segmentation_train` has `cutmix`; their numbers are the shares
# of the images that are mixed. On the command line they are `--model.policy_args.mosaic 0.5` and so on.

# %%
policy = policies.detection_train(128, zoom_out=1.5, mosaic=0.5, mixup=0.2)
print(policy)
show(AugmentationPipeline(policy, min_box_visibility=0.3)(photos, seed=5))
