"""The properties, one function each: silent where a property holds, and telling where it does not."""

import copy
import pickle
from collections.abc import Callable

import torch
from hypothesis import assume
from hypothesis import strategies as st

from kornia_mvit.testing.comparing import (
    compare,
    compare_shapes,
    fits,
    for_sizes,
    join,
    row_of,
    same,
    send_back,
    telling_size,
    weigh,
)
from kornia_mvit.testing.subject import (
    NotApplicable,
    Subject,
    Violation,
    describe_error,
    generator_states,
    is_refusal,
    seeded,
)

__all__ = ["CHECKS", "OPTIONAL"]

Size = tuple[int, int]
Check = Callable[[Subject], str | None]

CHECKS: dict[str, Check] = {}
OPTIONAL = ("compile",)  # it takes a C++ compiler, and minutes for a large network


def _property(check: Check) -> Check:
    CHECKS[check.__name__.strip("_")] = check
    return check


# ------------------------------------------------------------------------------------------------ sizes and values


@_property
def sizes(subject: Subject) -> str | None:
    """Every size is taken, those that no stride divides among them."""
    model = subject.build()

    def test(size: Size) -> None:
        if not subject.accepts(model, size):
            raise Violation(f"{size[0]}x{size[1]}: {describe_error(subject.problems[size])}")

    refused = len([size for size in subject.drawn if size in subject.problems])
    try:
        for_sizes(subject, test, everything=True)
    except Violation as violation:
        smallest = str(violation)
        crashes = {s: e for s, e in subject.problems.items() if not is_refusal(e)}
        if crashes:  # graver than a refusal, whichever of the two is smaller
            height, width = min(crashes, key=lambda size: (size[0] * size[1], size))
            smallest = f"{height}x{width}: {describe_error(crashes[height, width])}"
        taken = f"; taken are {join(subject.accepted)}" if subject.accepted else ""
        word = "raise" if crashes else "are refused"
        raise Violation(f"{smallest}\n{refused} of {len(subject.drawn)} sizes drawn {word}{taken}") from None
    return None


@_property
def shapes(subject: Subject) -> str | None:
    """Outputs keep their number, rank and channels; a map's height follows the image's height alone, by one stride."""
    model = subject.build()
    least, most = subject.accepted[0] if subject.accepted else subject.size, subject.size
    reference, large = (subject.run(model, subject.image(size)) for size in (least, most))
    strides = {}
    for name, y in reference.items():
        if y.ndim != 4:
            continue
        fit = [stride for stride in range(1, max(least) + 1) if fits(y.shape[2:], least, stride)]
        shape = large[name].shape if name in large else ()
        both = [stride for stride in fit if len(shape) == 4 and fits(shape[2:], most, stride)]
        strides[name] = both or fit

    def test(size: Size) -> None:
        assume(subject.accepts(model, size))
        outputs = subject.run(model, subject.image(size))
        said = f"{size[0]}x{size[1]}"
        if subject.output_shape is not None:
            compare_shapes(outputs, subject.output_shape(2, *size), said)
            return
        if outputs.keys() != reference.keys():
            raise Violation(f"{said}: outputs are {', '.join(outputs)}; for other sizes {', '.join(reference)}")
        for name, y in outputs.items():
            shape, other = tuple(y.shape), tuple(reference[name].shape)
            if len(shape) != len(other) or shape[:1] != (2,):
                raise Violation(f"{said}: {name} of a batch of 2 is {shape}; of another size it is {other}")
            if len(shape) != 3 and shape[1:2] != other[1:2]:
                raise Violation(f"{said}: {name} has {shape[1]} channels, but {other[1]} for other sizes")
            if len(shape) == 4 and not any(fits(y.shape[2:], size, stride) for stride in strides[name]):
                at = f"{least[0]}x{least[1]}"
                raise Violation(f"{said}: {name} is {shape}, and at {at} {other}: no stride gives both")
            if len(shape) == 4 and (square := (size[0], size[0])) != size and subject.accepts(model, square):
                tall = subject.run(model, subject.image(square))[name].shape
                if tall[2] != shape[2]:
                    raise Violation(f"{said}: {name} is {shape[2]} high, but {tall[2]} for {square[0]}x{square[1]}")

    for_sizes(subject, test)
    return None


