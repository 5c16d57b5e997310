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
# # Classify images
#
# MobileViT is a small network that looks at images with convolutions and with attention. This notebook puts it into a
# pipeline of augmentations on the device at hand, trains it on handwritten digits, looks at what it gets wrong, and
# then does the same with a folder of images, as you may have one. There is no dataset to download.

# %%
import logging
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", "IProgress not found")  # of progress bars, which are not shown here

import pytorch_lightning as pl
import torch
from IPython.display import Image as Picture
from kornia.augmentation import ColorJitter, ImageSequential, RandomRotation
from PIL import Image

import kornia_mvit
from kornia_mvit import MobileViT, draw_batch
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.draw.images import draw_predictions
from kornia_mvit.training import EMA, ClassificationTask, Report
from kornia_mvit.training.datamodules import DigitsData, FolderData

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it tells of devices and of each fit's beginning
# Lightning 2.6 asks torch 2.14 in a way that torch is about to give up.
warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# ## A backbone among Kornia's augmentations
#
# `MobileViT` has the signature and the output of the class that Kornia had under this name, and stands among Kornia's
# augmentations like any other module. Images of any size from 32 pixels go in; a map at a 32nd of their size comes out.

# %%
net = ImageSequential(RandomRotation(15.0), ColorJitter(0.2, 0.2, 0.2, 0.1), MobileViT("xs")).to(device)
with torch.no_grad():
    features = net(torch.rand(2, 3, 224, 160, device=device))
print(tuple(features.shape), f"{sum(p.numel() for p in net.parameters()):,} parameters")

# %% [markdown]
# ## Digits
#
# scikit-learn brings 1,797 digits of 8×8 pixels, written by hand. `DigitsData` enlarges them and splits them into 70 %
# for training, 10 % for validation and 20 % for the test. `ClassificationTask` holds the network, the pipeline that
# batches go through once they are on the device, and the optimiser. A digit may be cropped, but not mirrored: `flip`
# is 0.

# %%
pl.seed_everything(0, verbose=False)
digits = DigitsData(batch_size=64, storage_size=32)
task = ClassificationTask(
    "xs",
    digits.num_classes,
    image_size=32,
    policy_args={"scale": (0.6, 1.0), "flip": 0.0, "jitter": 0.2},
    learning_rate=4e-3,
    warmup_steps=20,
    weight_decay=0.05,
)
print(task.pipeline)

# %% [markdown]
# Training images, augmented. Each epoch samples new augmentations.

# %%
digits.setup()
batch = next(iter(digits.train_dataloader()))[:10]
augmented, _ = task.pipeline.augment(batch, seed=0)
draw_batch(augmented, digits.class_names, preprocess=task.preprocess, columns=10, cell=56)

# %% [markdown]
# Training is Lightning's. `EMA` averages the weights over the last steps, and `Report` writes a page about the run,
# whose pictures are shown here. 32 pixels and six epochs keep this short; the recipe behind
# `kornia-mvit fit --config digits` takes xxs, 64 pixels and 20 epochs.


# %%
def trainer(epochs: int, folder: str) -> pl.Trainer:
    """Give a quiet trainer that leaves a report in a folder."""
    return pl.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[EMA(0.98), Report(f"{folder}/report")],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


digits_trainer = trainer(6, "digits")
digits_trainer.fit(task, digits)
Picture("digits/report/curves.png", width=640)

# %% [markdown]
# Validation runs on the averaged weights, which in the first epochs lag behind. Later it is ahead of training, whose
# images are cropped and recoloured. Now the test images:

# %%
(score,) = digits_trainer.test(task, digits, verbose=False)
print(f"accuracy on {len(digits.splits['test'])} test images: {score['test/accuracy']:.1%}")
Picture("digits/report-test/confusion.png", width=420)

# %% [markdown]
# Rows are the true digits, columns the predicted ones. All mistakes:

# %%
mistakes = Path("digits/report-test/mistakes.png")
Picture(mistakes, width=min(640, Image.open(mistakes).width)) if mistakes.exists() else "none"

# %% [markdown]
# ## A folder of your own
#
# All that is needed is a subfolder of images for each class. Here one is made of drawn shapes, in any colour and place;
# use your own folder instead. A fifth of each class is used for validation.

# %%
root = Path("shapes")
shapes = Shapes(300, (80, 80), shapes=(1, 1), radius=(0.2, 0.45))
for number in range(len(shapes)):
    sample = shapes[number]
    path = root / shapes.class_names[sample["label"]] / f"{number:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample["image"].permute(1, 2, 0).contiguous().numpy()).save(path)
for folder in sorted(root.iterdir()):
    print(f"{folder}/", len(list(folder.iterdir())), "images")

# %%
pl.seed_everything(0, verbose=False)
data = FolderData(str(root), batch_size=16, num_workers=0)
task = ClassificationTask(
    "xxs",
    data.num_classes,
    image_size=64,
    policy_args={"scale": (0.6, 1.0), "jitter": 0.3},
    learning_rate=3e-3,
    warmup_steps=20,
    weight_decay=0.05,
)
folder_trainer = trainer(12, "folder")
folder_trainer.fit(task, data)
Picture("folder/report/curves.png", width=640)

# %% [markdown]
# A checkpoint carries the size of the network, the names of the classes and the preprocessing, so that nothing else is
# needed to use it. Here on shapes that were in no folder, of another size:

# %%
folder_trainer.save_checkpoint("shapes.ckpt")
model = kornia_mvit.from_pretrained("shapes.ckpt").eval()
unseen = Shapes(200, (100, 100), shapes=(1, 1), radius=(0.2, 0.45), seed=1).batch()
with torch.no_grad():
    probabilities = model(model.preprocess.module()(unseen.image)).softmax(1)
right = probabilities.argmax(1) == unseen.label
print(f"{int(right.sum())} of {len(unseen)} right ({right.float().mean():.1%})")
shown = torch.cat([(~right).nonzero()[:8, 0], right.nonzero()[:16, 0]])[:16]  # wrong ones first
draw_predictions(unseen.image[shown], probabilities[shown], unseen.label[shown], Shapes.class_names, cell=72)

# %% [markdown]
# In the run that is stored here it takes small circles for triangles: 64 pixels leave little of their outline. More
# images, pixels and epochs are what helps.
#
# The same on the command line, with more epochs and larger images, and without code:
#
# ```console
# $ kornia-mvit fit --config folder --data.root path/to/images
# $ kornia-mvit predict photo.jpg --checkpoint path/to/best.ckpt --draw pictures
# ```
