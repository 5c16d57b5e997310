"""Pictures of batches and of predictions."""

import pytest
import torch
from hypothesis import given

from kornia_mvit import Batch, Preprocess
from kornia_mvit.draw.images import _RIGHT, _WRONG, _colour, draw_batch, draw_predictions
from kornia_mvit.testing.strategies import batches
from tests.tester import cases


def has(picture, colour):
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return any(pixel == wanted for _, pixel in picture.getcolors(1 << 24))


class TestDrawBatch:
    @pytest.mark.parametrize("label", [None, torch.arange(5), torch.eye(5) * 0.5 + 0.1])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_cardinality(self, label, channels):
        batch = Batch(torch.randint(0, 256, (5, channels, 20, 30), dtype=torch.uint8), label)
        picture = draw_batch(batch, list("abcde"), columns=3, cell=64)
        assert picture.width == 8 + 3 * (64 + 14)
        assert picture.height > 2 * 64

    def test_feature(self):
        """Pixels come back as they were, with the normalisation undone."""
        image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
        record = Preprocess(None, channel_order="bgr", mean=(0.5,) * 3, std=(0.25,) * 3)
        pictures = [
            draw_batch(Batch(image), cell=32),
            draw_batch(Batch(record.module()(image)), preprocess=record, cell=32),
        ]
        for picture in pictures:
            assert picture.getpixel((8 + 3, 8 + 3)) == tuple(image[0, :, 0, 0].tolist())
            assert picture.getpixel((8 + 3 + 31, 8 + 3 + 31)) == tuple(image[0, :, -1, -1].tolist())

    def test_weights_of_boxes_stand_beside_their_classes(self):
        image, box = torch.zeros(1, 3, 64, 64), torch.tensor([[[2.0, 2.0, 60.0, 60.0]]])

        def draw(name, weight):
            weights = None if weight is None else torch.tensor([[weight]])
            batch = Batch(image, boxes=box, box_label=torch.zeros(1, 1).long(), box_weight=weights)
            return draw_batch(batch, [name], cell=320).tobytes()

        assert draw("cell", 1.0) == draw("cell", None)
        assert draw("cell", 0.25) == draw("cell 0.25", None)

    def test_boxes_masks_and_keypoints_stand_where_they_belong(self):
        mask = torch.zeros(1, 32, 32, dtype=torch.long)
        mask[:, 16:] = 1
        mask[:, :, 28:] = 255
        batch = Batch(
            torch.full((1, 3, 32, 32), 255, dtype=torch.uint8),
            boxes=torch.tensor([[[4.0, 4, 12, 12], [0, 0, 0, 0]]]),
            box_label=torch.tensor([[1, -1]]),
            mask=mask,
            keypoints=torch.tensor([[[20.0, 6.0], [24.0, 6.0]]]),
            keypoint_visible=torch.tensor([[True, False]]),
        )
        picture = draw_batch(batch, ["sky", "road"], cell=320)
        assert picture.height > 320 + 30, "a legend stands below"
        assert draw_batch(batch, legend=False, cell=320).height < picture.height

        def at(x, y):
            return picture.getpixel((8 + 3 + round(x * 10), 8 + 3 + round(y * 10)))

        def blend(k):
            return tuple(round((255 + v) / 2) for v in _colour(k))

        assert at(11.9, 8) == _colour(1), "the right edge of the box"
        assert max(abs(a - b) for a, b in zip(at(16, 8), blend(0), strict=True)) <= 1
        assert max(abs(a - b) for a, b in zip(at(16, 20), blend(1), strict=True)) <= 1
        picture = draw_batch(batch, ["sky", "road"], colours=[(0, 0, 0), (255, 255, 255)], cell=320)
        assert (at(16, 8), at(16, 20)) == ((127, 127, 127), (255, 255, 255)), "colours of one's own"
        assert at(30, 20)[0] == at(30, 20)[1] == at(30, 20)[2], "ignored pixels are grey"
        assert at(20, 6) == (255, 60, 60)
        assert at(24, 6) == at(16, 8), "what is not visible is not drawn"

    @cases(200)
    @given(batches("everything", size=(21, 34)))
    def test_every_batch_is_drawn(self, batch):
        assert draw_batch(batch, cell=48, columns=2, legend=False).width >= 48 * min(len(batch), 2)

    @pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)], ids=str)
    def test_no_keypoints_change_nothing(self, shape):
        batch = Batch(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
        without = batch.replace(keypoints=torch.zeros(1, *shape, 2), keypoint_visible=torch.zeros(1, *shape).long())
        assert draw_batch(without, skeleton=[]).tobytes() == draw_batch(batch).tobytes()

    def test_keypoints_of_instances_with_a_skeleton(self):
        """Visible ones are discs, hidden ones rings, and lines end at what is labelled alone."""
        points = torch.tensor([[[6.0, 6.0], [26, 6], [26, 26], [6, 26]], [[16.0, 12], [16, 20], [0, 0], [0, 0]]])
        batch = Batch(
            torch.full((1, 3, 32, 32), 255, dtype=torch.uint8),
            keypoints=points[None],
            keypoint_visible=torch.tensor([[[2, 1, 0, 2], [2, 2, 0, 0]]]),
        )
        lines = [(0, 1), (1, 2), (0, 3)]
        picture = draw_batch(batch, cell=320, skeleton=lines)

        def at(x, y, of=picture):
            return of.getpixel((8 + 3 + round(x * 10), 8 + 3 + round(y * 10)))

        white = (255, 255, 255)
        assert at(6, 6) != white, "a disc"
        assert at(26, 6) == white, "a ring, whose line ends there"
        assert at(16, 6) != white, "the line between a visible and a hidden one"
        assert at(26, 16) == white, "no line to what is not labelled"
        assert at(26, 26) == white
        assert at(6, 16) != white
        assert at(16, 16) != white, "the second instance"
        assert len({at(6, 6), at(6, 26), at(16, 20)}) == 3, "each keypoint has a colour of its own"
        plain = draw_batch(batch, cell=320)
        assert (at(6, 6, plain), at(16, 6, plain)) == ((255, 60, 60), white)
        with pytest.raises(ValueError, match=r"skeleton has the line \(0, 4\), but there are 4 keypoints"):
            draw_batch(batch, skeleton=[(0, 4)])

    def test_normalised_images_ask_for_their_preprocessing(self):
        record = Preprocess(None, mean=(0.5,) * 3, std=(0.5,) * 3)
        batch = Batch(record.module()(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2)))
        with pytest.warns(UserWarning, match=r"from -1 to 1.*\[0, 1\]; give preprocess"):
            draw_batch(batch)
        draw_batch(batch, preprocess=record)  # warnings are errors here

    def test_background_shows_the_image(self):
        mask = torch.tensor([[[0, 1], [255, 0]]])
        batch = Batch(torch.full((1, 3, 2, 2), 200, dtype=torch.uint8), mask=mask)
        painted, plain = draw_batch(batch, cell=64), draw_batch(batch, cell=64, background=0)
        corners = {k: (11 + 62 * (k % 2), 11 + 62 * (k // 2)) for k in range(4)}
        assert all(painted.getpixel(at) != (200, 200, 200) for at in corners.values())
        assert [k for k, at in corners.items() if plain.getpixel(at) == (200, 200, 200)] == [0, 3]
        assert draw_batch(batch.replace(mask=torch.zeros_like(mask)), cell=64, background=0).height < plain.height

    def test_ignored_boxes_are_grey(self):
        batch = Batch(
            torch.zeros(1, 3, 32, 32),
            boxes=torch.tensor([[[4.0, 4, 28, 28]]]),
            box_label=torch.tensor([[0]]),
            box_ignore=torch.tensor([[True]]),
        )
        assert has(draw_batch(batch), "#969696")

    def test_colours_of_classes_differ(self):
        colours = [_colour(k) for k in range(24)]
        distances = [
            sum(abs(a - b) for a, b in zip(x, y, strict=True)) for i, x in enumerate(colours) for y in colours[:i]
        ]
        assert min(distances) > 30


class TestDrawPredictions:
    def test_wrong_ones_are_marked(self):
        image, probabilities = torch.zeros(2, 3, 32, 32), torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        right = draw_predictions(image, probabilities, torch.tensor([0, 0]))
        mixed = draw_predictions(image, probabilities, torch.tensor([0, 1]), ["cat", "dog"])
        assert has(right, _RIGHT)
        assert not has(right, _WRONG)
        assert has(mixed, _RIGHT)
        assert has(mixed, _WRONG)
        unknown = draw_predictions(image, probabilities)
        assert not has(unknown, _RIGHT)
        assert not has(unknown, _WRONG)

    def test_exception(self):
        with pytest.raises(ValueError, match="2 images, 1 predictions"):
            draw_predictions(torch.zeros(2, 3, 8, 8), torch.ones(1, 2), torch.zeros(2))