@_property
def finite(subject: Subject) -> str | None:
    """Outputs are finite: for noise, for constants, for values that were not brought to [0, 1]."""
    model = subject.build()

    def test(size: Size, content: str, scale: tuple[float, float]) -> None:
        assume(subject.accepts(model, size))
        image = subject.image(size, content=content) * (scale[1] - scale[0]) + scale[0]
        for name, y in subject.run(model, image).items():
            if y.numel() and not y.isfinite().all():
                kind = "NaN" if y.isnan().any() else "infinite values"
                where = f"{content} images with values from {scale[0]:g} to {scale[1]:g}"
                raise Violation(f"{size[0]}x{size[1]}, {where}: {name} has {kind}")

    contents = st.sampled_from(["low", "constant", "checkerboard", "noise"])
    for_sizes(subject, test, content=contents, scale=st.sampled_from([(0.0, 1.0), (-3.0, 3.0), (0.0, 255.0)]))
    return None


@_property
def batch_sizes(subject: Subject) -> str | None:
    """Batches of any number of images are taken, of one too, and outputs have as many rows."""
    model, size = subject.build(), subject.size
    reference = subject.run(model, subject.image(size))
    for batch in (1, 3):
        try:
            outputs = subject.run(model, subject.image(size, batch=batch))
        except Exception as error:  # whatever a network raises
            raise Violation(f"a batch of {batch}: {describe_error(error)}") from None
        for name, y in outputs.items():
            expected = (batch, *reference[name].shape[1:]) if name in reference else None
            if expected != tuple(y.shape):
                raise Violation(f"a batch of {batch}: {name} is {tuple(y.shape)}, not {expected}")
    return None


@_property
def neighbours(subject: Subject) -> str | None:
    """In eval mode the output of an image does not depend on the others in its batch, nor on its place."""
    model = subject.build()

    def test(size: Size) -> None:
        assume(subject.accepts(model, size))
        a, b, c = subject.image(size, batch=3).unbind(0)
        rows = {
            "with another neighbour": row_of(subject.run(model, torch.stack([a, c * 0.5])), 0),
            "in another place": row_of(subject.run(model, torch.stack([b, a])), 1),
        }
        expected = row_of(subject.run(model, torch.stack([a, b])), 0)
        for what, row in rows.items():
            compare(row, expected, f"{size[0]}x{size[1]}, {what}")

    try:
        for_sizes(subject, test)
    except Violation as violation:
        training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
        hint = f"\nin training mode after eval(): {join(training)}" if training else ""
        raise type(violation)(f"{violation}{hint}") from None
    return None


# ------------------------------------------------------------------------------------------------------ randomness


@_property
def repeatable(subject: Subject) -> str | None:
    """In eval mode the same images give the same outputs again, whatever was run in between."""
    model, image = subject.build(), subject.image(subject.size)
    first = {name: y.clone() for name, y in subject.run(model, image).items()}
    subject.run(model, subject.image(subject.size, seed=subject.seed + 1))
    compare(subject.run(model, image), first, "run a second time, after other images", tolerance=1e-6)
    return None


@_property
def randomness(subject: Subject) -> str | None:
    """In eval mode nothing is drawn from the global generators of PyTorch, NumPy and Python."""
    model, image = subject.build(), subject.image(subject.size)
    with seeded(subject.seed), torch.no_grad():
        before = generator_states()
        model(image)
        after = generator_states()
    if moved := [name for name, state in before.items() if after[name] != state]:
        raise Violation(f"a forward pass moved {' and '.join(moved)} global generator")
    return None


