"""Models in folders, with a model card, and uploaded to the Hugging Face hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kornia_mvit.files import printable, write_whole
from kornia_mvit.models.backbones import backbone_name
from kornia_mvit.models.mobilevit import MobileViT, MobileViTClassifier
from kornia_mvit.models.mobilevitv2 import MobileViTV2, MobileViTV2Classifier
from kornia_mvit.models.modes import find_mode
from kornia_mvit.models.staged import Classifier, StagedBackbone
from kornia_mvit.weights.cards import Model, check_network, model_card, task_of
from kornia_mvit.weights.files import write_checkpoint

__all__ = ["WEIGHTS_NAME", "push_to_hub", "save_pretrained"]

WEIGHTS_NAME = "model.safetensors"
_README = "README.md"
_LIBRARY = "library_name: kornia_mvit"
_LISTED = 200  # classes that the model card lists; all of them are in config.json
# What the hub calls each task, and what the network is.
_TASKS = {
    "classification": ("image-classification", "MobileViT with a linear classifier"),
    "segmentation": ("image-segmentation", "DeepLabV3 on MobileViT"),
    "detection": ("object-detection", "SSDLite on MobileViT"),
    "features": ("image-feature-extraction", "MobileViT backbone"),
}

_CARD = """\
---
{library}
pipeline_tag: {tag}
tags:
- mobilevit
{licence}---

# {title}

{network}, size {size}, {weights:,} parameters, {channels} channels of the image.

## Use

```shell
pip install "kornia-mvit[hub]"
```

```python
import kornia_mvit

model = kornia_mvit.from_pretrained({name})
{use}
```

## Preprocessing

{preprocess}

## Classes

{classes}

## Score

{score}
"""


def save_pretrained(
    model: Model | StagedBackbone,
    folder: str | Path,
    *,
    score: Mapping[str, float] | None = None,
    score_source: str | None = None,
    licence: str | None = None,
) -> None:
    """Write a model into a folder that :func:`from_pretrained` reads, and that can be uploaded to a hub as it is.

    Args:
        model: the model, with its ``class_names`` and ``preprocess`` if they are to be known. A backbone is read again
            as a :class:`~kornia_mvit.MobileViTClassifier` or :class:`~kornia_mvit.MobileViTV2Classifier` without
            classes.
        folder: where ``model.safetensors``, ``config.json`` and the model card ``README.md`` go; made if missing. A
            ``README.md`` that is no model card of this package stays as it is.
        score: what the model reached, such as ``{"top-1": 93.1}``, for the model card.
        score_source: how that was measured: data, split, image size, command.
        licence: the licence of the weights, by the hub's name for it, such as ``'apache-2.0'``; none when None.

    Raises:
        TypeError: for what is no model of this package.
        ValueError: for a copy that :func:`~kornia_mvit.fuse` or :func:`~kornia_mvit.optimize` made.
        ImportError: if safetensors is missing.
        OSError: if it cannot be written, naming the file; the files that were there before stay.
    """
    path = Path(folder)
    name = path.resolve().name if path.is_absolute() or not path.name else str(path)  # no path of one machine alone
    _write_folder(model, path, name, score, score_source, licence)


def push_to_hub(
    model: Model | StagedBackbone,
    repository: str,
    *,
    score: Mapping[str, float] | None = None,
    score_source: str | None = None,
    licence: str | None = None,
    private: bool | None = None,
    **arguments: Any,
) -> str:
    """Upload a model to the Hugging Face hub, with its model card.

    Args:
        model: see :func:`save_pretrained`.
        repository: id of the repository, as ``'owner/name'``; made if missing. A model card that it has is replaced.
        score: see :func:`save_pretrained`.
        score_source: see :func:`save_pretrained`.
        licence: see :func:`save_pretrained`.
        private: whether a repository that is made is private; as its owner's settings say when None.
        arguments: further arguments of :meth:`huggingface_hub.HfApi.upload_folder`, such as ``commit_message``, and
            ``token``.

    Returns:
        The address of the commit.

    Raises:
        TypeError: as :func:`save_pretrained`.
        ValueError: as :func:`save_pretrained`.
        ImportError: if huggingface_hub or safetensors is missing.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError("the Hugging Face hub needs huggingface_hub; install kornia-mvit[hub]") from error
    with TemporaryDirectory() as folder:  # written first, so that a model that cannot be leaves no empty repository
        _write_folder(model, Path(folder), repository, score, score_source, licence)
        api = HfApi(token=arguments.pop("token", None))
        visibility: dict[str, Any] = {} if private is None else {"private": private}
        api.create_repo(repository, exist_ok=True, **visibility)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, **arguments))


