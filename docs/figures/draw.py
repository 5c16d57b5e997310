"""Draw a figure of the documentation: ``python docs/figures/draw.py network``, or another that ``--help`` lists.

The photographs are scikit-learn's samples, by danielbuechele and vultilion, CC BY 2.0.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from svg import INK, PALE, Canvas

from kornia_mvit.models.mobilevit import VARIANTS

if TYPE_CHECKING:
    from PIL import Image

FOLDER = Path(__file__).parent
CELL, SEEDS, CELLS = 224, (1, 2), (3, 20, 40)
GREY, BLUE, GREEN, ORANGE, RED = "#eef1f4", "#d7e8fb", "#d9f2df", "#fde6c8", "#f9d8d6"


# -------------------------------------------------------------------------------------------------------- network


def draw_network() -> None:
    """The levels of all three sizes, the two blocks they are made of, and which pixels attend to which."""
    canvas = Canvas(1040, 690, "MobileViT: the levels of xxs, xs and s, the two blocks they are made of, and attention")
    _levels(canvas)
    _inverted_residual(canvas)
    _mobilevit_block(canvas)
    _attention(canvas)
    (FOLDER / "network.svg").write_text(str(canvas))


def _levels(canvas: Canvas) -> None:
    sizes = VARIANTS["apple"]
    rows = [["3×3 conv\nstride 2", GREEN, 128, [config.stem for config in sizes.values()]]]
    side = 128
    for levels in zip(*(config.stages for config in sizes.values()), strict=True):
        first, side = levels[0], side // levels[0].stride
        words = f"{first.repeat} × inverted\nresidual" + ("" if first.stride == 1 else f"\nstride {first.stride}")
        if first.depth:
            words = f"inverted residual\nstride {first.stride}\n+ MobileViT block\nL = {first.depth}"
        rows.append([words, ORANGE if first.depth else BLUE, side, [level.channels for level in levels]])
    rows.append(["1×1 conv", GREEN, side, [config.head_channels for config in sizes.values()]])
    canvas.text(20, 26, "The network, for an image of 256 × 256 pixels", 15, anchor="start", bold=True)
    width, gap, left = 124, 18, 20
    for number, (words, fill, side, channels) in enumerate(rows):
        x = left + number * (width - 8 + gap - 4)
        canvas.box(x, 52, width - 8, 84, words, fill, 11)
        if number:
            canvas.arrow((x - gap + 4, 94), (x, 94))
        canvas.text(x + width / 2 - 4, 154, f"{side} × {side}", 12, PALE)
        canvas.text(x + width / 2 - 4, 174, " / ".join(map(str, channels)), 12, PALE)
    canvas.text(
        20, 200, "Below each level: the side of its map, and its channels in " + " / ".join(sizes), 12, PALE, "start"
    )


def _inverted_residual(canvas: Canvas) -> None:
    canvas.text(20, 244, "Inverted residual", 15, anchor="start", bold=True)
    steps = ["1×1 conv\nwider × 2 or 4\nBN, SiLU", "3×3 depthwise\nstride 1 or 2\nBN, SiLU", "1×1 conv\nback\nBN"]
    for number, words in enumerate(steps):
        x = 60 + number * 135
        canvas.box(x, 276, 110, 66, words, BLUE, 12)
        canvas.arrow((x - 25, 309), (x, 309))
    canvas.arrow((440, 309), (500, 309))
    canvas.arrow((42, 309), (42, 366), (470, 366), (470, 313), dashed=True)
    canvas.text(256, 380, "added where the stride is 1 and the widths are equal", 12, PALE)


def _mobilevit_block(canvas: Canvas) -> None:
    canvas.text(20, 424, "MobileViT block", 15, anchor="start", bold=True)
    steps = [
        ("3×3 conv\nBN, SiLU", GREEN),
        ("1×1 conv\ninto D", GREEN),
        ("unfold\n2×2 patches", GREY),
        ("transformer\nL layers", ORANGE),
        ("LayerNorm", ORANGE),
        ("fold", GREY),
        ("1×1 conv\nBN, SiLU", GREEN),
        ("concat", GREY),
        ("3×3 conv\nBN, SiLU", GREEN),
    ]
    width, gap = 94, 16
    for number, (words, fill) in enumerate(steps):
        x = 44 + number * (width + gap)
        canvas.box(x, 456, width, 56, words, fill, 12)
        canvas.arrow((x - gap, 484), (x, 484))
    concat = 44 + 7 * (width + gap) + width / 2
    canvas.arrow((34, 484), (34, 538), (concat, 538), (concat, 512), dashed=True)
    canvas.text(concat / 2, 552, "the block's input, first of the two", 12, PALE)
    canvas.arrow((44 + 9 * (width + gap) - gap, 484), (44 + 9 * (width + gap), 484))
    words = (
        "A layer: LayerNorm, attention with 4 heads of D/4, added; LayerNorm, linear to 2 D, SiLU, linear, added.\n"
        "A map that the patch does not divide is resized to the next multiple, and back after fold."
    )
    canvas.text(20, 596, words, 13, anchor="start")
    canvas.text(
        20,
        650,
        "SSDLite stands on the last two MobileViT blocks, DeepLabv3 on the last, dilated to stride 16 or 8.",
        13,
        anchor="start",
    )


def _attention(canvas: Canvas) -> None:
    canvas.text(590, 244, "Attention, within the pixels of one colour", 15, anchor="start", bold=True)
    colours = ("#4c8fd6", "#e2954a", "#63b67a", "#d4655f")
    cell, left, top = 19, 590, 268
    for row in range(6):
        for column in range(8):
            fill = colours[2 * (row % 2) + column % 2]
            x, y = left + column * cell, top + row * cell
            canvas.parts.append(f"<rect x='{x}' y='{y}' width='{cell - 1}' height='{cell - 1}' fill='{fill}'/>")
    for row in range(3):
        for column in range(4):
            x, y = left + 2 * column * cell - 0.5, top + 2 * row * cell - 0.5
            place = f"x='{x}' y='{y}' width='{2 * cell}' height='{2 * cell}'"
            canvas.parts.append(f"<rect {place} fill='none' stroke='{INK}' stroke-width='2'/>")
    canvas.text(left + 4 * cell, top + 6 * cell + 16, "map, in patches of 2 × 2", 12, PALE)
    canvas.arrow((left + 8 * cell + 10, top + 57), (left + 8 * cell + 52, top + 57))
    canvas.text(left + 8 * cell + 31, top + 43, "unfold", 12, PALE)
    x = left + 8 * cell + 64
    for row, fill in enumerate(colours):
        for column in range(12):
            place = f"x='{x + column * 16}' y='{top + 8 + row * 26}' width='15' height='18'"
            canvas.parts.append(f"<rect {place} fill='{fill}'/>")
    canvas.text(x + 96, top + 6 * cell + 16, "P = 4 sequences of N = 12 tokens", 12, PALE)


# ------------------------------------------------------------------------------------------------------- pipeline


def draw_pipeline() -> None:
    """What happens to a batch on its way into the network, in training, in evaluation and on the phone."""
    canvas = Canvas(1040, 520, "The pipeline: training, evaluation and the phone share one Preprocess")
    canvas.text(20, 26, "Training", 15, anchor="start", bold=True)
    canvas.box(20, 48, 150, 92, "Batch\nuint8 images, labels,\nboxes, masks,\nkeypoints", GREY, 12)
    canvas.rect(206, 40, 596, 200, "#fafbfc", edge=PALE, dashed=True)
    canvas.text(216, 56, "AugmentationPipeline, on the batch's device", 12, PALE, "start")
    for x, width, words, fill in (
        (222, 150, "geometry\ncrops, flips, affine …\ncomposed, and images\nresampled once", BLUE),
        (392, 110, "colour\njitter, blur,\nerasing …", BLUE),
        (522, 110, "Mix\nMixUp, CutMix\ninto soft labels", BLUE),
        (652, 134, "Preprocess\nvalues: order of\nchannels, mean, std", GREEN),
    ):
        canvas.box(x, 70, width, 80, words, fill, 12)
    for start, end in ((170, 222), (372, 392), (502, 522), (632, 652), (786, 838)):
        canvas.arrow((start, 110), (end, 110))
    canvas.box(222, 176, 410, 46, "parameters, drawn from (seed, rank, epoch, step)\nplain data", ORANGE, 12)
    for x in (297, 447, 577):
        canvas.arrow((x, 176), (x, 150))
    canvas.box(838, 70, 182, 80, "network and loss\nlogits; targets that\nmoved with the images", GREY, 12)
    canvas.box(212, 262, 204, 56, "replay(batch, parameters)\nthe same, to the bit", ORANGE, 12)
    canvas.box(432, 262, 210, 56, "inverse(maps, parameters)\nmaps and boxes, back", ORANGE, 12)
    canvas.arrow((317, 222), (317, 262))
    canvas.arrow((537, 222), (537, 262))
    canvas.arrow((929, 150), (929, 290), (642, 290), dashed=True)
    canvas.text(780, 304, "what the network says", 12, PALE)

    canvas.text(20, 352, "Evaluation", 15, anchor="start", bold=True)
    canvas.box(20, 372, 150, 46, "Batch", GREY, 12)
    canvas.box(222, 372, 190, 46, "Preprocess\nsize, crop, values", GREEN, 12)
    canvas.box(442, 372, 190, 46, "network\nor TestTimeAugmentation", GREY, 12)
    canvas.box(838, 372, 182, 46, "scores\nin the files' own pixels", GREY, 12)
    for start, end in ((170, 222), (412, 442), (632, 838)):
        canvas.arrow((start, 395), (end, 395))
    canvas.text(20, 448, "Phone", 15, anchor="start", bold=True)
    canvas.box(20, 466, 150, 42, "camera image", GREY, 12)
    canvas.rect(206, 458, 596, 56, "#fafbfc", edge=PALE, dashed=True)
    canvas.box(222, 466, 190, 42, "Preprocess\nas operators of the graph", GREEN, 12)
    canvas.box(442, 466, 190, 42, "fused network", GREY, 12)
    canvas.box(652, 466, 134, 42, "decode", GREY, 12)
    canvas.box(838, 466, 182, 42, "answers", GREY, 12)
    for start, end in ((170, 222), (412, 442), (632, 652), (786, 838)):
        canvas.arrow((start, 487), (end, 487))
    (FOLDER / "pipeline.svg").write_text(str(canvas))


# ------------------------------------------------------------------------------------------------- augmented batch


def _photos() -> "torch.Tensor":
    from sklearn.datasets import load_sample_images

    return torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images])


def _polygon(points: list[tuple[float, float]], size: tuple[int, int]) -> "torch.Tensor":
    import numpy
    from PIL import Image, ImageDraw

    picture = Image.new("L", size[::-1])
    ImageDraw.Draw(picture).polygon(points, fill=1)
    return torch.from_numpy(numpy.array(picture)).bool()


def draw_augmented() -> None:
    """Two photographs with their boxes, masks and keypoints, and what a policy makes of them."""
    from kornia.augmentation import ColorJitter, RandomAffine, RandomHorizontalFlip, RandomResizedCrop
    from PIL import Image

    from kornia_mvit import AugmentationPipeline, Batch, draw_batch

    images = _photos()
    size = tuple(images.shape[-2:])
    pagoda = [(206, 28), (240, 85), (318, 122), (298, 160), (330, 178), (318, 234), (352, 254), (345, 310), (375, 340)]
    pagoda += [(318, 380), (215, 388), (70, 345), (64, 268), (100, 230), (84, 178), (120, 158), (96, 125), (175, 85)]
    petals = [(307 + 138 * math.cos(a / 20 * math.pi), 222 + 136 * math.sin(a / 20 * math.pi)) for a in range(40)]
    mask = torch.zeros(2, *size, dtype=torch.long)
    mask[0][_polygon(pagoda, size)] = 1
    mask[1][_polygon(petals, size)] = 2
    batch = Batch(
        images,
        boxes=torch.tensor([[[64.0, 28, 378, 390], [545, 135, 640, 425]], [[169, 85, 446, 360], [287, 375, 467, 427]]]),
        box_label=torch.tensor([[1, 3], [2, 2]]),
        mask=mask,
        keypoints=torch.tensor([[[206.0, 32.0], [207, 120], [205, 240]], [[310.0, 212.0], [176, 262], [436, 250]]]),
        keypoint_visible=torch.ones(2, 3, dtype=torch.bool),
    )
    names = ("ground", "pagoda", "flower", "tree")
    pipeline = AugmentationPipeline(
        [
            RandomResizedCrop((CELL, CELL), scale=(0.5, 1.0)),
            RandomHorizontalFlip(),
            RandomAffine(20.0, (0.1, 0.1), (0.8, 1.2), 10.0, p=1.0),
            ColorJitter(0.3, 0.3, 0.4, 0.05, p=1.0),
        ]
    )
    columns, gap = 4, 8
    wide = round(CELL * size[1] / size[0])
    sheet = Image.new("RGB", (wide + columns * (CELL + gap), 2 * CELL + gap), "white")
    for row in range(2):
        views = pipeline.augment(batch[[row] * columns], seed=SEEDS[row])[0]
        pictures = [draw_batch(batch[[row]], names, background=0, legend=False, cell=wide).crop(_inside(wide, CELL))]
        pictures += [
            draw_batch(views[[k]], names, background=0, legend=False, cell=CELL).crop(_inside(CELL, CELL))
            for k in range(columns)
        ]
        left = 0
        for picture in pictures:
            sheet.paste(picture, (left, row * (CELL + gap)))
            left += picture.width + gap
    sheet.save(FOLDER / "augmented.jpg", quality=88, optimize=True)


def draw_ranges() -> None:
    """A photograph as it is, and changed by the ranges that were found for one PSNR after another."""
    from kornia_mvit import AugmentationPipeline, Batch, LearnedRanges, Preprocess, draw_batch
    from kornia_mvit.draw.images import stack_rows
    from kornia_mvit.draw.sheets import side_by_side

    side = CELL - 40
    images = Preprocess(side, crop=side).module().geometry(_photos()).float() / 255
    ranges = LearnedRanges(target_psnr=(40, 20), schedule="linear")
    pipeline = AugmentationPipeline(ranges=ranges).train()
    titles, rows = ["as it is"], [[images[[0]]] for _ in range(2)]
    for step in range(5):
        ranges.set_step(step, 4)
        ranges.fit(images.repeat(8, 1, 1, 1)[..., ::2, ::2], steps=150)
        titles.append(f"{ranges.target:g} dB")
        for row, seed in zip(rows, SEEDS, strict=True):
            row.append(pipeline.augment(Batch(images[[0, 0]]), seed=seed)[0].image[:1])
    drawn = [
        side_by_side([draw_batch(Batch(one), cell=side, columns=1).crop(_inside(side, side)) for one in row])
        for row in rows
    ]
    stack_rows(drawn, titles).save(FOLDER / "ranges.jpg", quality=88, optimize=True)


def _inside(width: int, height: int) -> tuple[int, int, int, int]:
    """The picture within the margin that :func:`draw_batch` leaves around it."""
    return 11, 11, 11 + width, 11 + height


# ----------------------------------------------------------------------------------------------------- predictions


def draw_predictions(digits: Path, shapes: Path, cells: Path, cells_root: Path) -> None:
    """What three trained networks say of images that they did not see in training.

    Args:
        digits: checkpoint that ``kornia-mvit demo`` leaves.
        shapes: checkpoint of a DeepLabV3 for the shapes of :class:`kornia_mvit.data.synthetic.Shapes`.
        cells: checkpoint of the recipe ``bccd``.
        cells_root: folder of BCCD.
    """
    from PIL import Image

    rows = [_classified(digits), _segmented(shapes), _detected(cells, cells_root)]
    width, gap = max(row.width for row in rows), 12
    sheet = Image.new("RGB", (width, sum(row.height for row in rows) + gap * (len(rows) - 1)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    sheet.save(FOLDER / "predictions.jpg", quality=88, optimize=True)


@torch.inference_mode()
def _classified(checkpoint: Path) -> "Image.Image":
    from kornia_mvit import Batch, from_pretrained
    from kornia_mvit.draw.images import draw_predictions as draw
    from kornia_mvit.training.datamodules import DigitsData

    model, data = from_pretrained(checkpoint), DigitsData()
    data.setup()
    test = data.splits["test"]
    batch = Batch.collate([test[i] for i in range(10)])
    probabilities = model(model.preprocess.module()(batch.image)).softmax(-1)
    return draw(batch.image, probabilities, batch.label, model.class_names, columns=10, cell=114)


@torch.inference_mode()
def _segmented(checkpoint: Path) -> "Image.Image":
    from PIL import Image

    from kornia_mvit import from_pretrained
    from kornia_mvit.data.synthetic import Shapes
    from kornia_mvit.draw.images import draw_segmentation

    model, gap = from_pretrained(checkpoint), 8
    samples = Shapes(3, (128, 208), shapes=(3, 4), radius=(0.12, 0.22), seed=11)
    sheet = Image.new("RGB", (3 * 424, 128), "white")
    for number in range(3):
        image = samples[number]["image"]
        labels = model(model.preprocess.module()(image[None])).argmax(1)[0]
        sheet.paste(draw_segmentation(image, [labels]), (number * (420 + gap), 0))
    return sheet


@torch.inference_mode()
def _detected(checkpoint: Path, root: Path) -> "Image.Image":
    from PIL import Image

    from kornia_mvit import from_pretrained
    from kornia_mvit.draw.images import draw_detections
    from kornia_mvit.training.datamodules import VOCData

    model, data, gap = from_pretrained(checkpoint), VOCData(str(root), num_workers=0), 8
    data.setup()
    sheet = Image.new("RGB", (3 * 424, 316), "white")
    for number, index in enumerate(CELLS):
        image = data.splits["val"][index]["image"]
        inputs = model.preprocess.module()(image[None])
        (found,) = model.decode(*model(inputs), inputs.shape[-2:], score_threshold=0.4)
        scale = torch.tensor([a / b for a, b in zip(image.shape[:0:-1], inputs.shape[:1:-1], strict=True)]).repeat(2)
        picture = draw_detections(image, found.boxes * scale, found.labels, found.scores, model.class_names)
        sheet.paste(picture.resize((420, 315)), (number * (420 + gap), 0))
    return sheet


DRAW: dict[str, Callable[[], None]] = {
    "network": draw_network,
    "pipeline": draw_pipeline,
    "augmented": draw_augmented,
    "ranges": draw_ranges,
}


def main() -> None:
    """Draw the figures that are asked for, or all but the predictions, which need trained networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="FIGURE")
    for name, draw in DRAW.items():
        commands.add_parser(name, help=(draw.__doc__ or "").strip()).set_defaults(draw=draw)
    command = commands.add_parser("predictions", help=(draw_predictions.__doc__ or "").splitlines()[0])
    for name in ("digits", "shapes", "cells", "cells_root"):
        command.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    command.set_defaults(draw=draw_predictions)
    arguments = vars(parser.parse_args())
    arguments.pop("draw")(**arguments)


if __name__ == "__main__":
    main()
