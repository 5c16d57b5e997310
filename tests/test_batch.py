"""Batch: images and their targets."""

import pickle
from dataclasses import fields

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import AugmentationPipeline, Batch, Extra, Preprocess
from kornia_mvit.batch import replace_checked
from kornia_mvit.testing.strategies import batches


def samples(count=3):
    return [
        {"image": torch.full((3, 4, 5), i, dtype=torch.uint8), "label": i, "meta": {"path": f"{i}.png"}}
        for i in range(count)
    ]


def everything(seed, count=3):
    """Samples with every field, of several sizes and numbers of objects, none included."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    out = []
    for i in range(count):
        h, w, n, m = draw(4, 9), draw(4, 9), draw(0, 3), draw(0, 2)
        out.append(
            {
                "image": torch.rand(3, h, w, generator=generator),
                "label": i,
                "boxes": torch.rand(n, 4, generator=generator).cumsum(1) * 0.5 + 1.1 if n else [],
                "box_label": list(range(n)),
                "box_ignore": [k == 1 for k in range(n)],
                "box_index": list(range(n)),
                "instance_masks": torch.rand(n, h, w, generator=generator) < 0.5,
                "fields": {"track": [7 * k for k in range(n)], "pair": [[k / 2, k] for k in range(n)]},
                "mask": torch.randint(0, 5, (h, w), generator=generator),
                "keypoints": torch.rand(m, 2, generator=generator) * 2.5 + 1.1 if m else [],
                "keypoint_visible": [True] * m,
                "size": torch.tensor([h, w]),
                "original_size": torch.tensor([2 * h, 2 * w]),
                "meta": {"id": i},
            }
        )
    return out


def plain(one):
    return one.tensor if isinstance(one, Extra) else one


class TestBatch:
    def test_smoke(self):
        batch = Batch.collate(samples())
        assert len(batch) == 3
        assert batch.image.shape == (3, 3, 4, 5)
        assert torch.equal(batch.label, torch.arange(3))
        assert batch.meta == [{"path": "0.png"}, {"path": "1.png"}, {"path": "2.png"}]

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"image": torch.zeros(3, 4, 4)}, ValueError, "expected images of shape (B, C, H, W), got (3, 4, 4)"),
            ({"image": torch.zeros(1, 3, 4, 4, dtype=torch.int64)}, TypeError, "got torch.int64"),
            ({"label": torch.zeros(3, dtype=torch.long)}, ValueError, "2 images, but label has 3 entries"),
            ({"meta": [{}]}, ValueError, "2 images, but meta has 1 entries"),
            ({"label": torch.zeros(2)}, ValueError, "integer labels of shape (B,) or soft ones (B, K)"),
            ({"label": torch.zeros(2, 1, dtype=torch.long)}, ValueError, "got torch.int64 (2, 1)"),
        ],
    )
    def test_exception(self, arguments, error, message):
        with pytest.raises(error) as raised:
            Batch(**{"image": torch.zeros(2, 3, 4, 4), **arguments})
        assert message in str(raised.value)

    def test_prints_shapes_alone(self):
        batch = Batch(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), mask=torch.zeros(2, 4, 5, dtype=torch.long))
        assert repr(batch) == "Batch(image=(2, 3, 4, 5) uint8, mask=(2, 4, 5) int64)"

    def test_exception_of_collate(self):
        a, b, c = samples()
        with pytest.raises(ValueError, match="no samples"):
            Batch.collate([])
        with pytest.raises(ValueError, match="sample 1 has the fields"):
            Batch.collate([a, {"image": b["image"]}])
        with pytest.raises(ValueError, match=r"dtypes.*channels"):
            Batch.collate([a, {**b, "image": b["image"][:2]}])
        with pytest.raises(ValueError, match="NaN"):
            Batch.collate([{**c, "image": torch.full((3, 4, 5), torch.nan)}])
        with pytest.raises(ValueError, match="values from 0 to 2"):
            Batch.collate([{**c, "image": torch.tensor([0.0, 2.0, 1.0]).view(3, 1, 1)}])

    def test_absent_fields_stay_absent(self):
        batch = Batch.collate([{"image": torch.rand(3, 4, 4)}] * 2)
        assert batch.label is None
        assert batch.meta is None
        assert batch[:1].label is None
        assert batch.to("cpu").meta is None
        assert batch.sample(0).keys() == {"image"}

    def test_moves_to_a_device(self, device):
        batch = Batch.collate(samples()).to(device)
        assert batch.image.device.type == batch.label.device.type == device.type
        assert Batch.collate(samples()).to("meta").image.is_meta

    def test_other_rows_have_no_numbers(self):
        """Of boxes or keypoints that take the place of what a pipeline gave."""
        batch = Batch(
            torch.rand(2, 3, 8, 8),
            boxes=torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(2, 3, 4),
            box_label=torch.zeros(2, 3, dtype=torch.int64),
            box_index=torch.arange(3).expand(2, 3),
            keypoints=torch.rand(2, 5, 2) * 8,
            keypoint_visible=torch.ones(2, 5, dtype=torch.bool),
            keypoint_index=torch.arange(5).expand(2, 5),
        )
        moved = batch.replace(boxes=batch.boxes + 1, keypoints=batch.keypoints + 1)
        assert moved.box_index is batch.box_index
        assert moved.keypoint_index is batch.keypoint_index
        fewer = batch.replace(boxes=batch.boxes[:, :2], box_label=batch.box_label[:, :2])
        assert fewer.box_index is None
        assert fewer.keypoint_index is batch.keypoint_index
        assert batch.replace(keypoints=None, keypoint_visible=None).keypoint_index is None
        for name in ("boxes", "keypoints"):
            for wrong in ([[1, 2, 3, 4]], 3, "word"):
                with pytest.raises(TypeError, match=name):
                    batch.replace(**{name: wrong})

    def test_fields_go_wherever_the_batch_goes(self, device):
        batch = Batch.collate(everything(3), ignore_index=7)
        sent = batch.to(device)
        assert {value.device.type for value in (*sent.fields.values(), sent.instance_masks)} == {device.type}
        again = pickle.loads(pickle.dumps(batch))
        assert again.fields["track"].equal(batch.fields["track"])
        part = batch[[2, 0]]
        assert part.fields["track"].equal(batch.fields["track"][[2, 0]])
        assert part.instance_masks.equal(batch.instance_masks[[2, 0]])
        assert batch.replace(fields=None).fields is None
        assert "fields={track: (3, " in repr(batch)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"fields": [1]}, TypeError, "fields is not a dictionary of tensors"),
            ({"fields": {"track": [1, 2]}}, TypeError, r"fields\['track'\] is a list, not a torch.Tensor"),
            ({"fields": {"track": torch.zeros(2, 3)}}, ValueError, r"boxes are \(2, 2, 4\), but fields\['track'\] is"),
            ({"fields": {"track": torch.zeros(3, 2)}}, ValueError, r"2 images, but fields\['track'\] has 3 entries"),
            ({"fields": {"track": torch.zeros(())}}, ValueError, r"fields\['track'\] is a single number"),
            ({"boxes": None, "box_label": None, "fields": {"a": torch.zeros(2, 2)}}, ValueError, "without boxes"),
            ({"instance_masks": torch.zeros(2, 2, 9, 8) > 0}, ValueError, r"\(B, N, H, W\) as the images"),
            ({"instance_masks": torch.zeros(2, 3, 8, 9) > 0}, ValueError, r"but instance_masks is \(2, 3, 8, 9\)"),
            ({"instance_masks": torch.zeros(2, 2, 8, 9)}, TypeError, "bool, or uint8 of 0 and 1, got torch.float32"),
            (
                {"instance_masks": torch.full((2, 2, 8, 9), 255, dtype=torch.uint8)},
                ValueError,
                "instance_masks has 255; .* give masks > 0",
            ),
            ({"box_index": torch.zeros(2, 3).long()}, ValueError, r"but box_index is \(2, 3\)"),
            ({"box_index": torch.zeros(2, 2)}, TypeError, "expected box_index to be of an integer dtype"),
            ({"keypoint_index": torch.zeros(2, 2).long()}, ValueError, "keypoint_index is given without keypoints"),
        ],
    )
    def test_exception_of_what_goes_with_boxes(self, changes, error, message):
        boxes = {"boxes": torch.tensor([1.0, 2, 3, 4]).expand(2, 2, 4), "box_label": torch.zeros(2, 2).long()}
        with pytest.raises(error, match=message):
            Batch(torch.zeros(2, 3, 8, 9), **(boxes | changes))

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            ([{"a": [1]}, {"b": [1]}], ValueError, "fields differ in their names: a or b"),
            ([{"a": [1, 2]}, {"a": [1]}], ValueError, r"sample 0: 1 boxes, but fields\['a'\] has 2 entries"),
            ([{"a": [1]}, {"a": [0.5]}], ValueError, r"fields\['a'\] differ in dtype"),
            ([{"a": ["x"]}, {"a": ["y"]}], TypeError, "put texts into meta"),
            ([5, 5], TypeError, "fields is a int, not a dictionary"),
        ],
    )
    def test_exception_of_collated_fields(self, fields, error, message):
        boxes = {"image": torch.zeros(3, 8, 9), "boxes": [[1, 2, 3, 4]], "box_label": [0]}
        with pytest.raises(error, match=message):
            Batch.collate([boxes | {"fields": one} for one in fields])

    def test_refuses_a_single_number(self):
        with pytest.raises(TypeError, match=r"write batch.sample\(1\)"):
            Batch.collate(samples())[1]

    @given(
        count=st.integers(1, 6),
        data=st.data(),
    )
    def test_indexing_is_that_of_a_list(self, count, data):
        batch = Batch.collate(samples(count))
        everything = list(range(count))
        rows = data.draw(st.lists(st.sampled_from(everything), max_size=5), label="rows")
        cut = slice(data.draw(st.integers(-7, 7)), data.draw(st.integers(-7, 7)))
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count), label="mask"))
        for index, expected in (
            (rows, rows),
            (torch.tensor(rows, dtype=torch.long), rows),
            (cut, everything[cut]),
            (mask, [i for i in everything if mask[i]]),
        ):
            part = batch[index]
            assert part.label.tolist() == expected
            assert part.image[:, 0, 0, 0].tolist() == expected
            assert [entry["path"] for entry in part.meta] == [f"{i}.png" for i in expected]

    @pytest.mark.parametrize("others", [0, 1])
    def test_images_keep_their_memory_format(self, others):
        """Those whose pixels have their values together, as decoders give them; among others all are laid out anew."""
        images = [torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8).permute(2, 0, 1) for _ in range(3)]
        images[:others] = [image.contiguous() for image in images[:others]]
        batch = Batch.collate([{"image": image} for image in images])
        assert batch.image.is_contiguous(memory_format=torch.contiguous_format if others else torch.channels_last)
        assert torch.equal(batch.image, torch.stack([image.contiguous() for image in images]))

    @pytest.mark.filterwarnings("ignore:all keypoints of a batch lie within")  # which drawn ones do by chance
    @given(batch=batches("everything", meta=True))
    def test_collate_undoes_sample(self, batch):
        again = Batch.collate([batch.sample(i) for i in range(len(batch))])
        for field in fields(Batch):
            value, other = getattr(batch, field.name), getattr(again, field.name)
            if isinstance(value, torch.Tensor):
                assert value.dtype == other.dtype
                assert torch.equal(value, other), field.name
            elif isinstance(value, dict):
                assert value.keys() == other.keys()
                assert all(torch.equal(plain(one), plain(other[name])) for name, one in value.items())
            else:
                assert value == other, field.name

    @given(seed=st.integers(0, 2**16), count=st.integers(1, 4))
    def test_every_field_survives_collate(self, seed, count):
        """Cut to its own size and number of objects, each sample comes back; the rest is padding."""
        given_out = everything(seed, count)
        batch = Batch.collate(given_out, ignore_index=7)
        for i, sample in enumerate(given_out):
            h, w = sample["image"].shape[1:]
            assert torch.equal(batch.image[i, :, :h, :w], sample["image"])
            assert batch.image[i, :, h:].sum() == batch.image[i, :, :, w:].sum() == 0
            assert torch.equal(batch.mask[i, :h, :w], sample["mask"])
            assert bool((batch.mask[i, h:] == 7).all())
            assert bool((batch.mask[i, :, w:] == 7).all())
            n = len(sample["box_label"])
            assert batch.box_label[i].tolist() == [*range(n), *[-1] * (batch.boxes.shape[1] - n)]
            assert torch.equal(batch.boxes[i, :n], torch.as_tensor(sample["boxes"]).reshape(-1, 4).float())
            assert batch.box_ignore[i, :n].tolist() == sample["box_ignore"]
            assert not batch.box_ignore[i, n:].any()
            assert batch.box_index[i].tolist() == batch.box_label[i].tolist()
            assert torch.equal(batch.instance_masks[i, :n, :h, :w], sample["instance_masks"])
            assert int(batch.instance_masks[i].sum()) == int(sample["instance_masks"].sum())
            assert batch.fields["track"][i, :n].tolist() == sample["fields"]["track"]
            assert batch.fields["pair"][i, :n].tolist() == sample["fields"]["pair"]
            assert not batch.fields["pair"][i, n:].any()
            assert int(batch.keypoint_visible[i].sum()) == len(sample["keypoints"])
            assert batch.size[i].tolist() == [h, w]
            assert batch.original_size[i].tolist() == [2 * h, 2 * w]
        part = batch[::2]
        for name in ("boxes", "box_label", "box_ignore", "mask", "keypoints", "keypoint_visible", "size"):
            assert torch.equal(getattr(part, name), getattr(batch, name)[::2])
        moved = batch.to("meta")
        assert all(getattr(moved, name).is_meta for name in ("boxes", "mask", "keypoints", "size", "original_size"))

    def test_size_is_set_where_images_differ(self):
        even = Batch.collate([{"image": torch.rand(3, 4, 5)}] * 2)
        odd = Batch.collate([{"image": torch.rand(3, 4, 5)}, {"image": torch.rand(3, 6, 3)}])
        assert even.size is None
        assert odd.size.tolist() == [[4, 5], [6, 3]]
        assert odd.image.shape == (2, 3, 6, 5)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"boxes": torch.zeros(2, 1, 4)}, ValueError, "boxes come with box_label of shape (B, N); it is missing"),
            ({"keypoints": torch.zeros(2, 1, 2)}, ValueError, "keypoints come with keypoint_visible"),
            ({"box_label": torch.zeros(2, 1, dtype=torch.long)}, ValueError, "box_label is given without boxes"),
            ({"boxes": torch.zeros(2, 4)}, ValueError, "expected boxes of shape (B, N, 4), got (2, 4)"),
            ({"boxes": torch.zeros(2, 1, 4, dtype=torch.long)}, TypeError, "expected floating-point boxes"),
            (
                {"boxes": torch.zeros(2, 1, 4), "box_label": torch.zeros(2, 2, dtype=torch.long)},
                ValueError,
                "boxes are (2, 1, 4), but box_label is (2, 2)",
            ),
            (
                {"boxes": torch.zeros(2, 1, 4), "box_label": torch.zeros(2, 1)},
                TypeError,
                "expected box_label to be of an",
            ),
            ({"mask": torch.zeros(2, 4, 4)}, TypeError, "expected mask to be of an integer dtype, got torch.float32"),
            ({"mask": torch.zeros(2, 3, 4, dtype=torch.long)}, ValueError, "expected masks of shape (B, H, W)"),
            ({"size": torch.zeros(2, 3, dtype=torch.long)}, ValueError, "expected size of shape (B, 2)"),
            ({"size": torch.zeros(2, 2)}, TypeError, "expected size to be of an integer dtype"),
            ({"mask": torch.zeros(2, 4, 4, dtype=torch.uint64)}, TypeError, "got torch.uint64"),
            ({"size": torch.tensor([[4, 4], [4, 5]])}, ValueError, "size goes from 4x4 to 4x5, but the canvas is 4x4"),
            ({"size": torch.tensor([[4, 4], [0, 4]])}, ValueError, "size goes from 0x4"),
            ({"original_size": torch.tensor([[4, 4], [-1, 4]])}, ValueError, "original_size goes from -1x4"),
            ({"label": torch.full((2, 3), torch.nan)}, ValueError, "label has NaN"),
            ({"label": [0, 1]}, TypeError, "label is a list"),
            ({"label": torch.tensor(1)}, ValueError, "label is a single number"),
            ({"image": numpy.zeros((2, 3, 4, 4))}, TypeError, "image is a numpy.ndarray"),
            ({"image": torch.zeros(2, 40, 60, 3, dtype=torch.uint8)}, ValueError, "image.permute(0, 3, 1, 2)"),
            ({"image": torch.zeros(2, 3, 0, 4)}, ValueError, "no pixels"),
            ({"image": torch.zeros(2, 3, 4, 4).to(torch.float8_e4m3fn)}, TypeError, "got torch.float8_e4m3fn"),
            ({"image": torch.zeros(2, 3, 4, 4).to_sparse()}, TypeError, "image is a sparse"),
            ({"meta": ["a", "b"]}, TypeError, "meta is not a list of dictionaries"),
        ],
    )
    def test_exception_of_targets(self, arguments, error, message):
        with pytest.raises(error) as raised:
            Batch(**{"image": torch.zeros(2, 3, 4, 4), **arguments})
        assert message in str(raised.value)

    @pytest.mark.parametrize(
        ("box", "message"),
        [
            ((30, 20, 10, 10), "boxes[1, 0] is (30, 20, 10, 10), which ends before it starts"),
            ((1, 5, 3, 4), "ends before it starts"),
            ((1, 2, torch.nan, 4), "boxes[1, 0] is (1, 2, nan, 4), which is not finite"),
            ((-torch.inf, 2, 3, 4), "not finite"),
        ],
    )
    def test_boxes_are_corners(self, box, message):
        boxes = torch.tensor([[[0, 0, 1, 1]], [box]], dtype=torch.float32)
        image = torch.zeros(2, 3, 4, 4)
        with pytest.raises(ValueError) as raised:
            Batch(image, boxes=boxes, box_label=torch.zeros(2, 1, dtype=torch.long))
        assert message in str(raised.value)
        with pytest.raises(ValueError) as raised:
            Batch.collate([{"image": image[0], "boxes": [box], "box_label": [0]}])
        assert message.replace("[1, 0]", "[0, 0]") in str(raised.value)
        assert Batch(image, boxes=boxes, box_label=torch.tensor([[0], [-1]])).box_label.tolist() == [[0], [-1]]

    def test_boxes_without_area_are_taken(self):
        """Annotations have some; a pipeline drops them."""
        boxes = torch.tensor([[[1.0, 2, 1, 4], [0, 0, 3, 3]]])
        batch = Batch(torch.rand(1, 3, 4, 4), boxes=boxes, box_label=torch.tensor([[0, 1]]))
        assert AugmentationPipeline(min_box_area=0.0)(batch).box_label.tolist() == [[1, -1]]

    def test_classes_of_boxes_and_visible_keypoints_are_numbers(self):
        image, boxes = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4)
        with pytest.raises(ValueError, match="box_label has -2"):
            Batch(image, boxes=boxes, box_label=torch.tensor([[-2]]))
        points = torch.tensor([[[torch.nan, 1.0]]])
        with pytest.raises(ValueError, match=r"keypoints\[0, 0\] is not finite"):
            Batch(image, keypoints=points, keypoint_visible=torch.tensor([[True]]))
        Batch(image, keypoints=points, keypoint_visible=torch.tensor([[False]]))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32])
    def test_integers_that_cannot_hold_padding_become_wider(self, dtype):
        one = torch.ones(1, 1, dtype=dtype)
        batch = Batch(torch.zeros(1, 3, 4, 4), one[0], boxes=torch.zeros(1, 1, 4), box_label=one, size=one.repeat(1, 2))
        assert batch.box_label.dtype == batch.size.dtype == torch.int64
        assert batch.label.dtype == torch.int64

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_coordinates_have_single_precision(self, dtype):
        """A canvas of 4,000 pixels has more places than half precision has numbers."""
        boxes, points = torch.tensor([[[0.0, 0, 4, 2]]], dtype=dtype), torch.tensor([[[4.0, 2]]], dtype=dtype)
        more = {"keypoints": points, "keypoint_visible": torch.tensor([[True]])}
        batch = Batch(torch.zeros(1, 1, 2, 4), boxes=boxes, box_label=torch.tensor([[0]]), **more)
        out = AugmentationPipeline(preprocess=Preprocess((2, 4001))).eval()(batch)
        assert out.boxes.tolist() == [[[0.0, 0.0, 4001.0, 2.0]]]
        assert out.keypoints.tolist() == [[[4001.0, 2.0]]]

    def test_exception_of_unknown_fields(self):
        with pytest.raises(ValueError, match="bbox; it has image, label, boxes"):
            Batch.collate([{"image": torch.rand(3, 4, 4), "bbox": []}])


class TestReplaceChecked:
    def test_values_are_taken_shapes_are_checked(self):
        batch = Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))
        out = replace_checked(batch, image=torch.ones(2, 3, 4, 4))
        assert out.image.shape == (2, 3, 4, 4) and out.label is batch.label and batch.image.shape == (2, 3, 8, 8)
        with pytest.raises(ValueError, match="label"):
            replace_checked(batch, label=torch.zeros(3, dtype=torch.int64))

    def test_a_subclass_is_made_by_its_constructor(self):
        class Strict(Batch):
            def __post_init__(self):
                super().__post_init__()
                if self.image.shape[-1] < 8:
                    raise ValueError("narrow")

        with pytest.raises(ValueError, match="narrow"):
            replace_checked(Strict(torch.zeros(2, 3, 8, 8)), image=torch.ones(2, 3, 4, 4))