@_property
def seeded_weights(subject: Subject) -> str | None:
    """Two networks built from one seed have equal weights."""
    one, other = subject.build().state_dict(), subject.build().state_dict()
    differ = [name for name, value in one.items() if not same(value, other.get(name))]
    if differ or one.keys() != other.keys():
        raise Violation(
            f"built twice after torch.manual_seed({subject.seed}), these differ: {join(differ or [*other])}"
        )
    return None


# ------------------------------------------------------------------------------------------------------- gradients


@_property
def input_gradient(subject: Subject) -> str | None:
    """The gradient reaches the image, and is finite."""
    model = subject.build()
    image = subject.image(subject.size).requires_grad_()
    send_back(subject, model, image)
    grad = image.grad
    if grad is None or not grad.count_nonzero():
        raise Violation("no gradient reaches the image; is a part of the network run under no_grad, or rounded?")
    if not grad.isfinite().all():
        raise Violation("the gradient of the image is not finite")
    dead = [channel for channel in range(subject.in_channels) if not grad[:, channel].count_nonzero()]
    if dead:
        raise Violation(f"no gradient reaches the channels {join(dead)} of the image")
    return None


@_property
def parameters(subject: Subject) -> str | None:
    """The gradient reaches every parameter that asks for one, and is finite."""
    model = subject.build()
    waiting = {name for name, p in model.named_parameters() if p.requires_grad and p.numel()}
    if not waiting:
        raise NotApplicable("it has no parameters that ask for a gradient")
    for training in (False, True):  # some heads run in training alone
        model.train(training)
        for seed in range(3):
            if not waiting:
                break
            model.zero_grad(set_to_none=True)
            send_back(subject, model, subject.image(subject.size, seed=subject.seed + seed))
            found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            if wrong := [name for name, grad in found.items() if not grad.isfinite().all()]:
                raise Violation(f"the gradient is not finite at {join(wrong)}")
            waiting -= {name for name, grad in found.items() if grad.count_nonzero()}
    if waiting:
        names = [name for name, _ in model.named_parameters() if name in waiting]
        raise Violation(f"no gradient reaches {join(names)}")
    return None


@_property
def buffers(subject: Subject) -> str | None:
    """Every floating-point buffer has an effect on the output."""
    model, image = subject.build(), subject.image(subject.size)
    found = {name: b for name, b in model.named_buffers() if b.is_floating_point() and b.numel()}
    if not found:
        raise NotApplicable("it has no floating-point buffers")
    expected = {name: y.clone() for name, y in subject.run(model, image).items()}
    if any(y.is_floating_point() and not y.isfinite().all() for y in expected.values()):
        raise NotApplicable("the outputs are not finite; see finite")
    idle = []
    for name, buffer in found.items():
        kept = buffer.clone()
        with torch.no_grad():
            buffer.mul_(1.5).add_(0.25)
            try:
                changed = subject.run(model, image)
                if all(torch.equal(changed[key], y) for key, y in expected.items()):
                    idle.append(name)
            except Exception:  # what a buffer's value can bring down has an effect
                continue
            finally:
                buffer.copy_(kept)
    if idle:
        raise Violation(f"changing these changes nothing: {join(idle)}")
    return None


# ------------------------------------------------------------------------------------- dtypes, devices and layouts


@_property
def dtypes(subject: Subject) -> str | None:
    """Converted to float64 and to bfloat16, the network gives outputs of that dtype that agree with float32."""
    image, built = subject.image(subject.size), subject.build()
    expected = subject.run(built, image)
    said = []
    for dtype, tolerance in ((torch.float64, 1e-3), (torch.bfloat16, 0.25)):
        model = copy.deepcopy(built).to(dtype)
        try:
            outputs = subject.run(model, image.to(dtype))
        except RuntimeError as error:
            if "not implemented for" in str(error):
                said.append(f"{dtype} not tried: {describe_error(error)}")
                continue
            raise Violation(f"{dtype}: {describe_error(error)}") from None
        except Exception as error:  # whatever a network raises
            raise Violation(f"{dtype}: {describe_error(error)}") from None
        for name, y in outputs.items():
            if y.is_floating_point() and y.dtype != dtype:
                raise Violation(f"{dtype}: {name} is {y.dtype}")
        compare(outputs, expected, str(dtype), tolerance)
    return "\n".join(said) or None


