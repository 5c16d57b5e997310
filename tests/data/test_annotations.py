"""Readers of boxes: what they give, what they refuse, and that what was written comes back."""

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kornia_mvit.data.boxes import build_table, collect_rows
from kornia_mvit.data.formats import read_coco, read_voc, read_yolo
from kornia_mvit.data.reading import DataError

NAMES = ("a", "b & <c>", "d")


@st.composite
def scenes(draw):
    """Height and width of an image, and boxes with whole edges in it with their classes."""
    height, width = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    boxes = []
    for _ in range(draw(st.integers(0, 5))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))))
    labels = [draw(st.integers(0, len(NAMES) - 1)) for _ in boxes]
    return (height, width), boxes, labels


def table_of(annotation, size, **arguments):
    rows = collect_rows([annotation], NAMES)
    table, faults, clipped = build_table(rows, torch.tensor([size]), **arguments)
    return table, faults, clipped


def voc(size, boxes, labels, origin=1):
    """Write boxes as VOC has them: pixels from 1, the last one named."""
    items = "".join(
        f"<object><name>{NAMES[k].replace('&', '&amp;').replace('<', '&lt;')}</name><bndbox>"
        f"<xmin>{left + origin}</xmin><ymin>{top + origin}</ymin><xmax>{right - 1 + origin}</xmax>"
        f"<ymax>{bottom - 1 + origin}</ymax></bndbox></object>"
        for (left, top, right, bottom), k in zip(boxes, labels, strict=True)
    )
    return f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{items}</annotation>"


class TestRoundTrips:
    @given(scene=scenes(), origin=st.integers(0, 1))
    def test_voc(self, scene, origin, tmp_path_factory):
        """Whole edges come back exactly; boxes of one pixel across have no area there."""
        size, boxes, labels = scene
        path = tmp_path_factory.mktemp("voc") / "a.xml"
        path.write_text(voc(size, boxes, labels, origin))
        found = read_voc(path, origin=origin)
        assert found.size == size
        table, faults, clipped = table_of(found, size)
        thin = [n for n, (left, top, right, bottom) in enumerate(boxes) if right - left == 1 or bottom - top == 1]
        assert faults == dict.fromkeys(thin, "has no area")
        assert clipped == 0
        kept = [n for n in range(len(boxes)) if n not in thin]
        assert table.boxes.tolist() == [list(boxes[n]) for n in kept]
        assert table.labels.tolist() == [labels[n] for n in kept]

    @given(scene=scenes())
    def test_coco(self, scene, tmp_path_factory):
        """Corner and sides, to the hundredth of a pixel as COCO's own files."""
        size, boxes, labels = scene
        third = [(x + 0.11, y + 0.22, r - 0.33, b - 0.44) for x, y, r, b in boxes]
        items = [
            {"id": n, "image_id": 5, "category_id": 9 - k, "bbox": [round(v, 2) for v in (x, y, r - x, b - y)]}
            for n, ((x, y, r, b), k) in enumerate(zip(third, labels, strict=True))
        ]
        data = {
            "images": [{"id": 5, "file_name": "a.png", "height": size[0], "width": size[1]}],
            "categories": [{"id": 9 - k, "name": name} for k, name in enumerate(NAMES)],
            "annotations": items,
        }
        path = tmp_path_factory.mktemp("coco") / "a.json"
        path.write_text(json.dumps(data))
        found = read_coco(path)
        assert found.category_ids == (7, 8, 9)
        assert found.class_names == NAMES[::-1]
        table, faults, clipped = build_table(found.rows, found.sizes)
        assert (faults, clipped) == ({}, 0)
        torch.testing.assert_close(table.boxes, torch.tensor(third).reshape(-1, 4), atol=0.02, rtol=0)
        assert [found.class_names[k] for k in table.labels.tolist()] == [NAMES[k] for k in labels]

    @given(scene=scenes())
    @example(scene=((3000, 3000), [(0, 0, 1, 1), (2999, 2999, 3000, 3000), (0, 0, 3000, 3000)], [0, 1, 2]))
    def test_yolo(self, scene, tmp_path_factory):
        """Centre and sides as shares with six digits: to a hundredth of a pixel."""
        size, boxes, labels = scene
        height, width = size
        path = tmp_path_factory.mktemp("yolo") / "a.txt"
        path.write_text(
            "".join(
                f"{k} {(x + r) / 2 / width:.6f} {(y + b) / 2 / height:.6f} {(r - x) / width:.6f} "
                f"{(b - y) / height:.6f}\n"
                for (x, y, r, b), k in zip(boxes, labels, strict=True)
            )
        )
        found = read_yolo(path)
        found.names = [NAMES[int(name)] for name in found.names]
        table, faults, clipped = table_of(found, (0, 0), relative=True)
        assert (faults, clipped) == ({}, 0)
        given_boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        pixels = table.boxes * torch.tensor([width, height, width, height])
        torch.testing.assert_close(pixels, given_boxes, atol=0.01, rtol=0)
        assert table.labels.tolist() == labels


