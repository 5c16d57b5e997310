"""The frame of the evaluations of all tasks: numbers of labelled images, and small pictures of some of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from kornia_mvit.batch import Batch
from kornia_mvit.evaluation.page import Section
from kornia_mvit.preprocess import Preprocess, antialiased_resize

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["BaseCollector", "BaseEvaluation", "Colours", "image_names", "thumbnail"]

Colours = Sequence[tuple[int, int, int]]


class BaseEvaluation(ABC):
    """What was predicted for N labelled images: what all numbers of a report follow from, and how a report shows them.

    A subclass is a dataclass of tensors, lists and numbers, so that it can go into every checkpoint. Its length is N.

    Attributes:
        num_classes: K.
        example_type: dataclass of an image that is shown; it has ``name`` and ``score``, ``draw(names, colours)``,
            which returns its picture, and ``caption(names)``, which returns what that shows, for those who do not see
            it, and lines to stand below.
        example_lists: the fields that hold examples, each with 1 for the lowest score first, -1 for the highest.
        examples_share: each of these lists holds one of so many of the images that are asked for.
    """

    num_classes: int
    example_type: ClassVar[type]
    example_lists: ClassVar[Mapping[str, int]] = {"worst": 1}
    examples_share: ClassVar[int] = 1

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @classmethod
    def concatenate(cls, parts: Sequence[Self], worst: int = 24) -> Self:
        """Join evaluations, and keep the worst examples of all.

        Args:
            parts: one or more.
            worst: images to show.

        Raises:
            ValueError: for none, or if they differ in their number of classes.
        """
        if not parts:
            raise ValueError("there are no evaluations to join")
        if len(found := {part.num_classes for part in parts}) > 1:
            raise ValueError(f"evaluations of {' and '.join(map(str, sorted(found)))} classes cannot be joined")
        values = {name: cls._join(name, [vars(part)[name] for part in parts]) for name in vars(parts[0])}
        ranked = {name: cls.rank(name, values[name], worst) for name in cls.example_lists}
        return cls(**{**values, **ranked})

    @classmethod
    def _join(cls, name: str, values: Sequence[Any]) -> Any:
        """Return one field's values of several parts as one: tensors and lists in sequence, dictionaries by key."""
        first = values[0]
        if isinstance(first, Tensor):
            return torch.cat(list(values))
        if isinstance(first, list):
            return [one for value in values for one in value]
        if isinstance(first, dict):
            return {key: cls._join(key, [value[key] for value in values]) for key in first}
        return first

    @classmethod
    def kept(cls, worst: int) -> int:
        """Return the length of each list of examples, where so many images are to be shown."""
        return -(-worst // cls.examples_share)

    @classmethod
    def rank(cls, name: str, examples: Sequence[Any], worst: int) -> list[Any]:
        """Sort the examples of a list by their score, and return the first of them."""
        sign = cls.example_lists[name]
        return sorted(examples, key=lambda one: sign * one.score)[: cls.kept(worst)]

    def to_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and strings in dictionaries and lists, for a checkpoint."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # the subclasses are dataclasses

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the evaluation that :meth:`to_dict` was called on."""
        examples = {name: [cls.example_type(**one) for one in values[name]] for name in cls.example_lists}
        return cls(**{**values, **examples})

    def name_classes(self, class_names: Sequence[str] | None) -> list[str]:
        """Return the names of the K classes, their numbers for None.

        Raises:
            ValueError: if there are not K names.
        """
        if class_names is not None and len(class_names) != self.num_classes:
            raise ValueError(f"{len(class_names)} class names for {self.num_classes} classes")
        return list(map(str, range(self.num_classes) if class_names is None else class_names))

    # What a report shows; ``metrics`` are those of the method of this name, ``names`` those of all classes.

    @abstractmethod
    def metrics(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return all numbers, as numbers, strings, lists and dictionaries."""

    @abstractmethod
    def summary(self, metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        """Return the numbers to see first: the name, value and note of each."""

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        """Return sentences on what went wrong."""
        return []

    @abstractmethod
    def sections(self, metrics: Mapping[str, Any], names: Sequence[str], colours: Colours | None) -> list[Section]:
        """Return the sections of the page, with their pictures."""

    @abstractmethod
    def examples(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the name and score of each of the worst images."""

    def tables(self, metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, Sequence[Mapping[str, Any]]]:
        """Return the rows of the CSV files by their names."""
        return {"per_class": metrics["per_class"]}

    def draw_worst(
        self, class_names: Sequence[str] | None = None, colours: Colours | None = None
    ) -> "Image.Image | None":
        """Draw the worst images in one picture; return None where none were kept.

        Args:
            class_names: names of the classes; their numbers are shown when None.
            colours: red, green and blue of the classes, from 0 to 255, for masks.

        Raises:
            ImportError: if Pillow is missing.
        """
        return self.draw_list(next(iter(self.example_lists)), class_names, colours)

    def draw_list(
        self, name: str, class_names: Sequence[str] | None = None, colours: Colours | None = None
    ) -> "Image.Image | None":
        """Draw a list of examples in one picture, as :meth:`draw_worst` does."""
        examples = getattr(self, name)
        return self._draw(examples, class_names, colours) if examples else None

    @abstractmethod
    def _draw(self, examples: Sequence[Any], names: Sequence[str] | None, colours: Colours | None) -> "Image.Image":
        """Draw one or more examples in one picture."""


E = TypeVar("E", bound=BaseEvaluation)


class BaseCollector(ABC, Generic[E]):
    """Takes in what was predicted, batch by batch, and keeps small pictures of the worst images.

    Args:
        worst: images to show.

    Attributes:
        kind: the evaluation that is made.
        output: what the dictionary that a task's step returns has to hold.
    """

    kind: type[E]
    output: str

    def __init__(self, worst: int = 24) -> None:
        self.worst = worst
        self._parts: list[E] = []
        self._examples: dict[str, list[Any]] = {name: [] for name in self.kind.example_lists}
        self._count = 0

    @abstractmethod
    def add(self, outputs: Mapping[str, Any], batch: Batch, preprocess: Preprocess | None = None) -> None:
        """Take in a batch.

        Args:
            outputs: what the task's step returned.
            batch: images and targets.
            preprocess: what the values of the images went through, to be undone in pictures.

        Raises:
            ValueError: if the batch has no targets of the task.
        """

    def evaluation(self) -> E | None:
        """Return the evaluation of all that was taken in; None for nothing."""
        if not self._parts:
            return None
        whole = self.kind.concatenate(self._parts)
        for name, examples in self._examples.items():
            setattr(whole, name, list(examples))
        return whole

    def _names(self, batch: Batch) -> list[str]:
        names = image_names(batch, self._count)
        self._count += len(batch)
        return names

    def _offer(self, score: float, make: Callable[[], Any]) -> None:
        """Keep an image in the lists in which its score has a place; only then its example is made."""
        lists = [name for name, sign in self.kind.example_lists.items() if self._has_place(name, sign, score)]
        if math.isnan(score) or not lists:
            return
        example = make()
        for name in lists:
            self._examples[name] = self.kind.rank(name, [*self._examples[name], example], self.worst)

    def _has_place(self, name: str, sign: int, score: float) -> bool:
        known, keep = self._examples[name], self.kind.kept(self.worst)
        return len(known) < keep or (keep > 0 and sign * score < sign * known[-1].score)


def thumbnail(batch: Batch, index: int, preprocess: Preprocess | None, side: int) -> Tensor:
    """Return an image as (3, h, w) uint8, its longer side ``side`` pixels at most, without its padding."""
    image = batch.image[index].detach().cpu()
    if batch.size is not None:
        height, width = batch.size[index].tolist()
        image = image[:, :height, :width]
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if preprocess is not None and batch.image.is_floating_point():
        image = preprocess.module().undo_values(image)
    image = (image if image.shape[0] in (1, 3) else image[:1]).expand(3, -1, -1)
    scale = side / max(image.shape[1:])
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in image.shape[1:])
        image = antialiased_resize(image[None], (height, width))[0]
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous()


def image_names(batch: Batch, first: int) -> list[str]:
    """Return the path of each image, or its id, or its number, counted from ``first``, where neither is known."""
    names = []
    for i, meta in enumerate([{}] * len(batch) if batch.meta is None else batch.meta):
        number = f"id {meta['id']}" if "id" in meta else f"image {first + i}"
        names.append(str(meta.get("path", number)))
    return names