@_property
def autocast(subject: Subject) -> str | None:
    """Under autocast to bfloat16 it runs forward and backward, and gives finite outputs."""
    model = subject.build()
    image = subject.image(subject.size)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = subject.run(model, image, grad=True)
    if wrong := [name for name, y in outputs.items() if y.is_floating_point() and not y.isfinite().all()]:
        expected = subject.run(model, image)
        if all(expected[name].isfinite().all() for name in wrong):
            raise Violation(f"{join(wrong)} is not finite, though it is without autocast")
    total = weigh(outputs, subject.seed)
    if total is not None:
        torch.autograd.backward(total)
    return None


@_property
def device(subject: Subject) -> str | None:
    """Everything it makes lies on the device of its input: shown on the meta device, and on CUDA where there is one."""
    image = subject.image(subject.size)
    model = subject.build()
    if torch.cuda.is_available():
        outputs = subject.run(copy.deepcopy(model).cuda(), image.cuda())
        if wrong := [name for name, y in outputs.items() if y.device.type != "cuda"]:
            raise Violation(f"on cuda {join(wrong)} is on another device")
    try:
        outputs = subject.run(copy.deepcopy(model).to("meta"), image.to("meta"))
    except Exception as error:  # whatever a network raises
        said = str(error)
        if isinstance(error, NotImplementedError) or ("meta tensors" in said and "same device" not in said):
            if torch.cuda.is_available():
                return None
            raise NotApplicable(f"it reads values, which a meta tensor has not got: {describe_error(error)}") from None
        raise Violation(f"on the meta device: {describe_error(error)}") from None
    if wrong := [name for name, y in outputs.items() if not y.is_meta]:
        raise Violation(f"on the meta device {join(wrong)} is not: it does not depend on the image, or left its device")
    return None


@_property
def channels_last(subject: Subject) -> str | None:
    """Images and weights in channels_last give what contiguous ones give."""
    model = subject.build()
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def test(size: Size) -> None:
        assume(subject.accepts(model, size))
        image = subject.image(size)
        last = image.contiguous(memory_format=torch.channels_last)
        expected = subject.run(model, image)
        compare(subject.run(model, last), expected, f"{size[0]}x{size[1]}, images in channels_last")
        compare(subject.run(turned, last), expected, f"{size[0]}x{size[1]}, images and weights in channels_last")

    for_sizes(subject, telling_size(test))
    return None


@_property
def strided(subject: Subject) -> str | None:
    """Images cut out of larger ones, and transposed ones, give what contiguous ones give."""
    model = subject.build()

    def test(size: Size) -> None:
        assume(subject.accepts(model, size))
        image = subject.image(size)
        wide = torch.zeros(*image.shape[:-1], 2 * image.shape[-1] + 1)
        wide[..., 1::2] = image
        turned = image.transpose(-1, -2).contiguous().transpose(-1, -2)
        expected = subject.run(model, image)
        compare(
            subject.run(model, wide[..., 1::2], as_it_is=True),
            expected,
            f"{size[0]}x{size[1]}, every second column of an image",
        )
        compare(subject.run(model, turned, as_it_is=True), expected, f"{size[0]}x{size[1]}, transposed image")

    for_sizes(subject, telling_size(test))
    return None


