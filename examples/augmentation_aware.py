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
# # Augmentation that knows its targets
#
# When an image is rotated, its boxes, masks and keypoints have to rotate with it. When it is cropped, some of them are
# outside. When two images are mixed, the label is a mixture, too. This notebook augments all of these with one
# pipeline, replays the augmentation bit for bit, and maps a prediction back to the original image. The second half
# shows what goes wrong without such a pipeline.
#
# Images are augmented on the device that they are on: a GPU, if there is one, or else the CPU.

# %%
import io

import torch
import torch.nn.functional as F
from kornia.augmentation import (
    AugmentationSequential,
    CenterCrop,
    ColorJitter,
    RandomAffine,
    RandomElasticTransform,
    RandomHorizontalFlip,
    RandomMixUpV2,
    RandomResizedCrop,
    RandomRotation,
)
from PIL import Image

from kornia_mvit import AugmentationPipeline, Batch, Mix, draw_batch
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.draw.images import stack_rows

device = "cuda" if torch.cuda.is_available() else "cpu"
MASKS = [(128, 128, 128), (230, 0, 0), (103, 137, 230), (162, 230, 46)]  # background, circle, square, triangle


def beside(batches: dict[str, Batch], cell: int = 160) -> Image.Image:
    """Draw batches as columns beside each other."""
    sheets = [
        draw_batch(batch.to("cpu"), Shapes.class_names, colours=MASKS, columns=1, cell=cell, legend=False)
        for batch in batches.values()
    ]
    row = Image.new("RGB", (sum(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets)), "white")
    for place, sheet in enumerate(sheets):
        row.paste(sheet, (place * sheets[0].width, 0))
    return stack_rows([row], list(batches))


# %% [markdown]
# ## A batch with everything
#
# The dataset here is two synthetic images. Each shape has a box with its class, the pixels of its class in the mask,
# and a keypoint at the middle of its upper edge. `Batch` holds all of it; an image with fewer shapes than another is
# padded with boxes of class −1.

# %%
shapes = Shapes(2, (128, 128), shapes=(3, 4), radius=(0.13, 0.22), seed=56)
batch = shapes.batch()
left, top, right, _ = batch.boxes.unbind(-1)
batch = batch.replace(
    label=None,
    keypoints=torch.stack([(left + right) / 2, top], dim=-1),
    keypoint_visible=batch.box_label >= 0,
).to(device)

# %% [markdown]
# ## One pipeline for all targets
#
# The operations are Kornia's own. The pipeline samples their parameters, composes consecutive geometric operations into
# a single resampling, and transforms boxes, masks and keypoints with the same matrices.

# %%
pipeline = AugmentationPipeline(
    [
        RandomResizedCrop((128, 128), scale=(0.3, 1.0)),
        RandomRotation(30.0),
        RandomHorizontalFlip(),
        ColorJitter(0.3, 0.3, 0.3, 0.1),
    ],
    min_box_visibility=0.3,  # a box of which less is left to see is dropped
)
augmented, params = pipeline.augment(batch, seed=5)
beside({"before": batch, "augmented": augmented})

# %% [markdown]
# Look at the edges. Boxes are clipped to the image, and those of which less than 30 % is left are dropped, with
# their class. In the corners that a rotation adds, outside the original image, the mask is hatched: it holds 255, which
# losses ignore. Keypoints outside the image are marked as invisible, and not plotted.

# %%
print("boxes     ", (batch.box_label >= 0).sum(1).tolist(), "->", (augmented.box_label >= 0).sum(1).tolist())
print("keypoints ", batch.keypoint_visible.sum(1).tolist(), "->", augmented.keypoint_visible.sum(1).tolist())
print("unknown   ", " ".join(f"{share:.0%}" for share in (augmented.mask == 255).float().mean((1, 2))), "of the mask")

# %% [markdown]
# ## Soft labels
#
# MixUp lays two images over each other, CutMix pastes a part of one into another. The label then is a distribution.
# `Mix` gives it, by the pixels that each image really got. It smooths labels, too; here it does not, so that the
# numbers can be checked by eye. Rows: four images, then CutMix, then MixUp of them.

# %%
one_each = Shapes(4, (96, 96), shapes=(1, 1), radius=(0.3, 0.45), seed=15).batch()
images = Batch(one_each.image, one_each.label).to(device)
cutmix = AugmentationPipeline(mix=Mix(3, mixup=None, label_smoothing=0.0))
mixup = AugmentationPipeline(mix=Mix(3, cutmix=None, label_smoothing=0.0))
rows = [
    images.replace(image=images.image / 255, label=F.one_hot(images.label, 3).float()),
    cutmix.augment(images, seed=32)[0],
    mixup.augment(images, seed=15)[0],
]
every = Batch(torch.cat([row.image for row in rows]), torch.cat([row.label for row in rows]))
draw_batch(every, Shapes.class_names, columns=4, cell=100)

# %% [markdown]
# It is not defined what half a box is when two images are mixed. So the pipeline raises an error before it samples
# anything:

# %%
try:
    AugmentationPipeline(mix=Mix(3)).augment(batch.replace(label=images.label[:2]))
except ValueError as error:
    print(error)

# %% [markdown]
# ## Replay, bit for bit
#
# `augment` also returned `params`: the sampled parameters, as plain tensors, numbers and strings. They can be stored
# beside a checkpoint, loaded without unpickling code, and replayed. The same seed gives the same result, too, whatever
# ran before; and PyTorch's global generator is left unchanged.

# %%
file = io.BytesIO()
torch.save(params, file)
print(f"{file.tell() / 1000:.0f} kB for {len(batch)} images")
file.seek(0)
stored = torch.load(file, weights_only=True)

before = torch.get_rng_state()
replayed = pipeline.replay(batch, stored)
same_seed, _ = pipeline.augment(batch, seed=5)
for name in ("image", "boxes", "box_label", "mask", "keypoints", "keypoint_visible"):
    wanted = getattr(augmented, name)
    print(f"{name:<17} replayed: {torch.equal(wanted, getattr(replayed, name))}", end=", ")
    print(f"with the same seed: {torch.equal(wanted, getattr(same_seed, name))}")
print("generator as it was:", torch.equal(before, torch.get_rng_state()))

# %% [markdown]
# ## The inverse
#
# A network sees augmented images, and predicts at a stride of its own. To compare that with other views, or with the
# labels of the image as it was, the prediction has to go back. `inverse` takes maps of any stride to the image's own
# pixels, and says which of them were in view at all.
#
# A perfect network is used in place of a real one here: its output is the augmented mask itself, averaged over 8×8
# pixels.


# %%
def perfect_network(batch: Batch) -> torch.Tensor:
    """Give (B, 4, H/8, W/8), the share of each class in cells of 8x8 pixels."""
    mask = batch.mask.masked_fill(batch.mask == 255, 0)
    return F.avg_pool2d(F.one_hot(mask, 4).movedim(-1, 1).float(), 8)


predicted = perfect_network(augmented)
maps, valid = pipeline.inverse(predicted, params)
print(f"{tuple(predicted.shape)} -> {tuple(maps.shape)}")
cells = predicted.argmax(1).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
beside(
    {
        "before": Batch(batch.image),
        "augmented": Batch(augmented.image),
        "predicted": Batch(augmented.image, mask=cells),
        "brought back": Batch(batch.image, mask=maps.argmax(1).masked_fill(~valid[:, 0], 255)),
    },
    cell=112,
)

# %% [markdown]
# Areas outside the view, without a prediction, are hatched. `TestTimeAugmentation` averages several views like this
# one, each where it has a prediction.
#
# ## What goes wrong without it
#
# The same in a plain `AugmentationSequential` of Kornia's. It is a good container, and most of what follows is how it
# is meant to work; but each of these points is left to the user, and few of them raise an error. The
# geometric operations below have fixed parameters, so that both sides do the same.
#
# ### Boxes that hang over the edge
#
# A crop moves boxes, and does no more: coordinates become negative or lie beyond the image, and boxes that are no
# longer to be seen stay in the list, with their classes.

# %%
boxed = batch.replace(mask=None, keypoints=None, keypoint_visible=None)
floats = batch.image / 255
crop = CenterCrop((56, 56))
image, boxes = AugmentationSequential(crop, data_keys=["input", "bbox_xyxy"])(floats, batch.boxes)
cropped, _ = AugmentationPipeline([crop], min_box_visibility=0.3).augment(boxed)


def describe(name: str, boxes: torch.Tensor, label: torch.Tensor) -> None:
    """Say how many boxes there are, and where they lie."""
    boxes = boxes[label >= 0]
    inside = boxes.clamp(0, 56)
    gone = (inside[:, 2:] - inside[:, :2]).prod(1) == 0
    over = (inside != boxes).any(1)
    print(
        f"{name:<12} {len(boxes)} boxes, {int(over.sum())} beyond the edges, {int(gone.sum())} not in the image at all"
    )


describe("Kornia", boxes, batch.box_label)
describe("kornia_mvit", cropped.boxes, cropped.box_label)
print("those of the first image, by Kornia:", [[round(v) for v in box] for box in boxes[0].tolist()])


def with_margin(image: torch.Tensor, boxes: torch.Tensor, label: torch.Tensor) -> Batch:
    """Lay images on larger sheets, so that what hangs over their edges can be seen."""
    return Batch(F.pad(image, (36,) * 4, value=1.0), boxes=boxes + 36, box_label=label)


beside(
    {
        "before": boxed,
        "Kornia": with_margin(image, boxes, batch.box_label),
        "kornia_mvit": with_margin(cropped.image, cropped.boxes, cropped.box_label),
    }
)

# %% [markdown]
# ### Corners that count as background
#
# A rotation fills masks with 0 where there was nothing to see, and 0 is a class. A network that learns from this
# learns that black corners are background. With labels that have no background, such as those of streets, it learns
# that they are whatever comes first.

