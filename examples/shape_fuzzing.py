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
# # Find the size that breaks a network
#
# Vision transformers cut maps into patches. A port that does it by `reshape` is often tried on one size, 256 × 256,
# where everything that can go wrong does not. Here [Hypothesis](https://hypothesis.readthedocs.io) looks for a size
# that breaks such a port, and shrinks it to a small one. Then the same strategies go through a pipeline of
# augmentations, and through a network of your own.
#
# `pip install kornia-mvit[train,testing]` has all that is needed.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import nn

from kornia_mvit import AugmentationPipeline, Batch, MobileViT, draw_batch
from kornia_mvit.models.mobilevit import fold, unfold
from kornia_mvit.testing import check_backbone
from kornia_mvit.testing.strategies import augmentations, batches, image_sizes, images

quick = settings(
    max_examples=50,
    deadline=None,
    database=None,
    derandomize=True,  # so that this page comes out the same again
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

# %% [markdown]
# ## A naive port
#
# A MobileViT block takes a map apart into 2 × 2 patches, lets pixels of the same place in their patches attend to each
# other, and puts the map together again. Without the attention the map has to come back as it was. This is how it looks
# in many a port, and there are two faults in it.


# %%
def naive_unfold(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1).reshape(b, 4, -1, c)


def naive_fold(tokens, size):
    b, _, _, c = tokens.shape
    h, w = size
    return tokens.reshape(b, 2, 2, w // 2, h // 2, c).permute(0, 5, 3, 1, 4, 2).reshape(b, c, h, w)


x = torch.rand(1, 8, 32, 32)
print("comes back at 32 x 32:", torch.equal(naive_fold(naive_unfold(x), (32, 32)), x))

# %% [markdown]
# On the usual size it is right. Hypothesis samples other sizes, and when one fails it looks for a smaller one that
# fails too. Even sizes first:


# %%
def tell(test):
    """Run a test, and print the counter-example that Hypothesis ends with."""
    try:
        test()
    except Exception as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'not equal'}\n")
        print("\n".join(error.__notes__))
    else:
        print("nothing found")


@quick
@given(x=images(image_sizes(divisible_by=2, min_side=2, max_side=64), channels=1, batch=1))
def naive_comes_back(x):
    assert torch.equal(naive_fold(naive_unfold(x), x.shape[-2:]), x), "the map did not come back"


tell(naive_comes_back)

# %% [markdown]
# A map that is not square comes back scrambled, and nothing says so: rows and columns of patches are confused, which no
# square map can tell. The counter-example is printed as a call, to be pasted into a test.
#
# And when sizes need not be even:


# %%
@quick
@given(size=image_sizes(min_side=2, max_side=64, square=True))
def naive_takes_squares(size):
    naive_fold(naive_unfold(torch.zeros(1, 1, *size)), size)


tell(naive_takes_squares)


# %% [markdown]
# ## Where it breaks
#
# One call for each size from 2 to 24 shows all sizes that fail; Hypothesis found two of them.


# %%
def fate(takes_apart, puts_together, size):
    x = torch.arange(float(size[0] * size[1])).view(1, 1, *size)
    try:
        back = puts_together(takes_apart(x), size)
    except RuntimeError:
        return 2
    return 0 if torch.equal(back, x) else 1


sides = range(2, 25)
fates = np.array([[fate(naive_unfold, naive_fold, (h, w)) for w in sides] for h in sides])

colours = ["#2a9d8f", "#e9c46a", "#c1440e"]
names = ["comes back", "scrambled, in silence", "raises"]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), dpi=80, layout="constrained")
axes[0].imshow(fates, cmap=plt.matplotlib.colors.ListedColormap(colours), vmin=0, vmax=2, extent=(1.5, 24.5, 24.5, 1.5))
axes[0].set(title="the naive port", xlabel="width", ylabel="height")
for colour, name, count in zip(colours, names, np.bincount(fates.ravel(), minlength=3), strict=True):
    axes[0].plot([], [], "s", color=colour, label=f"{name}: {count}")
axes[0].legend(loc="upper left", bbox_to_anchor=(0.0, -0.18), fontsize=8, frameon=False)

y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
disc = (((y - 8) ** 2 + (x - 8) ** 2) < 36).float()[None, None] + x / 48
axes[1].imshow(disc[0, 0], cmap="magma")
axes[1].set_title("a map of 16 x 24")
axes[2].imshow(naive_fold(naive_unfold(disc), (16, 24))[0, 0], cmap="magma")
axes[2].set_title("the same, taken apart and put together")
plt.show()