@_property
def input_unchanged(subject: Subject) -> str | None:
    """The image is as it was after the forward pass, in eval and in training."""
    model = subject.build()

    def test(size: Size) -> None:
        assume(subject.accepts(model, size))
        image = subject.image(size)
        for training in (False, True):
            given_image = image.clone()
            try:
                subject.run(model.train(training), given_image, as_it_is=True)
            except Exception:  # training's own failures are another property's business
                assume(not training)
            if not torch.equal(given_image, image):
                far = float((given_image - image).abs().nan_to_num(torch.inf).max())
                mode = "training" if training else "eval"
                raise Violation(
                    f"{size[0]}x{size[1]}: in {mode} mode the image is changed in place, by up to {far:.3g}"
                )

    for_sizes(subject, test)
    return None


# ----------------------------------------------------------------------------------------------- modes and copies


@_property
def modes(subject: Subject) -> str | None:
    """In training mode it gives the same shapes, forward and backward; there and back, eval gives what it gave."""
    model, image = subject.build(), subject.image(subject.size, batch=4)
    expected = subject.run(model, image)
    kept = copy.deepcopy(model.state_dict())
    model.train()
    outputs = subject.run(model, image, grad=True)
    if differ := [name for name in expected if name in outputs and outputs[name].shape != expected[name].shape]:
        raise Violation(f"in training mode {join(differ)} has another shape: {tuple(outputs[differ[0]].shape)}")
    total = weigh(outputs, subject.seed)
    if total is not None:
        torch.autograd.backward(total)
    model.load_state_dict(kept)
    compare(subject.run(model.eval(), image), expected, "after train() and eval(), with the weights of before")
    return None


@_property
def state_dict(subject: Subject) -> str | None:
    """Another network that loads its state gives the same outputs."""
    model, image = subject.build(), subject.image(subject.size)
    other = subject.build(subject.seed + 1)
    other.load_state_dict(model.state_dict())
    compare(subject.run(other, image), subject.run(model, image), "loaded into another network")
    return None


@_property
def deepcopy(subject: Subject) -> str | None:
    """A deep copy gives the same outputs, and shares no weights."""
    model, image = subject.build(), subject.image(subject.size)
    other = copy.deepcopy(model)
    compare(subject.run(other, image), subject.run(model, image), "copied")
    theirs = {p.data_ptr() for p in other.parameters() if p.numel()}
    if shared := [name for name, p in model.named_parameters() if p.numel() and p.data_ptr() in theirs]:
        raise Violation(f"the copy shares {join(shared)}")
    return None


@_property
def pickles(subject: Subject) -> str | None:
    """Pickled and read again, it gives the same outputs."""
    model, image = subject.build(), subject.image(subject.size)
    try:
        text = pickle.dumps(model)
    except Exception as error:  # whatever an attribute raises
        raise Violation(f"cannot be pickled: {describe_error(error)}") from None
    compare(subject.run(pickle.loads(text), image), subject.run(model, image), "pickled and read again")
    return None


# ---------------------------------------------------------------------------------------------------------- graphs


@_property
def export(subject: Subject) -> str | None:
    """``torch.export`` gives a program whose outputs are the network's."""
    model, image = subject.build(), subject.image(subject.size)
    try:
        with torch.no_grad():
            program = torch.export.export(model, (image,))
    except Exception as error:  # whatever tracing raises
        raise Violation(f"torch.export: {describe_error(error)}") from None
    compare(subject.run(program.module(), image), subject.run(model, image), "exported")
    return None


@_property
def compile(subject: Subject) -> str | None:  # named as PyTorch names it
    """``torch.compile`` as one graph gives the network's outputs."""
    model, image = subject.build(), subject.image(subject.size)
    try:
        outputs = subject.run(torch.compile(model, fullgraph=True), image)
    except Exception as error:  # whatever the compiler raises
        raise Violation(f"torch.compile: {describe_error(error)}") from None
    compare(outputs, subject.run(model, image), "compiled", tolerance=1e-3)
    return None
