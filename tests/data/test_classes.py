"""Names and colours of classes, from files."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit.data.classes import LabelClasses, read_classes, voc_colours
from kornia_mvit.data.reading import DataError

SKY, ROAD, VOID = (128, 128, 128), (128, 0, 64), (0, 0, 0)
EXPECTED = LabelClasses(("sky", "road"), (SKY, ROAD), (VOID,))
colours = st.tuples(*[st.integers(0, 255)] * 3)


class TestLabelClasses:
    def test_feature(self):
        assert EXPECTED.numbers(255) == {SKY: 0, ROAD: 1, VOID: 255}
        assert LabelClasses(("sky",)).numbers(255) is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (((),), "there are no classes"),
            ((("a", "b", "a"),), "the class 'a' occurs twice"),
            ((("a", "b"), (SKY,)), "2 classes, but 1 colours"),
            ((("a", "b"), (SKY, SKY)), r"the colour \(128, 128, 128\) occurs twice"),
            ((("a",), (SKY,), (SKY,)), r"the colour \(128, 128, 128\) occurs twice"),
            ((("a",), None, (SKY,)), "colours to ignore, but the classes have none"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            LabelClasses(*arguments)


class TestReadClasses:
    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("a.yaml", "[sky, road]", LabelClasses(("sky", "road"))),
            ("a.yml", "- sky\n- road\n", LabelClasses(("sky", "road"))),
            ("a.txt", "classes: [sky, 3]", LabelClasses(("sky", "3"))),
            ("a.yaml", "sky: [128, 128, 128]\nroad: '#800040'\n", LabelClasses(("sky", "road"), (SKY, ROAD))),
            ("a.yaml", "sky:\nroad:\n", LabelClasses(("sky", "road"))),
            ("a.yaml", "1: road\n0: sky\n", LabelClasses(("sky", "road"))),
            ("a.yaml", "'1': road\n\"0\": sky\n", LabelClasses(("sky", "road"))),
            ("a.json", '{"1": "road", "0": "sky"}', LabelClasses(("sky", "road"))),
            ("a.yaml", "'0': [128, 128, 128]\n1: '#800040'\n", LabelClasses(("0", "1"), (SKY, ROAD))),
            ("a.yaml", "[yes, no]", LabelClasses(("yes", "no"))),
            ("a.yaml", "{off: [128, 128, 128], on: [128, 000, 064]}", LabelClasses(("off", "on"), (SKY, ROAD))),
            (
                "a.yaml",
                "[010, 1.0, true, 2024-01-01, 10:30]",
                LabelClasses(("010", "1.0", "true", "2024-01-01", "10:30")),
            ),
            ("a.yaml", "\ufeff[sky, road]", LabelClasses(("sky", "road"))),
            ("a.json", "\ufeff" + '["sky", "road"]', LabelClasses(("sky", "road"))),
            ("a.yaml", "classes: {sky: [128, 128, 128], road: '#800040'}\nignore: [0, 0, 0]", EXPECTED),
            (
                "a.yaml",
                "classes:\n  sky: [128, 128, 128]\n  road: [128, 0, 64]\nignore: ['#000000']\n",
                EXPECTED,
            ),
            (
                "a.yaml",
                "classes:\n- {name: sky, color: '#808080'}\n- {name: road, colour: '#800040'}\nignore: [[0, 0, 0]]",
                EXPECTED,
            ),
            (
                "a.json",
                json.dumps({"classes": {"sky": SKY, "road": "#800040"}, "ignore": [VOID]}),
                EXPECTED,
            ),
        ],
    )
    def test_feature(self, name, text, expected, tmp_path):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_classes(tmp_path / name) == expected

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.yaml", None, "no such file of classes: {path}"),
            ("a.yaml", "a: [1", "{path} is not YAML: while parsing"),
            ("a.json", "[", "{path} is not JSON"),
            ("a.yaml", "", "{path}: expected a list of names, or a mapping"),
            ("a.yaml", "sky", "{path}: expected a list of names, or a mapping"),
            ("a.yaml", "[]", "{path}: there are no classes"),
            ("a.yaml", "{classes: [sky], colours: []}", "{path}: unknown entries colours; known: classes, ignore"),
            ("a.json", '["sky", false]', "{path}: False is not a name; put it in quotes"),
            ("a.yaml", "- {color: [0, 0, 0]}", "has no name"),
            ("a.yaml", "- {name: sky, id: 3}", "has the unknown keys id"),
            (
                "a.yaml",
                "sky: [1, 2, 3]\nroad: #808080",
                "'road' has no colour, others have; '#rrggbb' needs its quotes",
            ),
            ("a.yaml", "sky: [1, 2, 256]", "[1, 2, 256] is not a colour; give red, green and blue from 0 to 255"),
            ("a.yaml", "sky: [1, 2]", "[1, 2] is not a colour"),
            ("a.yaml", "sky: grey", "'grey' is not a colour"),
            ("a.yaml", "{sky: [1, 2, 3], road: [1, 2, 3]}", "{path}: the colour (1, 2, 3) occurs twice"),
            ("a.yaml", "{classes: {sky: [1, 2, 3]}, ignore: [0, 0]}", "0 is not a colour"),
            ("a.yaml", "{sky: [1, 2, 3], ignore: [0, 0, 0]}", "ignore stands beside classes and not among them; write"),
            ("a.yaml", "sky: [1, 2, 3]\nroad: [1, 2, 4]\nsky: [1, 2, 5]", "{path}: 'sky' occurs twice"),
            ("a.yaml", "classes:\n  sky: [1, 2, 3]\n  sky: [1, 2, 5]", "{path}: 'sky' occurs twice"),
            ("a.json", '{"sky": [1, 2, 3], "sky": [1, 2, 4]}', "'sky' occurs twice"),
        ],
    )
    def test_exception(self, name, text, message, tmp_path):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(DataError) as error:
            read_classes(path)
        assert message.format(path=path) in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    @given(
        found=st.dictionaries(st.text("aä1 :#-'\"\n", min_size=1), colours, min_size=1).filter(
            lambda d: len(set(d.values())) == len(d) and "classes" not in d
        ),
        wrapped=st.booleans(),
        suffix=st.sampled_from(["json", "yaml"]),
    )
    def test_there_and_back(self, found, wrapped, suffix, tmp_path_factory):
        path = tmp_path_factory.getbasetemp() / f"classes.{suffix}"
        data = {name: list(colour) for name, colour in found.items()}
        data = {"classes": data} if wrapped else data
        text = json.dumps(data) if suffix == "json" else yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8", newline="")
        assert read_classes(path) == LabelClasses(tuple(found), tuple(found.values()))


class TestVocColours:
    def test_feature(self):
        """As VOC's development kit lists them: bicycle, person, tv, and 255 for what is ignored."""
        colours = voc_colours(256)
        assert (colours[2], colours[15], colours[20]) == ((0, 128, 0), (192, 128, 128), (0, 64, 128))
        assert colours[255] == (224, 224, 192)
        assert len(set(colours)) == 256