# %% [markdown]
# The network trains nonetheless, and gives logits. They are just worse on photographs than on squares.
#
# ## The fix
#
# `unfold` and `fold` of this package do the same, raise an error that names a size that works when a patch does not
# divide a map, and have the property for every size that Hypothesis samples:


# %%
@quick
@given(x=images(image_sizes(divisible_by=2, min_side=2, max_side=64), channels=2, batch=2))
def comes_back(x):
    assert torch.equal(fold(unfold(x, (2, 2)), (2, 2), tuple(x.shape[-2:])), x)


tell(comes_back)

# %% [markdown]
# ## A pipeline with targets
#
# `batches` samples images together with their targets, and `augmentations` samples stacks of operations that support
# these targets. A few of them, augmented:

# %%
drawn = []
moving = ["RandomHorizontalFlip", "RandomAffine", "RandomPerspective", "RandomResizedCrop", "ColorJitter"]


@settings(quick, max_examples=100)
@given(
    batch=batches("everything", size=(48, 64), count=1, contents=["gradient"], padded=False, max_objects=2),
    steps=augmentations("everything", operations=moving, min_steps=2, max_steps=3, size=(48, 64)),
)
def collect(batch, steps):
    out, _ = AugmentationPipeline(steps).augment(batch, seed=len(drawn))
    if (out.box_label >= 0).any() and batch.mask.any() and len({type(step) for step in steps}) > 1:
        drawn.append((batch, out, [type(step).__name__ for step in steps]))


collect()
shown = [drawn[i] for i in np.linspace(0, len(drawn) - 1, 4).astype(int)]
fig, axes = plt.subplots(2, 4, figsize=(11, 4.4), dpi=80, layout="constrained")
for column, (before, after, steps) in zip(axes.T, shown, strict=True):
    for axis, batch, title in zip(column, (before, after), ("drawn", "\n".join(steps)), strict=True):
        axis.imshow(draw_batch(batch, cell=160, legend=False))
        axis.set_title(title, fontsize=8)
        axis.axis("off")
plt.show()

# %% [markdown]
# What should hold for every batch and every stack is said in a few lines. Here: boxes stay within the image, and what
# was done can be done again, bit for bit.


# %%
@quick
@given(batch=batches("detection"), steps=augmentations("detection"))
def boxes_stay_and_replay_is_exact(batch, steps):
    pipeline = AugmentationPipeline(steps)
    out, params = pipeline.augment(batch, seed=0)
    height, width = out.image.shape[-2:]
    assert ((out.boxes >= 0) & (out.boxes <= torch.tensor([width, height, width, height]))).all()
    assert torch.equal(pipeline.replay(batch, params).image, out.image)


tell(boxes_stay_and_replay_is_exact)


# %% [markdown]
# An augmentation of one's own is soon written, and soon wrong. This one mirrors images and boxes, and forgets that rows
# of padding are no boxes:


# %%
def mirror(batch: Batch) -> Batch:
    width = batch.image.shape[-1]
    left, top, right, bottom = batch.boxes.unbind(-1)
    return batch.replace(image=batch.image.flip(-1), boxes=torch.stack([width - right, top, width - left, bottom], -1))


@quick
@given(batch=batches("detection", padded=False))
def padding_stays_zero(batch):
    out = mirror(batch)
    assert (out.boxes[out.box_label < 0] == 0).all(), "a row of padding became a box"


tell(padding_stays_zero)


# %% [markdown]
# ## A network of your own
#
# `check_backbone` has a set of properties ready: shapes, finite values, independence of the neighbours in a batch,
# gradients, dtypes, devices, memory layouts, copies, export. It takes a function that builds a network. Put yours here;
# this one has the naive block in it, and a layer that was forgotten.


# %%
class MyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=8, padding=1)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Conv2d(16, 24, 1)
        self.spare = nn.Linear(16, 16)

    def forward(self, x):
        y = self.stem(x)
        tokens = naive_unfold(y)
        tokens = self.attention(tokens.flatten(0, 1)).view_as(tokens)
        return self.head(naive_fold(tokens, y.shape[-2:]))


print(check_backbone(MyNetwork, max_examples=10, raise_on_failure=False))

# %% [markdown]
# The sizes that crash and the layer that no gradient reaches are found. The scrambled map is not: its shape is right
# and its values are finite, and no property of *any* network says where a pixel has to go. That is what a property of
# one's own is for, such as the first one on this page.
#
# The network of this package, with the same call:

# %%
print(check_backbone(lambda: MobileViT("xxs"), max_examples=10, raise_on_failure=False))

# %% [markdown]
# In a test, the call alone is enough: it raises with this table if anything fails.
#
# ```python
# def test_backbone():
#     check_backbone(MyNetwork)
# ```
