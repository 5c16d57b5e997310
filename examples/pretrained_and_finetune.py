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
# # Trained weights, and a new head on them
#
# Few images are enough where a network already knows how to see. This notebook loads trained weights, puts a new
# classifier on them, and teaches it five classes from eight images each, in three ways: from scratch, with the trained
# backbone left as it is (a linear probe), and with all layers learning, slower towards the image (fine-tuning).

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", "IProgress not found")  # there is no progress bar here to be drawn by ipywidgets
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning 2.6 on torch 2.14
warnings.filterwarnings("ignore", "The '.*' does not have many workers")  # images this small need none

import matplotlib.pyplot as plt
import pytorch_lightning as pl
from PIL import Image as Picture
from sklearn.datasets import load_digits

import kornia_mvit
from kornia_mvit import Batch, MobileViTClassifier
from kornia_mvit.draw.images import draw_batch
from kornia_mvit.training import ClassificationTask
from kornia_mvit.training.datamodules import FolderData
from kornia_mvit.training.networks import find_layers
from kornia_mvit.training.optimization import parameter_groups
from kornia_mvit.weights.checkpoints import CheckpointError, read_checkpoint

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
os.chdir(tempfile.mkdtemp())  # for the files that are written below

# %% [markdown]
# ## Published weights
#
# Published weights have names. `from_pretrained` fetches them once, and gives a model that takes RGB, with its
# preprocessing and the names of its classes.

# %%
print(*kornia_mvit.list_weights(), sep="\n")

# %%
published = "mobilevit_xxs.timm_in1k"
try:
    model = kornia_mvit.from_pretrained(published)
    print(f"{published}: {len(model.class_names)} classes, {model.preprocess}")
except (CheckpointError, ImportError):
    published = None
    print("The hub of the published weights cannot be reached from here. A checkpoint made below takes their place.")

# %% [markdown]
# ## A checkpoint of our own
#
# Scikit-learn has 1,797 handwritten digits of 8×8 pixels. The smallest MobileViT learns to tell 0, 1, 2, 3 and 4 apart;
# 5 to 9 are kept for later, and of those only eight images each will be for training.

# %%
digits = load_digits()
seen = dict.fromkeys(range(10), 0)
for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    task = "old" if label < 5 else "new"
    split = "train" if seen[label] < (120 if task == "old" else 8) else "val"
    seen[label] += 1
    path = Path(task, split, str(label), f"{number}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray((pixels * 255 / 16).astype("uint8")).resize((32, 32), Picture.Resampling.BICUBIC).save(path)

settings = {"image_size": 32, "policy_args": {"scale": (0.6, 1.0), "flip": 0.0}, "warmup_steps": 20}


def fit(task, data, epochs, callbacks=()):
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=min(epochs, 5),
        gradient_clip_val=1.0,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, data)
    return float(trainer.callback_metrics["val/accuracy"])


pl.seed_everything(0, verbose=False)
task = ClassificationTask("xxs", num_classes=5, learning_rate=4e-3, **settings)
accuracy = fit(task, FolderData("old", batch_size=32, num_workers=0), epochs=10)
print(f"0 to 4: {accuracy:.1%} of the images that training did not see")

# %% [markdown]
# `save_checkpoint` writes the weights under the names of whichever library is to read them: here timm's. In a
# `.safetensors` file the preprocessing and the class names go along.

# %%
model = task.network.eval()
model.preprocess, model.class_names = task.preprocess, task.class_names
kornia_mvit.save_checkpoint(model, "digits.safetensors", layout="timm")
print(*list(read_checkpoint("digits.safetensors")["state_dict"])[:4], "...", sep="\n")

# %% [markdown]
# ## Loading is strict
#
# `load_checkpoint` finds out whose names a file has, and reports what it did. Every weight has to find its place.

# %%
print(kornia_mvit.load_checkpoint(MobileViTClassifier("xxs", num_classes=5), "digits.safetensors"))

# %% [markdown]
# Where something does not fit, nothing is loaded, and the error says what, with the nearest name or what would do.

# %%
state = dict(read_checkpoint("digits.safetensors")["state_dict"])
state["head.fc.wieght"] = state.pop("head.fc.weight")  # a slip of somebody's pen
attempts = {
    "a misspelt name": (MobileViTClassifier("xxs", num_classes=5), state),
    "another size": (MobileViTClassifier("xs", num_classes=5), "digits.safetensors"),
    "other classes": (MobileViTClassifier("xxs", num_classes=7), "digits.safetensors"),
}
for what, (model, source) in attempts.items():
    try:
        kornia_mvit.load_checkpoint(model, source)
    except CheckpointError as error:
        print(f"{what}: {error}\n")

