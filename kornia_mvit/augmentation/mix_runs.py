"""Mixes carried out one after another, as a pipeline samples, records and replays them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor

from kornia_mvit.augmentation.execution import Execution
from kornia_mvit.augmentation.mix import Mix
from kornia_mvit.augmentation.operations import carry_out, exclusive, sample
from kornia_mvit.augmentation.target_mix import TargetMix, with_sources
from kornia_mvit.augmentation.targets import BoxRules
from kornia_mvit.batch import Batch
from kornia_mvit.ops.seeds import combine_seed

__all__ = ["AnyMix", "as_mixes", "run_mixes"]

Params = dict[str, Any]
AnyMix = Mix | TargetMix


def as_mixes(mix: Any) -> tuple[Mix] | tuple[TargetMix, ...]:
    """Return what a pipeline is to mix by, in order.

    Raises:
        TypeError: for what is no mix, and for a :class:`~kornia_mvit.Mix` beside others.
    """
    found = () if mix is None else tuple(mix) if isinstance(mix, Sequence) else (mix,)
    if wrong := [type(one).__name__ for one in found if not isinstance(one, Mix | TargetMix)]:
        raise TypeError(f"mix is a kornia_mvit.Mix, or of Mosaic, MixUp, CutMix and CopyPaste, got {', '.join(wrong)}")
    if len(found) > 1 and any(isinstance(one, Mix) for one in found):
        raise TypeError(
            "Mix mixes images and labels alone, by itself; beside others give MixUp or CutMix(num_classes=...)"
        )
    return cast("tuple[TargetMix, ...]", found)


def run_mixes(
    mixes: tuple[Mix] | tuple[TargetMix, ...], batch: Batch, run: Execution, rules: BoxRules, replay: Params | None
) -> tuple[Batch, Params]:
    """Mix a batch, as is sampled by the seed of a run or was sampled before.

    Args:
        mixes: one or more, in order.
        batch: what was made of the run's batch, floating-point images with their targets.
        run: what was carried out before.
        rules: for boxes.
        replay: what was sampled before; None to sample.

    Returns:
        The batch, and what was sampled.

    Raises:
        ValueError: for what was sampled by other mixes.
    """
    run.random.seed(combine_seed(run.seed, -1))
    first, *more = mixes
    if isinstance(first, Mix):
        with exclusive(first):
            params = sample(first, run.random, first.draw_for, batch) if replay is None else replay
            unseen = run.find_seen if replay is None else None
            return carry_out(first, run.random, first.run, batch, params, unseen)
    targets = [first, *more]
    kinds = [mix.kind for mix in targets]
    if replay is not None and [step["mix"] for step in replay.get("steps", [])] != kinds:
        raise ValueError(f"the parameters are of another pipeline: this one mixes by {', '.join(kinds)}")
    seen: Callable[[], Tensor] = run.find_seen
    batch, steps = with_sources(batch), []
    for number, mix in enumerate(targets):
        if number:
            run.random.seed(combine_seed(run.seed, -1, number))
        with exclusive(mix):
            if replay is None:
                steps.append({"mix": mix.kind, **sample(mix, run.random, mix.draw_for, batch)})
            else:
                steps.append(replay["steps"][number])
            batch, seen = carry_out(mix, run.random, mix.run, batch, steps[-1], seen, rules)
    done = [step["mix"] for step in steps if step["kind"] != "none"]
    return batch, {"kind": " and ".join(done) or "none", "steps": steps}
