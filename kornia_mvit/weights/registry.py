"""Published weights by name, and models built from them, from files, folders and hub repositories."""

import errno
import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from kornia_mvit.data.class_lists import class_names
from kornia_mvit.files import printable, write_whole
from kornia_mvit.parsing import brief, cut, is_file, is_folder, read_json, read_text, reason_of
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.weights.cards import Model, build_model, from_card
from kornia_mvit.weights.checkpoints import load_checkpoint, read_weights
from kornia_mvit.weights.files import (
    CARD_KEY,
    SUFFIXES,
    CheckpointError,
    checkpoint_in,
    in_folder,
    read_checkpoint,
)
from kornia_mvit.weights.hub import WEIGHTS_NAME, push_to_hub, save_pretrained
from kornia_mvit.weights.records import PREPROCESSING, WeightsRecord, published_weights

__all__ = [
    "WeightsRecord",
    "class_names",
    "download",
    "find_weights",
    "from_pretrained",
    "list_weights",
    "push_to_hub",
    "save_pretrained",
    "unknown_source",
]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_RATES, _FARTHEST = 16, 4096  # branches of a pyramid, and pixels between their taps
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # errors of the disk written to
_WEIGHT_FILES = (WEIGHTS_NAME, "pytorch_model.bin")


_RECORDS = published_weights()


def list_weights(task: str | None = None) -> list[str]:
    """List the names of the published weights, of one task or of all.

    Example:
        >>> list_weights()[0]
        'mobilevit_xxs.apple_in1k'
    """
    return [name for name, record in _RECORDS.items() if task in (None, record.task)]


