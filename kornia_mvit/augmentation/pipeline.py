"""One object that augments a batch with its targets, on its device, tells what it did, does it again and undoes it."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from kornia.augmentation import AugmentationSequential
from torch import Generator, Tensor, nn

from kornia_mvit.augmentation.companions import prepare_extra, with_images
from kornia_mvit.augmentation.erasing import choose_erased, drop_hidden
from kornia_mvit.augmentation.execution import Execution, Settings
from kornia_mvit.augmentation.geometry import Geometry
from kornia_mvit.augmentation.given import read_given, refuse_targets
from kornia_mvit.augmentation.inverses import Inverses
from kornia_mvit.augmentation.mix import Mix
from kornia_mvit.augmentation.mix_runs import AnyMix, as_mixes, run_mixes
from kornia_mvit.augmentation.operations import unable
from kornia_mvit.augmentation.policies import Policy
from kornia_mvit.augmentation.preparation import no_autocast, prepare_images
from kornia_mvit.augmentation.randomness import SeedCounter, uncompiled
from kornia_mvit.augmentation.range_runs import Gradients, plan_gradients, range_extra, run_ranges
from kornia_mvit.augmentation.ranges import LearnedRanges
from kornia_mvit.augmentation.rejection import Condition, check_until, run_until
from kornia_mvit.augmentation.stacks import build_stack, check_flags
from kornia_mvit.augmentation.state import Counted
from kornia_mvit.augmentation.target_mix import TargetMix
from kornia_mvit.augmentation.targets import BoxRules, choose_box_method, detach_memory, move_targets, run_empty
from kornia_mvit.batch import Batch, check_layout, hold_value, replace_checked
from kornia_mvit.ops.keypoints import Pairs, check_flip_pairs
from kornia_mvit.ops.seeds import combine_seed, multiscale_size
from kornia_mvit.preprocess import Preprocess, to_float

__all__ = ["AugmentationPipeline"]

Params = dict[str, Any]


class AugmentationPipeline(Inverses, Counted, nn.Module):
    """Augment and preprocess images together with their labels, boxes, masks and keypoints.

    In train mode a batch is augmented, resized if the augmentation left another size than ``preprocess`` says (or, with
    ``multi_scale``, to the size drawn for the step), mixed, changed by ``ranges``, and taken through the value part of
    ``preprocess`` (channel order, mean and std). In eval mode ``preprocess`` is applied, whole, and nothing is random.
    All happens on the batch's device and, learned ranges apart, without gradients, in the image's own dtype (uint8
    becomes the default one, half precision is computed in single) even under autocast.

    Boxes are clipped to the image and dropped with their labels when too little of them is left; masks are read from
    the nearest pixel and hold ``ignore_index`` where there was nothing to see, in int64 if their dtype cannot hold it;
    keypoints outside become invisible. Canvas beside the image (``batch.size``) counts as outside, Kornia's random
    crops keep to the image, and the resize takes each image without it, in train mode as in eval mode. Geometric
    operations that follow each other are composed and carried out in one bilinear step. What comes out shares no memory
    with what was put in.

    Args:
        augment: a policy, a Kornia ``AugmentationSequential``, a list of Kornia augmentations, or None for none. Its
            filters, enhancements and colour spaces may stand among them, and ``nn.Identity``: they change values alone.
        mix: what mixes images with each other: :class:`~kornia_mvit.Mix` for labels alone, or one or a list of
            :class:`~kornia_mvit.Mosaic`, :class:`~kornia_mvit.MixUp`, :class:`~kornia_mvit.CutMix` and
            :class:`~kornia_mvit.CopyPaste`, in order. What the policy has when None, an empty list for none.
        preprocess: what the network's images go through; None leaves size and values alone.
        ranges: changes of values of learned strength, after all else; what the policy has when None.
        ignore_index: what masks hold where nothing is known.
        min_box_area: in square pixels of the result; a box of which less is left is dropped, as is one without area.
        min_box_visibility: share of a box's area that is still to be seen for it to stay.
        keypoint_flip_pairs: numbers of keypoints, from 0, that are swapped in images that end up mirrored, such as left
            and right eye; :func:`~kornia_mvit.ops.keypoints.pairs_of_names` returns them from names.
        box_method: what a box is around when its image was rotated, sheared or seen in perspective: ``'corners'``, the
            box's own corners; ``'ellipse'``, the ellipse inside it, which is nearer to most objects; ``'mask'``, what
            is left of its instance mask, or the corners where that was empty from the start; ``'oriented'``, its
            oriented box.
        boxes_from_masks: the same as ``box_method='mask'``.
        erase_targets: True, or the names of those that know where ``RandomErasing`` erased: ``boxes`` wholly under a
            patch are dropped, ``keypoints`` become invisible, ``instance_masks`` lose the pixels, ``mask`` has
            ``ignore_index`` there, and maps of ``extra`` their fill. Otherwise targets stay as they are.
        erase_masks: the same for ``mask`` and ``instance_masks``.
        fuse: carry out geometric operations that follow each other in one step. False lets Kornia resample at each.
        antialias: read the whole footprint of a pixel where a composed step makes images smaller, as the resize does;
            else bilinearly at its centre. It costs four to sixteen times the reading for images that shrink.
        multi_scale: sizes to draw from for each step, such as :func:`kornia_mvit.ops.seeds.multiscale_sizes`.
        seed: of what is drawn without a seed or generator.
        compile: compile what follows the drawing as one graph. ``torch.compile`` of the pipeline does it too.
        check_values: look at values on accelerators as well, which waits for the device; on a CPU it is always done.
        until: a condition on the result: it takes an augmented batch and returns (B,) bool, and images of which that is
            False are augmented again; the parameters tell how often, and how many never did. It waits for the device.
        tries: the most for an image; the last one stays.

    Shape:
        - Input: a :class:`~kornia_mvit.Batch`, or images :math:`(B, C, H, W)`, alone or followed by labels; or what a
          DataLoader gave, as :meth:`Batch.read` takes it
        - Output: what was put in: images, or a pair of images and labels; else a batch

    Raises:
        ValueError: for values that :meth:`Batch.check_values` refuses, as images with NaN or outside [0, 1] and boxes
            that end before they start; for operations that cannot carry a target of the batch; antialias without fuse.
        TypeError: for images that are neither uint8 nor floating point, and for augmentations that are not Kornia's,
            or mix.

    Example:
        >>> from kornia_mvit.augmentation import policies
        >>> pipeline = AugmentationPipeline(policies.classification_train(128), preprocess=Preprocess(144, crop=128))
        >>> images = torch.randint(0, 256, (2, 3, 160, 200), dtype=torch.uint8)
        >>> pipeline.train()(images).shape, pipeline.eval()(images).shape
        (torch.Size([2, 3, 128, 128]), torch.Size([2, 3, 128, 128]))
    """

    def __init__(
        self,
        augment: AugmentationSequential | Sequence[nn.Module] | None = None,
        mix: AnyMix | Sequence[AnyMix] | None = None,
        preprocess: Preprocess | None = None,
        *,
        ranges: LearnedRanges | None = None,
        ignore_index: int = 255,
        min_box_area: float = 1.0,
        min_box_visibility: float = 0.0,
        keypoint_flip_pairs: Sequence[tuple[int, int]] | None = None,
        box_method: str = "corners",
        boxes_from_masks: bool = False,
        erase_targets: bool | Collection[str] = False,
        erase_masks: bool = False,
        fuse: bool = True,
        antialias: bool = False,
        multi_scale: Sequence[tuple[int, int]] | None = None,
        seed: int = 0,
        compile: bool = False,
        check_values: bool = False,
        until: Condition | None = None,
        tries: int = 10,
    ) -> None:
        super().__init__()
        flags = {"boxes_from_masks": boxes_from_masks, "erase_masks": erase_masks, "check_values": check_values}
        check_flags(fuse=fuse, antialias=antialias, compile=compile, **flags)
        erased = choose_erased(erase_targets, erase_masks)
        augment = build_stack(augment, erases=bool(erased))
        if isinstance(augment, Policy):
            mix = augment.mix if mix is None else mix
            ranges = augment.ranges if ranges is None else ranges
        mixes = as_mixes(mix)
        if ranges is not None and not isinstance(ranges, LearnedRanges):
            raise TypeError(f"ranges are kornia_mvit.LearnedRanges, got {type(ranges).__name__}")
        self.box_method: str = choose_box_method(box_method, boxes_from_masks)
        # Kept from registration: a move would have Kornia draw on the device, and differently, and its automatic
        # policies have parameters that no optimiser should find.
        self.stack: AugmentationSequential | None
        self.mixes: tuple[Mix] | tuple[TargetMix, ...]
        object.__setattr__(self, "stack", augment)
        object.__setattr__(self, "mixes", mixes)
        self.ranges: LearnedRanges | None = ranges
        self.preprocess: Preprocess = preprocess if preprocess is not None else Preprocess(size=None)
        self._preprocess = self.preprocess.module()
        self.ignore_index = ignore_index
        BoxRules(min_box_area, min_box_visibility)  # which checks them
        self.min_box_area = min_box_area
        self.min_box_visibility = min_box_visibility
        self.keypoint_flip_pairs: Pairs | None = (
            None if keypoint_flip_pairs is None else check_flip_pairs(keypoint_flip_pairs)
        )
        self.multi_scale: tuple[tuple[int, int], ...] | None = (
            None if multi_scale is None else tuple((int(h), int(w)) for h, w in multi_scale)
        )
        self.counter: SeedCounter = SeedCounter(seed)
        self.check_values = check_values
        check_until(until, tries, alone=not mixes and ranges is None)
        self.until: Condition | None = until
        self.tries = tries
        self._told = False  # what is odd about coordinates, once
        self._settings = Settings(ignore_index, erased, fuse, self.box_method, antialias)
        self._carry_out = torch.compile(_carry_out) if compile else _carry_out
        self._unable = unable(augment) if augment is not None else {}

    def forward(
        self,
        batch: Batch | Tensor | Sequence[Any] | Mapping[str, Any],
        label: Tensor | None = None,
        *,
        seed: int | None = None,
        generator: Generator | None = None,
    ) -> Batch | Tensor | tuple[Tensor, Tensor]:
        """Augment in train mode, preprocess alone in eval mode.

        Args:
            batch: a batch, images (B, C, H, W), or what a DataLoader gave.
            label: labels of images that are given alone.
            seed: what is drawn depends on it alone; without, on the pipeline's own counter.
            generator: what the seed is drawn from, in place of ``seed``.
        """
        given = read_given(batch, label, self.ignore_index)
        out = self.augment(given, seed=seed, generator=generator)[0] if self.training else self.prepare(given)[0]
        if not isinstance(batch, Tensor):
            return out
        return out.image if out.label is None else (out.image, out.label)

    if TYPE_CHECKING:

        @overload
        def __call__(self, batch: Tensor, *, seed: int | None = None, generator: Generator | None = None) -> Tensor: ...

        @overload
        def __call__(
            self,
            batch: Batch | Sequence[Any] | Mapping[str, Any],
            *,
            seed: int | None = None,
            generator: Generator | None = None,
        ) -> Batch: ...

        @overload
        def __call__(
            self, batch: Tensor, label: Tensor, *, seed: int | None = None, generator: Generator | None = None
        ) -> tuple[Tensor, Tensor]: ...

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run forward, with the hooks."""

    def augment(
        self, batch: Batch, *, seed: int | None = None, generator: Generator | None = None
    ) -> tuple[Batch, Params]:
        """Augment a batch, in train and eval mode alike, and tell what was drawn.

        The images carry gradients in train mode where ``ranges`` have ``task_gradients``, else none.

        Args:
            batch: images with their targets.
            seed: what is drawn depends on it alone; without, on the pipeline's own counter.
            generator: what the seed is drawn from, in place of ``seed``.

        Returns:
            The batch and the parameters: tensors, numbers, strings, lists and dictionaries, which ``torch.save``
            writes and ``torch.load(weights_only=True)`` reads.
        """
        return self._augment(batch, seed, generator, plan_gradients(self.ranges, self.training))

    def augment_with_loss(
        self, batch: Batch, *, seed: int | None = None, generator: Generator | None = None
    ) -> tuple[Batch, Params, Gradients]:
        """Augment a batch as :meth:`augment` does, and return what its ``ranges`` learn from, too.

        Args:
            batch: as :meth:`augment` takes it, and so are the others.
            seed: as there.
            generator: as there.

        Returns:
            The batch, the parameters, and a record with the ``loss``, a scalar to be added to that of the task, and
            the mean ``similarity`` of the images that were changed.

        Raises:
            ValueError: for a pipeline without ``ranges``.
        """
        gradients = plan_gradients(self.ranges, self.training, wanted=True)
        return *self._augment(batch, seed, generator, gradients), gradients

    def range_loss(self, batch: Batch, params: Params) -> Tensor:
        """Return what the ``ranges`` learn from, for a loop of one's own: a scalar to be added to the task's loss.

        The learned part is computed again, with the present ends and gradients to them.

        Args:
            batch: what was augmented, as it was before.
            params: what :meth:`augment` gave.

        Raises:
            ValueError: for a pipeline without ``ranges``, and as :meth:`replay`.

        Example:
            >>> pipeline = AugmentationPipeline(ranges=LearnedRanges(target_psnr=20)).train()
            >>> batch = Batch(torch.rand(4, 3, 32, 32))
            >>> augmented, params = pipeline.augment(batch)
            >>> pipeline.range_loss(batch, params).backward()
        """
        gradients = plan_gradients(self.ranges, False, wanted=True)
        gradients.present = True
        self._replay(batch, params, gradients)
        assert gradients.loss is not None
        return gradients.loss

    @torch.no_grad()
    def _augment(
        self, batch: Batch, seed: int | None, generator: Generator | None, gradients: Gradients
    ) -> tuple[Batch, Params]:
        chosen, size = self._choose(seed, generator)
        return self._run_tries(batch, chosen, size, None, gradients)

    @uncompiled
    def _choose(self, seed: int | None, generator: Generator | None) -> tuple[int, tuple[int, int] | None]:
        """Return the seed of what is drawn, and the size of the images where that is drawn too."""
        if seed is not None and generator is not None:
            raise ValueError("give a seed or a generator, not both")
        if generator is not None:
            seed = int(torch.randint(1 << 62, (1,), generator=generator, device=generator.device))
        if seed is None:
            place, base = self.counter.take()
        else:
            place, base = (seed, 0, 0), combine_seed(seed)
        return base, None if self.multi_scale is None else multiscale_size(self.multi_scale, *place)

    def replay(self, batch: Batch, params: Params) -> Batch:
        """Do to a batch what was done before, by the parameters that :meth:`augment` gave.

        On the same device and with the same versions of PyTorch and Kornia the result is the same to the bit.

        Args:
            batch: as many images as before, of the same height and width.
            params: what :meth:`augment` gave.

        Raises:
            ValueError: for another number or size of images, and parameters of another pipeline.
        """
        return self._replay(batch, params, Gradients())

    @torch.no_grad()
    def _replay(self, batch: Batch, params: Params, gradients: Gradients) -> Batch:
        if params.get("kind") != "augmented":
            raise ValueError("these parameters are not of augment; prepare draws nothing, so call prepare again")
        if (params["mix"] is None) != (not self.mixes):
            raise ValueError(f"the parameters are of another pipeline: this one has the mixes {list(self.mixes)}")
        shape = list(batch.image.shape)
        if shape[0] != params["shape"][0] or shape[2:] != params["shape"][2:]:
            raise ValueError(f"the parameters are for images {tuple(params['shape'])}, the batch has {tuple(shape)}")
        if (params.get("ranges") is None) != (self.ranges is None):
            raise ValueError("the parameters are of another pipeline: one of the two has learned ranges")
        size = None if params["resize"] is None else (params["resize"][0], params["resize"][1])
        return self._run_tries(batch, params["seed"], size, params, gradients)[0]

    def views(
        self, batch: Batch, n: int = 2, *, seed: int | None = None, generator: Generator | None = None
    ) -> list[tuple[Batch, Params]]:
        """Return several independent augmentations of a batch, with their parameters, as contrastive learning needs.

        Args:
            batch: images with their targets.
            n: number of views.
            seed: what is drawn depends on it alone.
            generator: what the seed is drawn from, in place of ``seed``.
        """
        if n < 1:
            raise ValueError(f"n {n} is not at least one view")
        seeds = [None] * n if seed is None else [combine_seed(seed, i) for i in range(n)]
        return [self.augment(batch, seed=s, generator=generator) for s in seeds]

    @torch.no_grad()
    def prepare(self, batch: Batch) -> tuple[Batch, Params]:
        """Preprocess a batch as eval mode does, its targets fitted to the result, and tell what was done.

        Args:
            batch: images with their targets.

        Returns:
            The batch, and parameters for :meth:`inverse`.
        """
        if not len(batch):
            return run_empty(batch, self.prepare)
        self._check(batch)
        with no_autocast(batch.image.device):
            image, geometry = prepare_images(batch, self._preprocess)
            targets = self._move(batch, geometry)
            if batch.mask is not None:
                targets["mask"] = hold_value(batch.mask, self.ignore_index)
                if len(geometry) or batch.size is not None:
                    targets["mask"] = geometry.warp_mask(targets["mask"], 0, len(geometry), self.ignore_index)
            if batch.extra is not None:
                targets["extra"] = prepare_extra(batch, self._preprocess, geometry)
        out = detach_memory(replace_checked(batch, image=image, **targets), batch)
        return out, {"kind": "prepared", "geometry": geometry.to_dict(), "mix": None}

    @property
    def mix(self) -> AnyMix | tuple[AnyMix, ...] | None:
        """Return what mixes images with each other, one mix or several in order; None for nothing."""
        return self.mixes if len(self.mixes) > 1 else self.mixes[0] if self.mixes else None

    def _check(self, batch: Batch) -> None:
        check_layout(batch.image.shape)
        if self.check_values or batch.image.device.type == "cpu":
            batch.check_values()
            self._told = self._told or batch.warn_of_coordinates()

    def _run_tries(
        self, batch: Batch, seed: int, resize: tuple[int, int] | None, replay: Params | None, gradients: Gradients
    ) -> tuple[Batch, Params]:
        again = self.until if replay is None else replay.get("until")
        if again is None or not len(batch):
            return self._run(batch, seed, resize, replay, gradients)

        def run(part: Batch, own: int, before: Params | None) -> tuple[Batch, Params]:
            return self._run(part, own, resize, before, gradients)

        return run_until(run, batch, seed, self.until, self.tries, replay)

    def _run(
        self, batch: Batch, seed: int, resize: tuple[int, int] | None, replay: Params | None, gradients: Gradients
    ) -> tuple[Batch, Params]:
        if not len(batch):
            self._refuse(batch)
            out = run_empty(batch, lambda blank: self._run(blank, seed, resize, replay, gradients))
            gradients.forget()
            return out
        run = self._plan(batch, seed, replay)
        last = not self.mixes and self.ranges is None
        image, targets = self._carry_out(self, run, batch, resize or self.preprocess.output_size, last)
        return self._finish(batch, run, image, targets, resize, replay, gradients)

    @uncompiled
    def _plan(self, batch: Batch, seed: int, replay: Params | None) -> Execution:
        """Draw, or take what was drawn before, and carry out what cannot wait."""
        self._check(batch)
        self._refuse(batch)
        with no_autocast(batch.image.device):
            # uint8 images stay so until they are read
            image = batch.image if batch.image.dtype == torch.uint8 else to_float(batch.image)
            run = Execution(self._settings, batch, image, seed, look=bool(self.mixes))
            if self.stack is not None and replay is None:
                run.sample_all(self.stack)
            elif self.stack is not None and replay is not None:
                run.replay_all(self.stack, replay["steps"])
        return run

    @uncompiled
    def _finish(
        self,
        batch: Batch,
        run: Execution,
        image: Tensor,
        targets: dict[str, Any],
        resize: tuple[int, int] | None,
        replay: Params | None,
        gradients: Gradients,
    ) -> tuple[Batch, Params]:
        """Mix, change values by learned ranges, and put together what was made and what was drawn."""
        mixed: Params | None = None
        learned: Params | None = None
        out = replace_checked(batch, image=image, **targets)
        with no_autocast(batch.image.device):
            if self.mixes:
                rules = BoxRules(self.min_box_area, self.min_box_visibility, self.box_method)
                out, mixed = run_mixes(self.mixes, out, run, rules, None if replay is None else replay["mix"])
                image = out.image
            if self.ranges is not None:
                before = None if replay is None else replay["ranges"]
                image, learned = run_ranges(self.ranges, image, combine_seed(run.seed, -2), before, gradients)
                out = range_extra(self.ranges, out, learned)
            values = None if mixed is None and learned is None else self._preprocess.values
            extra = None if batch.extra is None else with_images(batch, out, values)
            with torch.set_grad_enabled(gradients.image):
                image = image if values is None else values(image)
                image = image.to(batch.image.dtype) if batch.image.is_floating_point() else image
        params = {
            "kind": "augmented",
            "seed": run.seed,
            "shape": list(batch.image.shape),
            "resize": None if resize is None else list(resize),
            "steps": run.record,
            "geometry": run.geometry.to_dict(),
            "mix": mixed,
        }
        if learned is not None:
            params["ranges"] = learned
        return detach_memory(replace_checked(out, image=image, extra=extra), batch), params

    def _refuse(self, batch: Batch) -> None:
        refuse_targets(batch, self.stack, self._unable, self.mixes, self.keypoint_flip_pairs)

    def _move(self, batch: Batch, geometry: Geometry, run: Execution | None = None) -> dict[str, Any]:
        if self.box_method == "mask" and batch.boxes is not None and batch.instance_masks is None:
            raise ValueError(
                "box_method='mask' makes boxes of instance masks, and the batch has boxes without instance_masks; give "
                "them, or take 'corners' or 'ellipse'"
            )
        rules = BoxRules(self.min_box_area, self.min_box_visibility, self.box_method)
        batch = batch if run is None else drop_hidden(run, batch)
        warp = None if run is None or batch.instance_masks is None else run.finish_instances
        pairs, sized = self.keypoint_flip_pairs, self.preprocess.letterbox or (run is not None and run.sized)
        return move_targets(batch, geometry, rules, flip_pairs=pairs, sized=sized, warp=warp)


def _carry_out(
    pipeline: AugmentationPipeline, run: Execution, batch: Batch, size: tuple[int, int] | None, values: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Carry out what was drawn: the part of a run that is one graph, compiled or captured.

    It reads no tensor's values, draws nothing, and its shapes follow from those of its arguments.

    Args:
        pipeline: whose run it is.
        run: with all that was drawn.
        batch: what it is done to.
        size: height and width that images are brought to.
        values: whether images get the values that the network takes, too.
    """
    with no_autocast(batch.image.device):
        run.carry_out_planned()
        if size is not None:
            run.resize(size, pipeline._preprocess)
        image = run.finish(pipeline._preprocess if values else None)
        targets = pipeline._move(batch, run.geometry, run)
        if batch.mask is not None:
            targets["mask"] = run.finish_mask()
        if batch.extra is not None:
            targets["extra"] = run.finish_extra()
        return image, targets
