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
# # Augmentation that finds its own strength
#
# How much brighter, darker or noisier should training images be? Usually each operation has a range that somebody has
# tuned. RangeAugment learns the ranges instead, from one number: how similar an augmented image is to stay to what it
# was, as a PSNR in dB. Operations are differentiable, so that the ends of the ranges are parameters like any other.

# %%
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images

from kornia_mvit import AugmentationPipeline, Batch, LearnedRanges, MobileViTClassifier, Preprocess, draw_batch
from kornia_mvit.draw.charts import draw_ranges
from kornia_mvit.draw.images import stack_rows
from kornia_mvit.draw.sheets import side_by_side

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

photos = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
photos = Preprocess(96, crop=96).module().geometry(torch.stack(photos)).float().div(255).to(device)

# %% [markdown]
# ## One number, three starts
#
# `fit` moves the ends until a batch has the target; in training the same loss is added to that of the task. Whether the
# ranges begin with hardly any change, with far too much, or lopsided: they end at images that are 20 dB away.

# %%
starts = {
    "hardly any change": {},
    "far too much": {"brightness": (0.3, 4.0), "contrast": (0.3, 4.0), "noise": (1e-4, 0.4)},
    "lopsided": {"brightness": (0.99, 2.0), "contrast": (0.3, 1.02), "noise": (5e-4, 0.002)},
}
batch = photos.repeat(8, 1, 1, 1)
for name, start in starts.items():
    ranges = LearnedRanges(target_psnr=20, start=start).to(device)
    found = ranges.fit(batch)
    print(f"{name}: {found:.1f} dB\n    {ranges.describe()}")

# %% [markdown]
# The three share the similarity, not the ranges: one number cannot say which operation is to do how much. That follows
# from where they start, and from the images.
#
# ## A curriculum
#
# A pair of numbers is a curriculum, here from 40 to 20 dB. Each column has the ranges that were found for its target.

# %%
ranges = LearnedRanges(target_psnr=(40, 20), schedule="linear").to(device)
pipeline = AugmentationPipeline(ranges=ranges).train()
titles, rows = ["as it is"], [[image[None]] for image in photos]
for step in range(5):
    ranges.set_step(step, 4)
    ranges.fit(batch, steps=100)
    titles.append(f"{ranges.target:g} dB")
    for row, image in zip(rows, photos, strict=True):
        row.append(pipeline.augment(Batch(image.expand(2, -1, -1, -1)), seed=2)[0].image[:1])
stack_rows([side_by_side([draw_batch(Batch(one.cpu()), cell=140) for one in row]) for row in rows], titles)

# %% [markdown]
# ## A training loop
#
# A task of this package adds the loss by itself: `--model.policy classification_learned`. A loop of one's own adds it
# in one line. The network learns from the augmented images, the ends from their similarity alone; both have an
# optimiser.

# %%
digits = load_digits()
images = torch.from_numpy(digits.images).float().div(16)[:, None].expand(-1, 3, -1, -1)
images = F.interpolate(images, (32, 32), mode="bilinear").to(device)
labels = torch.from_numpy(digits.target).to(device)
train, val = slice(0, 1400), slice(1400, None)

network = MobileViTClassifier("xxs", num_classes=10).to(device).train()
pipeline = AugmentationPipeline(ranges=LearnedRanges(target_psnr=(40, 15))).to(device).train()
optimisers = [
    torch.optim.AdamW(network.parameters(), 2e-3),
    torch.optim.Adam(pipeline.ranges.parameters(), pipeline.ranges.learning_rate),
]
epochs, size, history = 6, 50, []
steps = epochs * (1400 // size)
for step in range(steps):
    chosen = torch.randperm(1400, device=device)[:size]
    pipeline.ranges.set_step(step, steps)
    batch, params, learning = pipeline.augment_with_loss(Batch(images[train][chosen], labels[train][chosen]))
    loss = F.cross_entropy(network(batch.image), batch.label)
    for optimiser in optimisers:
        optimiser.zero_grad()
    (loss + learning.loss).backward()
    for optimiser in optimisers:
        optimiser.step()
    ends = {
        f"ranges/{name}_{end}": value
        for name, pair in pipeline.ranges.values().items()
        for end, value in zip(("low", "high"), pair, strict=True)
    }
    history.append(
        {
            "epoch": (step + 1) * size / 1400,
            "ranges/target": pipeline.ranges.target,
            "ranges/psnr": float(learning.similarity),
            **ends,
        }
    )

with torch.no_grad():
    right = (network.eval()(images[val]).argmax(1) == labels[val]).float().mean()
print(f"{float(right):.1%} of the digits that were not trained on; the ends: {pipeline.ranges.describe()}")

# %% [markdown]
# The similarity follows its target, and the ranges open:

# %%
from IPython.display import Image

Image(draw_ranges(history))

# %% [markdown]
# ## Replay
#
# What was done is plain data, in which the ends stand as they were: the same images again, to the bit, though the ends
# have moved on.

# %%
batch, params = pipeline.augment(Batch(photos))
pipeline.ranges.set_ends({"brightness": (0.2, 5.0)})
print("the same to the bit:", torch.equal(pipeline.replay(Batch(photos), params).image, batch.image))
print({name: params["ranges"][name] for name in ("order", "ends")})
