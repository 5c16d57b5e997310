"""Samples and batches as other libraries give them, against those with the fields of a batch."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, FakeData, VOCSegmentation, wrap_dataset_for_transforms_v2
from torchvision.transforms.v2.functional import pil_to_tensor, to_image

from kornia_mvit import AugmentationPipeline, Batch

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=GENERATOR).numpy()
IMAGE = torch.from_numpy(PIXELS).permute(2, 0, 1).contiguous()
PICTURE = Image.fromarray(PIXELS)
CLASSES = torch.randint(0, 5, (40, 60), dtype=torch.uint8, generator=GENERATOR)
CORNERS = [[10.0, 4, 30, 12], [0.0, 0, 5, 7]]
SIDES = [[10.0, 4, 20, 8], [0.0, 0, 5, 7]]
NOTES = [
    {"bbox": box, "category_id": k, "iscrowd": k - 2, "area": 9, "id": k, "segmentation": [[1, 2]]}
    for box, k in zip(SIDES, (2, 3), strict=True)
]


def same(batch, other):
    """Whether two batches have the same fields."""
    for name, value in vars(batch).items():
        expected = getattr(other, name)
        equal = torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected
        assert equal, f"{name}: {value} is not {expected}"
        if isinstance(value, torch.Tensor):
            assert type(value) is torch.Tensor
    return True


class TestSamples:
    @pytest.mark.parametrize(
        ("image", "shape"),
        [
            (IMAGE, (3, 40, 60)),
            (PICTURE, (3, 40, 60)),
            (PIXELS, (3, 40, 60)),
            (PIXELS.transpose(2, 0, 1), (3, 40, 60)),
            (PIXELS[:, :, :1], (1, 40, 60)),
            (np.zeros((7, 40, 60), np.float32), (7, 40, 60)),
            (tv_tensors.Image(IMAGE), (3, 40, 60)),
            (PICTURE.convert("L"), (3, 40, 60)),
        ],
    )
    def test_images(self, image, shape):
        for sample in (image, (image,), [image, 3], {"image": image}, {"img": image, "label": 3}):
            assert Batch.collate([sample]).image.shape == (1, *shape)
        if shape == (3, 40, 60) and getattr(image, "mode", "RGB") == "RGB":
            assert torch.equal(Batch.collate([image]).image[0], IMAGE)

    @pytest.mark.parametrize("label", [3, torch.tensor(3), np.int64(3), torch.tensor(3, dtype=torch.uint8)])
    def test_classes(self, label):
        for sample in ((PICTURE, label), {"image": PICTURE, "label": label}, {"image": PICTURE, "labels": label}):
            assert Batch.collate([sample, sample]).label.tolist() == [3, 3]
        assert Batch.collate([(IMAGE, torch.tensor([0.25, 0.75]))]).label.tolist() == [[0.25, 0.75]]

    @pytest.mark.parametrize(
        "mask",
        [
            CLASSES,
            CLASSES[None],
            CLASSES.numpy(),
            tv_tensors.Mask(CLASSES),
            Image.fromarray(CLASSES.numpy()),
            Image.fromarray(CLASSES.numpy().astype(np.int32)),
            Image.fromarray(CLASSES.numpy().astype(np.uint16)),
        ],
    )
    def test_masks(self, mask):
        for sample in ((PICTURE, mask), {"image": IMAGE, "label": mask}, {"image": IMAGE, "annotation": mask}):
            batch = Batch.collate([sample])
            assert batch.label is None
            assert torch.equal(batch.mask[0].long(), CLASSES.long())

    def test_masks_of_palettes_and_bits(self):
        palette = Image.fromarray(CLASSES.numpy()).convert("P")
        palette.putdata(CLASSES.flatten().tolist())
        assert torch.equal(Batch.collate([(PICTURE, palette)]).mask[0], CLASSES)
        bits = Image.fromarray((CLASSES == 1).numpy())
        assert torch.equal(Batch.collate([(PICTURE, bits)]).mask[0].bool(), CLASSES == 1)

    @pytest.mark.parametrize("form", ["XYXY", "XYWH", "CXCYWH", None])
    def test_detection_of_torchvision(self, form):
        rows = {"XYWH": SIDES, "CXCYWH": [[20.0, 8, 20, 8], [2.5, 3.5, 5, 7]]}.get(form, CORNERS)
        boxes = torch.tensor(rows)
        if form is not None:
            boxes = tv_tensors.BoundingBoxes(boxes, format=form, canvas_size=(40, 60))
        target = {"boxes": boxes, "labels": torch.tensor([2, 3]), "iscrowd": torch.tensor([0, 1])}
        target |= {"image_id": torch.tensor([9]), "area": torch.tensor([160.0, 35])}
        expected = {"image": IMAGE, "boxes": CORNERS, "box_label": [2, 3], "box_ignore": [0, 1]}
        assert same(Batch.collate([(PICTURE, target)]), Batch.collate([expected | {"meta": {"image_id": 9}}]))
        masks = torch.rand(2, 40, 60) < 0.5
        for given in (masks, masks.to(torch.uint8), tv_tensors.Mask(masks), list(masks.numpy()), masks.long()):
            batch = Batch.collate([(IMAGE, target | {"masks": given})])
            assert batch.mask is None and batch.boxes.tolist() == [CORNERS]
            assert batch.instance_masks.bool().equal(masks[None])

    @pytest.mark.parametrize(
        "sample",
        [
            (PICTURE, NOTES),
            (PICTURE, {"annotations": NOTES}),
            {"image": PICTURE, "objects": {"bbox": SIDES, "category": [2, 3], "iscrowd": [0, 1], "area": [9, 9]}},
            {"image": PICTURE, "objects": NOTES, "width": 60, "height": 40},
        ],
    )
    def test_annotations_of_coco_and_rows_of_hugging_face(self, sample):
        batch = Batch.collate([sample])
        assert batch.boxes.tolist() == [CORNERS]
        assert batch.box_label.tolist() == [[2, 3]]
        assert batch.box_ignore.tolist() == [[False, True]]
        if isinstance(sample, tuple):
            both = Batch.collate([sample, (torch.zeros(3, 50, 50, dtype=torch.uint8), [])])
            assert both.box_label.tolist() == [[2, 3], [-1, -1]]
            assert both.size.tolist() == [[40, 60], [50, 50]]

    def test_what_names_an_image_is_kept(self):
        row = {"image": PICTURE, "label": 1, "image_id": torch.tensor(5), "file_name": "a.png", "photographer": "me"}
        meta = {"image_id": 5, "file_name": "a.png", "photographer": "me"}
        assert Batch.collate([row]).meta == [meta]
        assert Batch.collate([row | {"meta": {"day": 1}}]).meta == [meta | {"day": 1}]

    def test_pictures_are_turned_where_no_target_may_be_of_the_other(self):
        turned = PICTURE.copy()
        turned.getexif()[274] = 6
        assert torch.equal(Batch.collate([(turned, 0)]).image[0], IMAGE.rot90(-1, (1, 2)))
        for target in (Image.fromarray(CLASSES.numpy()), NOTES):
            with pytest.raises(ValueError, match=r"orientation is 6.*exif_transpose"):
                Batch.collate([(turned, target)])

    @pytest.mark.parametrize(
        ("sample", "error", "message"),
        [
            (5, TypeError, r"int.*pair \(image, label\)"),
            ("a.png", TypeError, r"str.*\(image, label\)"),
            ((IMAGE, 1, 2), TypeError, r"tuple of Tensor \(3, 40, 60\), int, int"),
            ((1, IMAGE), TypeError, r"tuple of int, Tensor.*\(image, label\)"),
            ((IMAGE, "cat"), TypeError, "'cat'.*number"),
            ((IMAGE, None), TypeError, "NoneType"),
            ((IMAGE, ["a caption"]), TypeError, "label is a list"),
            ((IMAGE, {"annotation": {"object": []}}), TypeError, "VOC.*numbers.*VOCData"),
            ((IMAGE, {"image": IMAGE}), ValueError, "image of its own"),
            ({"image": IMAGE, "label": 1, "labels": 2}, ValueError, "label is given twice"),
            ({"image": IMAGE, "labels": "cat"}, TypeError, "'cat'"),
            ({"image": IMAGE, "size": "large"}, TypeError, "size is a str"),
            (PIXELS[:3], ValueError, r"array \(3, 60, 3\).*first or last"),
            (PIXELS[:2], ValueError, r"array \(2, 60, 3\).*first or last"),
            ({"image": IMAGE, "bbox": SIDES}, ValueError, "no field bbox.*meta"),
            ({"image": IMAGE, "boxes": CORNERS, "labels": [0, 1], "difficult": [0, 1]}, ValueError, "difficult"),
            ({"image": IMAGE, "objects": {"bbox": SIDES}}, ValueError, "objects has bbox.*category"),
            ({"image": IMAGE, "objects": [1]}, TypeError, "objects is a list of int"),
            ((IMAGE, [{"bbox": [1, 2, 3], "category_id": 1}]), ValueError, r"bbox.*\(1, 3\)"),
            ((IMAGE, [{"category_id": 1}]), ValueError, "annotations has category_id.*bbox"),
            ((IMAGE, [{"bbox": [1, 2, 3, 4], "category_id": "cat"}]), TypeError, "box_label"),
            ({"image": IMAGE, "objects": NOTES, "width": 600, "height": 400}, ValueError, "400x600.*40x60"),
        ],
    )
    def test_exception(self, sample, error, message):
        with pytest.raises(error, match=message):
            Batch.collate([sample])

    def test_samples_of_several_forms_have_one_set_of_fields(self):
        with pytest.raises(ValueError, match="sample 1 has the fields"):
            Batch.collate([IMAGE, (IMAGE, 1)])
        assert Batch.collate([(IMAGE, 1), {"image": PICTURE, "label": 2}]).label.tolist() == [1, 2]


class TestDatasetsOfTorchvision:
    def test_classes(self):
        data = FakeData(5, (3, 8, 9), 4)
        batch = next(iter(DataLoader(data, 5, collate_fn=Batch.collate)))
        assert batch.label.tolist() == [int(label) for _, label in data]
        assert torch.equal(batch.image[2], pil_to_tensor(data[2][0]))

    def test_segmentation(self, tmp_path):
        base = tmp_path / "VOCdevkit" / "VOC2012"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (base / folder).mkdir(parents=True)
        (base / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
        for name, size in (("a", (60, 40)), ("b", (30, 50))):
            PICTURE.resize(size).save(base / "JPEGImages" / f"{name}.jpg")
            Image.fromarray(CLASSES.numpy()).resize(size, 0).convert("P").save(
                base / "SegmentationClass" / f"{name}.png"
            )
        data = VOCSegmentation(str(tmp_path), image_set="train")
        batch = Batch.collate([data[0], data[1]])
        for row, (image, mask) in enumerate(data):
            height, width = image.height, image.width
            assert torch.equal(batch.image[row, :, :height, :width], pil_to_tensor(image))
            assert torch.equal(batch.mask[row, :height, :width], pil_to_tensor(mask)[0])
        assert (batch.mask[1, :, 30:] == 255).all()
        wrapped = wrap_dataset_for_transforms_v2(data)
        assert same(Batch.collate([wrapped[0], wrapped[1]]), batch)

    def test_coco(self, tmp_path):
        PICTURE.save(tmp_path / "a.png")
        PICTURE.save(tmp_path / "b.png")
        images = [{"id": i, "file_name": f"{name}.png", "height": 40, "width": 60} for i, name in enumerate("ab")]
        notes = [note | {"image_id": 0, "id": k, "segmentation": [[0, 0, 5, 0, 5, 5]]} for k, note in enumerate(NOTES)]
        categories = [{"id": k, "name": str(k)} for k in (2, 3)]
        told = {"images": images, "annotations": notes, "categories": categories}
        (tmp_path / "notes.json").write_text(json.dumps(told))
        data = CocoDetection(str(tmp_path), str(tmp_path / "notes.json"))
        batch = Batch.collate([data[0], data[1]])
        assert batch.boxes.tolist() == [CORNERS, [[0.0] * 4] * 2]
        assert batch.box_label.tolist() == [[2, 3], [-1, -1]]
        wrapped = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels", "image_id"))
        again = Batch.collate([wrapped[0]])
        assert again.boxes.tolist() == [CORNERS]
        assert again.meta == [{"image_id": 0}]


IMAGES = torch.rand(3, 3, 8, 9)
LABELS = torch.tensor([0, 1, 2])
MASKS = torch.randint(0, 3, (3, 8, 9))
BOXES = [{"boxes": torch.tensor([[1.0, 2, 3, 4]]), "labels": torch.tensor([k])} for k in range(3)]
DETECTION = Batch.collate([(image, target) for image, target in zip(IMAGES, BOXES, strict=True)])


class TestRead:
    @pytest.mark.parametrize(
        ("loaded", "expected"),
        [
            (IMAGES, Batch(IMAGES)),
            ([IMAGES], Batch(IMAGES)),
            ([IMAGES, LABELS], Batch(IMAGES, LABELS)),
            ((IMAGES, LABELS), Batch(IMAGES, LABELS)),
            ([IMAGES, torch.eye(3)], Batch(IMAGES, torch.eye(3))),
            ([IMAGES, MASKS], Batch(IMAGES, mask=MASKS)),
            ([IMAGES, MASKS[:, None]], Batch(IMAGES, mask=MASKS)),
            ({"image": IMAGES, "label": LABELS}, Batch(IMAGES, LABELS)),
            ({"img": IMAGES, "labels": LABELS}, Batch(IMAGES, LABELS)),
            (default_collate(list(zip(IMAGES, BOXES, strict=True))), DETECTION),
            (tuple(zip(*zip(IMAGES, BOXES, strict=True), strict=True)), DETECTION),
            ([IMAGES, BOXES], DETECTION),
            (list(zip(IMAGES, BOXES, strict=True)), DETECTION),
            ((tuple(IMAGES), LABELS.tolist()), Batch(IMAGES, LABELS)),
            ((tuple(IMAGES[:2]), tuple(MASKS[:2])), Batch(IMAGES[:2], mask=MASKS[:2])),
            ([(IMAGES[0], 0), (IMAGES[1], 1)], Batch(IMAGES[:2], LABELS[:2])),
            (list(IMAGES), Batch(IMAGES)),
        ],
    )
    def test_smoke(self, loaded, expected):
        assert same(Batch.read(loaded), expected)
        if not isinstance(loaded, torch.Tensor):
            assert same(AugmentationPipeline().eval()(loaded), AugmentationPipeline().eval()(expected))

    def test_a_batch_stays(self):
        batch = Batch(IMAGES)
        assert Batch.read(batch) is batch

    def test_strings_beside_stacked_images_are_kept(self):
        batch = Batch.read(default_collate([{"image": image, "file_name": "a.png"} for image in IMAGES]))
        assert batch.meta == [{"file_name": "a.png"}] * 3

    @pytest.mark.parametrize(
        ("loaded", "error", "message"),
        [
            (5, TypeError, r"int.*collate_fn=Batch\.collate"),
            ([], TypeError, "list of nothing"),
            ({"pixels": IMAGES}, TypeError, r"dict of pixels.*Batch\.collate"),
            (IMAGES[0], TypeError, r"Tensor \(3, 8, 9\)"),
            (to_image(PICTURE), TypeError, "Image"),
            ([LABELS, IMAGES], TypeError, r"list of Tensor \(3,\)"),
            ([IMAGES, LABELS, LABELS], TypeError, "list of Tensor"),
            ([IMAGES, LABELS[:2]], ValueError, "3 images, but label has 2"),
            ([IMAGES, LABELS.float()], ValueError, "float32"),
            ([IMAGES * 2 - 1, LABELS], ValueError, "undo the normalisation"),
            ([IMAGES.permute(0, 2, 3, 1), LABELS], ValueError, "channels last"),
            ({"image": IMAGES, "objects": {"bbox": [LABELS]}}, TypeError, r"objects.*Batch\.collate"),
            ({"image": IMAGES, "label": [LABELS] * 2}, TypeError, r"label.*Batch\.collate"),
            ((tuple(IMAGES), tuple(IMAGES)), TypeError, r"tuple of tuple, tuple"),
        ],
    )
    def test_exception(self, loaded, error, message):
        with pytest.raises(error, match=message):
            Batch.read(loaded)

    def test_a_pair_of_stacked_images_and_labels_shares_their_memory(self):
        assert Batch.read([IMAGES, LABELS]).image.data_ptr() == IMAGES.data_ptr()