def find_weights(name: str) -> WeightsRecord:
    """Return what is known of published weights.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _RECORDS:
        raise ValueError(f"unknown weights {brief(name)}; {_near(name)}")
    return _RECORDS[name]


def unknown_source(source: str) -> CheckpointError:
    """Make the error for what is neither a file, nor a folder, nor the name of published weights."""
    return CheckpointError(f"no such file or folder, and no weights of that name: {cut(source)}; {_near(source)}")


def _near(name: str) -> str:
    """Return what an error says of a name that is none of published weights."""
    near = get_close_matches(name, _RECORDS, 3)
    return f"nearest: {', '.join(near)}" if near else "kornia_mvit.list_weights() lists those that are published"


# ---------------------------------------------------------------------------------------------------------- building


def from_pretrained(
    source: str | Path, *, num_classes: int | None = None, in_channels: int | None = None, **overrides: Any
) -> Model:
    """Build a model with weights: published ones, those of a checkpoint, a folder or a hub repository.

    Args:
        source: a name of :func:`list_weights`; a checkpoint of any layout; a run's folder, for its ``best.ckpt`` or
            else its ``last.ckpt``; a folder that :func:`save_pretrained` or transformers wrote; or the id of a hub
            repository with such files, as ``'owner/name'``.
        num_classes: number of classes, if another than the weights'; the last layer is fresh then, even for the same
            number as an explicit one.
        in_channels: channels of the image, if other than the weights'; the stem is fitted to them.
        overrides: further arguments of the model's class, such as ``drop_path=0.1``; ``backbone`` for a model on a
            module that is none of timm's, which its checkpoint cannot build.

    Returns:
        The model in eval mode, a :class:`~kornia_mvit.MobileViTClassifier`, :class:`~kornia_mvit.DeepLabV3` or
        :class:`~kornia_mvit.SSDLite` as the weights are, which takes RGB. ``model.preprocess`` is the
        :class:`~kornia_mvit.Preprocess` of its images, ``model.class_names`` the names of its classes, or None where
        they are not known.

    Warns:
        UserWarning: where nothing says what images go through, and Apple's evaluation is assumed.

    Raises:
        CheckpointError: if weights cannot be fetched or read, or are of no model that this package has.
        ValueError: for an unknown name.
        ImportError: where safetensors or huggingface_hub is needed and missing.
    """
    spec = _locate(source)
    data = read_checkpoint(spec.path)
    changed = {"num_classes": num_classes, "in_channels": in_channels}
    overrides |= {name: value for name, value in changed.items() if value is not None}
    layout, channel_order = spec.layout, spec.channel_order
    if CARD_KEY in data:
        model = from_card(data, spec.path, **overrides)
        channel_order = data[CARD_KEY].get("channel_order", "rgb")
        layout = (
            "native" if isinstance(data[CARD_KEY]["model"].get("mode"), dict) else "auto"
        )  # no other knows such names
    else:
        found = read_weights(data, spec.layout, name=str(spec.path))
        if found.mode is None:
            raise CheckpointError(f"{spec.path} is of no size in the table; build the model and use load_checkpoint")
        task = found.task or "classification"  # a backbone gives pooled features
        known = {"num_classes": found.num_classes, **found.arguments, **spec.config.get(task, {})}
        model = build_model(task, known, {**found.backbone, **found.head}, spec.path, **overrides)
        if spec.class_names is not None and len(spec.class_names) != found.num_classes - (task == "detection"):
            raise CheckpointError(
                f"{spec.path} has {found.num_classes} classes, but {len(spec.class_names)} names of them are beside it"
            )
        assumed = PREPROCESSING[task]
        model.class_names, model.preprocess = spec.class_names, spec.preprocess or assumed
        if spec.preprocess is None:
            warnings.warn(
                f"{printable(spec.path)} says nothing of its preprocessing or class names; assuming Apple's, {assumed}",
                stacklevel=2,
            )
    load_checkpoint(
        model,
        data,
        layout,
        channel_order=channel_order,
        new_head=num_classes is not None,
        adapt_stem=in_channels is not None,
        name=str(spec.path),
    )
    if num_classes is not None:
        model.class_names = None
    return model.eval()


@dataclass(frozen=True)
class _Spec:
    """Where weights lie, and what is known of them besides."""

    path: Path
    layout: str = "auto"
    channel_order: str = "rgb"
    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # arguments of a model, by its task


def _locate(source: str | Path) -> _Spec:
    if not str(source):
        raise CheckpointError("the name of the weights is empty; give a checkpoint, or a name of list_weights")
    path = Path(source)
    if is_folder(path):
        return _read_folder(path)
    if is_file(path) or isinstance(source, Path) or path.suffix in SUFFIXES:
        return _Spec(path)
    if source in _RECORDS:
        record = find_weights(source)
        names = class_names(record.classes)
        config = {record.task: record.arguments}
        return _Spec(_fetch(record), record.layout, record.channel_order, record.preprocess, names, config)
    if _HUB_ID.fullmatch(repository := source.removeprefix("hf-hub:")):
        if repository == source and is_folder(path.parent):  # runs/foldr
            near = get_close_matches(path.name, os.listdir(path.parent), 1)
            hint = f"did you mean {path.parent / near[0]}? " if near else ""
            raise CheckpointError(f"no such checkpoint: {source}; {hint}(hf-hub:{source} would be one of the hub)")
        return _read_folder(_fetch_repository(repository))
    raise unknown_source(source)


def _read_folder(folder: Path) -> _Spec:
    """Read the files that transformers and :func:`save_pretrained` put beside the weights."""
    path = _weights_of(folder)
    config, processor = (_read_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    try:
        names, preprocess = _labels(config.get("id2label")), _preprocess(processor)
        arguments = _arguments(config)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder} has a configuration that cannot be: {reason_of(error)}") from None
    order = "bgr" if processor.get("do_flip_channel_order") else "rgb"
    return _Spec(path, channel_order=order, preprocess=preprocess, class_names=names, config=arguments)


def _weights_of(folder: Path) -> Path:
    path = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), checkpoint_in(folder))
    if path == folder:
        raise CheckpointError(in_folder(folder, f"has none of {', '.join(_WEIGHT_FILES)}"))
    return path


def _labels(labels: Any) -> tuple[str, ...] | None:
    """Return the names of classes, which transformers has by their numbers as texts."""
    if labels is None:
        return None
    if not isinstance(labels, dict) or not all(isinstance(labels.get(str(i)), str) for i in range(len(labels))):
        raise ValueError(f"id2label is {brief(labels)}, not names by numbers from 0")
    return tuple(labels[str(i)] for i in range(len(labels)))


def _preprocess(processor: Mapping[str, Any]) -> Preprocess | None:
    """Return what transformers' image processor does."""
    if not processor:
        return None
    size, cut = processor.get("size") or {}, processor.get("crop_size") or {}
    height, width = cut.get("height", 256), cut.get("width", 256)
    crop = height if height == width else (height, width)
    return Preprocess(
        size=size.get("shortest_edge", 288),
        crop=crop if processor.get("do_center_crop", True) else None,
        interpolation={2: "bilinear", 3: "bicubic"}.get(processor.get("resample", 2), "bilinear"),
    )