# %%
masked = Batch(batch.image, mask=batch.mask)
rotate = RandomRotation((30.0, 30.0), p=1.0)
image, mask = AugmentationSequential(rotate, data_keys=["input", "mask"])(floats, batch.mask[:, None].float())
rotated, _ = AugmentationPipeline([rotate]).augment(masked)
corners = rotated.mask == 255
print(f"{corners.float().mean():.0%} of the pixels come from outside the image")
print(f"Kornia's mask holds {mask[:, 0][corners].unique().int().tolist()} there, kornia_mvit's 255")
beside({"before": masked, "Kornia": Batch(image, mask=mask[:, 0].long()), "kornia_mvit": rotated}, cell=128)

# %% [markdown]
# ### Boxes that stay while the image moves
#
# An elastic distortion moves every pixel by itself. Boxes come back from Kornia as they were put in. The pipeline finds
# where the outline of each box went, or here, by its mask, where the shape in it went:

# %%
elastic = RandomElasticTransform(sigma=(16.0, 16.0), alpha=(12.0, 12.0), p=1.0)
known = one_each.boxes.to(device)
painted = torch.cat([images.image / 255, (one_each.mask[:, None] > 0).to(images.image)], dim=1)  # a channel of shapes
torch.manual_seed(0)
image, boxes = AugmentationSequential(elastic, data_keys=["input", "bbox_xyxy"])(painted, known)
places = [picture[3].T.gt(0.5).nonzero() for picture in image]
seen = torch.stack([torch.cat([place.amin(0), place.amax(0) + 1]) for place in places])
moved, told = ((edges - known[:, 0]).abs().max() for edges in (seen, boxes[:, 0]))
print(f"Kornia: the shapes' edges move by up to {moved:.0f} px, their boxes by {told:.0f} px")
shapes = (one_each.mask > 0)[:, None].to(device)
given = Batch(painted, boxes=known, box_label=one_each.box_label.to(device), instance_masks=shapes)
ours, _ = AugmentationPipeline([elastic], box_method="mask").augment(given)
places = [picture[3].T.gt(0.5).nonzero() for picture in ours.image]
seen = torch.stack([torch.cat([place.amin(0), place.amax(0) + 1]) for place in places])
print(f"kornia_mvit: boxes are within {(seen - ours.boxes[:, 0]).abs().max():.1f} px of the shapes' edges")

# %% [markdown]
# ### Labels that do not follow the mix
#
# Alone, MixUp returns both labels and λ, from which a loss has to be built by hand. In a container it raises for
# labels and masks alike. This at least cannot be overlooked.

# %%
print("alone:", RandomMixUpV2(p=1.0, data_keys=["input", "class"])(images.image / 255, images.label)[1][0].tolist())
for key, target in {"class": images.label, "mask": one_each.mask[:, None].float().to(device)}.items():
    try:
        AugmentationSequential(RandomMixUpV2(p=1.0), data_keys=["input", key])(images.image / 255, target)
    except NotImplementedError as error:
        print(f"with {key}: NotImplementedError({str(error)!r})")

# %% [markdown]
# ### An inverse that is wrong for maps
#
# Kornia's container has an `inverse`, too. It applies the inverse of the image's matrix, in the image's pixels, to
# whatever map it is given. A map of stride 8 has eight times fewer pixels to a side, and lands elsewhere, here outside,
# without a word. Enlarged to the image's size before, it comes back well; but where there was nothing to see it holds
# zeros, which an average over views takes for an answer.

# %%
move = RandomAffine((15.0, 15.0), scale=(1.25, 1.25), p=1.0)
plain = AugmentationSequential(move, data_keys=["input"])
plain(floats)  # what inverse is to undo
pipeline = AugmentationPipeline([move])
turned, params = pipeline.augment(masked)
predicted = perfect_network(turned)
maps, valid = pipeline.inverse(predicted, params)


def enlarge(maps: torch.Tensor) -> torch.Tensor:
    """Bring maps to the size of the images."""
    return F.interpolate(maps, batch.image.shape[-2:], mode="bilinear")


classes = {
    "always background": torch.zeros_like(batch.mask),
    "Kornia, stride 8": enlarge(plain.inverse(predicted)).argmax(1),
    "Kornia, enlarged before": plain.inverse(enlarge(predicted)).argmax(1),
    "kornia_mvit, stride 8": maps.argmax(1),
}
print(f"{1 - valid.float().mean():.0%} of the pixels were out of view; of the others have the right class")
for name, found in classes.items():
    print(f"  {name:<24} {(found == batch.mask)[valid[:, 0]].float().mean():.1%}")
ours = classes["kornia_mvit, stride 8"].masked_fill(~valid[:, 0], 255)
beside(
    {
        "labels": masked,
        "Kornia": Batch(batch.image, mask=classes["Kornia, stride 8"]),
        "enlarged before": Batch(batch.image, mask=classes["Kornia, enlarged before"]),
        "kornia_mvit": Batch(batch.image, mask=ours),
    },
    cell=112,
)