class TestReadVoc:
    def test_objects(self, tmp_path):
        path = tmp_path / "a.xml"
        path.write_text(
            "<annotation><object><name> cat </name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2.5</ymin>"
            "<xmax>9</xmax><ymax>8</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
            "</object><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object>"
            "<object><name>dog</name></object></annotation>"
        )
        found = read_voc(path)
        assert found.names == ["cat", "", "dog"]
        assert found.boxes[0] == [0.0, 1.5, 9.0, 8.0]
        assert found.difficult == [True, False, False]
        assert found.faults == {1: "is incomplete"}
        assert found.size == (0, 0)
        rows = collect_rows([found], ["cat", "dog"])
        _, faults, _ = build_table(rows, torch.tensor([[10, 10]]))
        assert faults == {1: "is incomplete", 2: "is incomplete"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;"><!ENTITY d "&c;&c;&c;">]>'
                "<annotation>&d;</annotation>",
                "EntitiesForbidden",
            ),
            (
                '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation><object><name>&b;</name></object>'
                "</annotation>",
                "EntitiesForbidden",
            ),
            ("<annotation>", "no element found"),
            ("", "no element found"),
            ("cat 1 2 3 4", "syntax error"),
        ],
    )
    def test_exception(self, tmp_path, text, message):
        path = tmp_path / "a.xml"
        path.write_text(text)
        with pytest.raises(DataError) as error:
            read_voc(path)
        assert str(error.value).startswith(f"cannot read annotation {path}: ")
        assert message in str(error.value)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match=r"annotation.*b\.xml"):
            read_voc(tmp_path / "b.xml")