def _arguments(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what transformers' configuration says that weights do not show."""
    if config.get("model_type") not in ("mobilevit", "mobilevitv2"):
        return {}
    stride = {"output_stride": config.get("output_stride", 32)}  # its default, also for segmentation
    rates = config.get("atrous_rates", (6, 12, 18))  # the same at any stride
    if len(rates) > _RATES or not all(type(rate) is int and rate < _FARTHEST for rate in rates):
        raise ValueError(f"atrous_rates are {brief(rates)}, not up to {_RATES} dilations below {_FARTHEST}")
    return {"classification": stride, "segmentation": {**stride, "rates": tuple(rates)}}


def _read_json(path: Path) -> dict[str, Any]:
    data = read_json(path, CheckpointError) if path.is_file() else {}
    return data if isinstance(data, dict) else {}


# ---------------------------------------------------------------------------------------------------------- fetching


def _fetch(record: WeightsRecord) -> Path:
    if "://" in record.source:
        path = Path(torch.hub.get_dir()) / "checkpoints" / f"{record.name}.pt"
        return download(record.source, path, record.sha256)
    return _weights_of(_fetch_repository(record.source))


def download(address: str, path: Path, sha256: str | None = None) -> Path:
    """Fetch a file once, and tell on every use whether it is still the same.

    Args:
        address: where it is; ``https://`` or ``file://``.
        path: where it goes. Its hash is recorded beside it.
        sha256: of the file, if known; else that of the first download counts.

    Returns:
        The path.

    Raises:
        CheckpointError: if it cannot be fetched, was cut off, or is another file. Then nothing stays behind.
        OSError: if it cannot be written, naming the file.
    """
    record = path.with_name(path.name + ".sha256")
    if not path.is_file():
        record.unlink(missing_ok=True)
        with write_whole(path) as beside:
            _transfer(address, beside, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = sha256 or (read_text(record, CheckpointError).strip() if record.is_file() else found)
    if found != expected:
        path.unlink()
        record.unlink(missing_ok=True)
        raise CheckpointError(f"{path} from {address} has sha256 {found}, not {expected}; it was removed, start again")
    if not record.is_file():
        with write_whole(record) as beside:
            beside.write_text(found + "\n", encoding="utf-8")
    return path


def _transfer(address: str, beside: Path, path: Path) -> None:
    try:
        torch.hub.download_url_to_file(address, str(beside), progress=False)
    except (URLError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise  # not the network
        reason = getattr(error, "reason", error)
        raise CheckpointError(
            f"cannot fetch {address} ({reason}); fetch it where there is a network and put it at {path}"
        ) from None
    try:
        read_checkpoint(beside)
    except CheckpointError as error:
        raise CheckpointError(f"the transfer of {address} was broken off ({error}); start again") from None


def _fetch_repository(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError("the Hugging Face hub needs huggingface_hub; install kornia-mvit[hub]") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", *_WEIGHT_FILES]))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"cannot fetch {repository} from the Hugging Face hub ({reason}); fetch it where there is a network, and "
            "give its folder instead of its id"
        ) from None