# %% [markdown]
# ## A new head
#
# With `num_classes` the backbone gets its trained weights and the classifier starts afresh.

# %%
start = published or "digits.safetensors"
model = kornia_mvit.from_pretrained(start, num_classes=5)
print(start, model.classifier, model.preprocess, sep="\n")

# %% [markdown]
# The new task, with all the images that there are to learn from:

# %%
data = FolderData("new", batch_size=20, num_workers=0, storage_size=32)
data.setup()
few = Batch.collate([data.splits["train"][i] for i in range(40)])
draw_batch(few, data.class_names, columns=20, cell=48)

# %% [markdown]
# ## Three ways to learn
#
# `train_backbone=False` leaves the backbone as it is, its batch statistics too. `freeze_epochs` lets the new head find
# its place before anything else moves; after that `layer_decay` slows each layer down by a factor against the one after
# it, and `head_lr_multiplier` is how much faster the head learns. All are options of the command line as well, as in
# `kornia-mvit fit --config finetune`.

# %%
ways = {
    "from scratch": {"learning_rate": 4e-3},
    "linear probe": {"weights": start, "train_backbone": False, "learning_rate": 2e-2},
    "fine-tuning": {
        "weights": start,
        "learning_rate": 4e-3,
        "head_lr_multiplier": 5.0,
        "layer_decay": 0.7,
        "freeze_epochs": 10,
    },
}


class Watch(pl.Callback):
    """Notes the accuracy of each validation, and the learning rates of each step."""

    def __init__(self):
        self.accuracy, self.rates = {}, []

    def on_validation_end(self, trainer, task):
        self.accuracy[trainer.current_epoch + 1] = float(trainer.callback_metrics["val/accuracy"])

    def on_train_batch_start(self, trainer, task, batch, index):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


watched = {}
for name, arguments in ways.items():
    pl.seed_everything(0, verbose=False)
    task, watched[name] = ClassificationTask("xxs", num_classes=5, **settings, **arguments), Watch()
    accuracy = fit(task, data, epochs=40, callbacks=[watched[name]])
    learning = sum(p.numel() for p in task.network.parameters() if p.requires_grad)
    print(f"{name:<13} {accuracy:6.1%}  of {len(data.splits['val'])} images, {learning:>9,} weights learned")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), dpi=80, layout="constrained", width_ratios=[2, 1])
for name, watch in watched.items():
    left.plot(watch.accuracy.keys(), watch.accuracy.values(), marker="o", label=name)
    bar = right.bar(name, list(watch.accuracy.values())[-1])
    right.bar_label(bar, fmt="{:.0%}")
left.set(xlabel="epoch", ylabel="accuracy on images not seen", ylim=(0, 1))
right.set(title="at the end", ylim=(0, 1.1))
left.legend()
left.grid(alpha=0.3)

# %% [markdown]
# On the checkpoint made above: what five digits taught does not tell five others apart by a linear layer alone, so the
# probe learns fast, and no further. As a start it is worth more: once the backbone may move, and after a dip as it
# begins to, fine-tuning is where training from scratch comes much later, and ends above it.

# %% [markdown]
# ## Which layer learns how fast
#
# On the left the highest rate of each layer in fine-tuning, from the image to the head. On the right what became of the
# rates step by step: the head warms up alone, the others join it after ten epochs, and all fall along a cosine.

# %%
groups = parameter_groups(task.network, 4e-3, 0.01, head_lr_multiplier=5.0, layer_decay=0.7)
rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
layers = {next(iter(layer)): next(iter(layer.values())) for layer in find_layers(task.network)}
names = [".".join(name.removeprefix("backbone.").split(".")[:2]) for name in layers]
names = [name.removesuffix(".conv").removesuffix(".weight") for name in names]

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), dpi=80, layout="constrained")
left.barh(names, [rate[id(parameter)] for parameter in layers.values()])
left.invert_yaxis()
left.set(xscale="log", xlabel="learning rate")
right.plot(watched["fine-tuning"].rates)
right.set(xlabel="step", ylabel="learning rate")
right.set_yscale("symlog", linthresh=1e-5)
right.grid(alpha=0.3)