class TestReadYolo:
    def test_lines(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("\n1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.6 0.3 0.3 0.9\n2.0 0.5 0.5 1 1\n")
        found = read_yolo(path)
        assert found.names == ["1", "0", "2"]
        assert found.given == ["line 2", "line 3", "line 4"]
        assert found.faults == {}
        torch.testing.assert_close(
            torch.tensor(found.boxes), torch.tensor([[0.4, 0.3, 0.6, 0.7], [0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1]])
        )

    def test_what_is_wrong(self, tmp_path):
        """Wrong counts are told by their number; what is no number makes a box incomplete."""
        path = tmp_path / "a.txt"
        path.write_text("0 0.5 0.5 0.2\n0 0.5 0.5 0.2 0.2 0.9\n0\n0 0.5 x 0.2 0.2\n0 0.1 0.1 0.5 nan 0.5 0.5\n")
        found = read_yolo(path)
        assert found.faults == {
            row: f"has {count} numbers; a box has 5, an outline an odd number from 7"
            for row, count in ((0, 4), (1, 6), (2, 1))
        }
        found.names = [NAMES[0]] * 5
        _, faults, _ = table_of(found, (0, 0), relative=True)
        assert faults == found.faults | {3: "is incomplete", 4: "is incomplete"}

    def test_keypoints(self, tmp_path):
        """A box stays what it is, whatever number of keypoints stands behind it."""
        path = tmp_path / "a.txt"
        box, short = "0 0.5 0.5 0.4 0.6", "1 0.5 0.5 0.2 0.2"
        for shape, values in (((12, 2), " 0.45 0.5"), ((4, 3), " 0.45 0.5 2"), ((3, 3), " 0 0 0")):
            path.write_text(f"{box}{values * shape[0]}\n{short}\n0 0.1 0.2 0.6 0.3 0.3 0.9\n")
            found = read_yolo(path, kpt_shape=shape)
            torch.testing.assert_close(
                torch.tensor(found.boxes[:2]), torch.tensor([[0.3, 0.2, 0.7, 0.8], [0.4, 0.4, 0.6, 0.6]])
            )
            row = f"has 7 numbers; a box has 5, with keypoints of kpt_shape {list(shape)} {5 + shape[0] * shape[1]}"
            assert found.faults == {2: row}
        path.write_text(f"{box}{' 0.45 0.5 2' * 4}\n{box}{' 0.45 0.5 2' * 3}\n")
        assert all("kpt_shape" in fault for fault in read_yolo(path).faults.values())
        assert len(read_yolo(path).faults) == 2

    @pytest.mark.parametrize("start", ["\ufeff", "\ufeff\n"])
    def test_byte_order_mark(self, tmp_path, start):
        path = tmp_path / "a.txt"
        path.write_text(f"{start}1 0.5 0.5 0.2 0.4\n", encoding="utf-8")
        assert (read_yolo(path).names, read_yolo(path).faults) == (["1"], {})

    def test_exception(self, tmp_path):
        path = tmp_path / "a.txt"
        with pytest.raises(DataError, match=r"no such labels: .*a\.txt"):
            read_yolo(path)
        path.write_bytes(b"0 \xff")
        with pytest.raises(DataError, match=r"labels.*a\.txt"):
            read_yolo(path)


IMAGE, CATEGORY = {"id": 1, "file_name": "a.png"}, {"id": 1, "name": "cat"}


class TestReadCoco:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "{path} is not JSON"),
            ("[" * 100_000, "{path} has lists within lists"),
            ("[]", "{path} is not a COCO file: it has no list 'images'"),
            ('{"images": []}', "{path} is not a COCO file: it has no list 'annotations'"),
            (
                json.dumps({"images": [3], "annotations": [], "categories": []}),
                "{path} is not a COCO file: entry 1 of 'images' is not a mapping",
            ),
            (
                json.dumps({"images": [IMAGE, IMAGE], "annotations": [], "categories": []}),
                "id 1 occurs twice in 'images'",
            ),
            (
                json.dumps({"images": [IMAGE], "annotations": [], "categories": [CATEGORY, CATEGORY]}),
                "id 1 occurs twice in 'categories'",
            ),
            (
                json.dumps({"images": [{"id": "a1", "file_name": "a"}], "annotations": [], "categories": []}),
                "'images' has an entry with id 'a1' and file_name 'a', not a whole number and a text",
            ),
            (
                json.dumps({"images": [IMAGE, IMAGE | {"id": "1"}], "annotations": [], "categories": []}),
                "id 1 occurs twice in 'images'",
            ),
            (
                json.dumps({"images": [IMAGE], "annotations": [], "categories": [CATEGORY | {"id": 1.5}]}),
                "'categories' has an entry with id 1.5 and name 'cat', not a whole",
            ),
        ],
    )
    def test_exception(self, tmp_path, text, message):
        path = tmp_path / "a.json"
        path.write_text(text)
        with pytest.raises(DataError) as error:
            read_coco(path)
        assert message.format(path=path) in str(error.value)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match=r"file of annotations.*a\.json"):
            read_coco(tmp_path / "a.json")

    def test_odd_values(self, tmp_path):
        """Whatever a box, an area or a size is, it is told of and does not break the others."""
        boxes = [[0, 0, 5, 5], [0, 0, 5], None, [0, 0, "x", 5], [0, 0, 1e400, 5], [[0], 0, 5, 5], {"x": 1}, 7]
        items = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
        items += [
            {"id": 8, "image_id": True, "category_id": 1, "bbox": [0, 0, 5, 5]},
            {"id": 9, "image_id": 1, "category_id": [1], "bbox": [0, 0, 5, 5]},
            {"id": 10, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": "big"},
            {"id": 11, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 7.5, "iscrowd": 1},
        ]
        path = tmp_path / "a.json"
        image = IMAGE | {"height": 10, "width": "wide"}
        path.write_text(json.dumps({"images": [image], "annotations": items, "categories": [CATEGORY]}))
        found = read_coco(path)
        assert found.sizes.tolist() == [[10, 0]]
        table, faults, _ = build_table(found.rows, torch.tensor([[10, 10]]))
        incomplete = dict.fromkeys(range(1, 8), "is incomplete")
        assert faults == incomplete | {
            8: "names image True, which the file does not have",
            9: "names category [1], which the file does not have",
        }
        assert table.areas.tolist() == [25.0, 25.0, 7.5]
        assert table.crowd.tolist() == table.ignore.tolist() == [False, False, True]

    @pytest.mark.parametrize("write", [int, float, str, "{}.0".format])
    def test_numbers_in_other_forms(self, tmp_path, write):
        """Some tools write whole numbers as 3.0 or "3", and numbers as texts."""
        box = {"bbox": [1, 2, 3, 4.5], "area": 5, "iscrowd": 0}
        shown = {k: [str(x) for x in v] if isinstance(v, list) else str(v) for k, v in box.items()}
        items = [
            {"id": n, "image_id": write(7), "category_id": write(k)} | b
            for n, (k, b) in enumerate([(3, box), (1, shown), (3, shown | {"iscrowd": "1"})])
        ]
        path = tmp_path / "a.json"
        data = {
            "images": [{"id": write(7), "file_name": "a.png", "height": write(30), "width": write(40)}],
            "annotations": items,
            "categories": [{"id": write(3), "name": "cat"}, {"id": write(1), "name": "dog"}],
        }
        path.write_text(json.dumps(data))
        found = read_coco(path)
        assert (found.image_ids, found.category_ids, found.class_names) == ([7], (1, 3), ("dog", "cat"))
        assert (found.sizes.tolist(), found.rows.faults) == ([[30, 40]], {})
        assert found.rows.labels.tolist() == [1, 0, 1]
        assert found.rows.boxes.tolist() == [[1, 2, 4, 6.5]] * 3
        assert found.rows.crowd.tolist() == [False, False, True]

    def test_categories_of_one_name(self, tmp_path):
        path = tmp_path / "a.json"
        names = ["cat", "cat", "dog", "cat (5)"]
        categories = [{"id": n, "name": name} for n, name in enumerate(names, 5)]
        for chosen, expected in (
            (categories[:3], ("cat (5)", "cat (6)", "dog")),
            (categories, ("cat (5)", "cat (6)", "dog (7)", "cat (5) (8)")),
        ):
            path.write_text(json.dumps({"images": [IMAGE], "annotations": [], "categories": chosen}))
            assert read_coco(path).class_names == expected