def _write_folder(
    model: Model | StagedBackbone,
    folder: Path,
    name: str,
    score: Mapping[str, float] | None,
    score_source: str | None,
    licence: str | None,
) -> None:
    check_network(model)
    if isinstance(model, StagedBackbone):
        model = _without_classes(model)
    card = model_card(model, model.class_names, model.preprocess)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    config = json.dumps({"library_name": "kornia_mvit", **card}, indent=2) + "\n"
    readme = folder / _README
    ours = not readme.is_file() or _LIBRARY in readme.read_text(encoding="utf-8", errors="replace")
    with write_whole(folder / WEIGHTS_NAME) as beside:
        write_checkpoint(state, beside, card)
        beside.with_name("config.json").write_text(config, encoding="utf-8")
        if ours:
            text = _describe(model, name, score, score_source, licence)
            beside.with_name(_README).write_text(text, encoding="utf-8")


def _without_classes(backbone: StagedBackbone) -> Classifier:
    """Return a backbone as the model that a checkpoint tells of; the weights are the backbone's own."""
    stride = max(8, backbone.feature_strides[-1])
    model: Classifier
    with torch.device("meta"):
        if isinstance(backbone, MobileViTV2):
            model = MobileViTV2Classifier(
                backbone.width, 0, backbone.in_channels, backbone.patch_size, output_stride=stride
            )
        else:
            assert isinstance(backbone, MobileViT)
            model = MobileViTClassifier(
                backbone.config,
                0,
                backbone.in_channels,
                backbone.patch_size,
                output_stride=stride,
                head_conv=not isinstance(backbone.head_conv, torch.nn.Identity),
            )
    model.backbone = backbone
    return model


def _describe(
    model: Model, name: str, score: Mapping[str, float] | None, score_source: str | None, licence: str | None
) -> str:
    """Return the model card: Markdown, with the fields that the hub reads above it."""
    task = str(task_of(model)) if model.num_classes else "features"
    tag, network = _TASKS[task]
    mode, variant = find_mode(model.backbone) or ("of its own", "apple")
    if isinstance(model.backbone, MobileViTV2):
        network = network.replace("MobileViT", "MobileViTV2")
    elif not isinstance(model.backbone, StagedBackbone):
        mode = backbone_name(model.backbone) or type(model.backbone).__name__
        network = network.replace("MobileViT", "another backbone")
    use, classes = "features = model(images)  # images: (B, C, H, W), values in [0, 1]", "None: pooled features."
    if model.num_classes:
        use = 'results = kornia_mvit.predict(model, "photo.jpg")'
        classes = _list_classes(model.num_classes - (task == "detection"), model.class_names)
    return _CARD.format(
        library=_LIBRARY,
        tag=tag,
        licence="" if licence is None else f"license: {json.dumps(licence)}\n",
        title=printable(Path(name).name or name),
        network=network,
        size=mode if variant == "apple" else f"{mode}, variant {variant}",
        weights=sum(value.numel() for value in model.parameters()),
        channels=model.backbone.in_channels,
        name=json.dumps(name, ensure_ascii=False),
        use=use,
        preprocess=_describe_preprocess(model),
        classes=classes,
        score=_describe_score(score, score_source),
    )


def _describe_score(score: Mapping[str, float] | None, source: str | None) -> str:
    if not score:
        return "Not stated."
    rows = [f"| {printable(metric)} | {value:g} |" for metric, value in score.items()]
    told = f"How it was measured: {printable(source or 'not stated')}."
    return "\n".join(["| metric | value |", "|---|---|", *rows, "", told])


def _describe_preprocess(model: Model) -> str:
    if model.preprocess is None:
        return "Not stated."
    told = [f"- {key}: {value}" for key, value in model.preprocess.to_dict().items() if value is not None]
    return "\n".join(["`model.preprocess(image)` does it; values of images are in [0, 1].", "", *told])


def _list_classes(count: int, names: Sequence[str] | None) -> str:
    """Return the classes as a block of text, in which nothing in a name is Markdown."""
    if names is None:
        return f"{count} classes; their names are not stated."
    shown = [f"    {number}  {printable(label)}" for number, label in enumerate(names[:_LISTED])]
    more = [] if len(names) <= _LISTED else ["", f"and {len(names) - _LISTED} more, in `config.json`"]
    return "\n".join([f"{count} classes, by their number:", "", *shown, *more])
