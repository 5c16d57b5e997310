"""Tables of paths and labels, and the data module over them."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kornia_mvit.data.formats.tables import Row, find_names, number_labels, read_table
from kornia_mvit.data.reading import DataError
from kornia_mvit.training.datamodules import FolderData, TableData
from tests.data.test_datamodules import make_folder

WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


def write(file, text):
    file.write_text(text, encoding="utf-8")
    return file


def rows(*labels):
    return [Row(f"{i}.png", label, None, f"a.csv, line {i + 2}") for i, label in enumerate(labels)]


class TestReadTable:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
    @given(table=st.lists(st.tuples(WORDS, WORDS, st.text(max_size=5)), min_size=1, max_size=6))
    def test_gives_what_was_written(self, tmp_path_factory, suffix, table):
        file = tmp_path_factory.mktemp("table") / f"a.{suffix}"
        with file.open("w", encoding="utf-8", newline="") as out:
            if suffix == "jsonl":
                out.writelines(json.dumps({"note": n, "label": b, "path": a}) + "\n" for a, b, n in table)
            else:
                writer = csv.writer(out, delimiter="," if suffix == "csv" else "\t", quoting=csv.QUOTE_ALL)
                writer.writerows([("note", "label", "path"), *((n, b, a) for a, b, n in table)])
        read = read_table(file)
        assert [(row.path, row.label) for row in read] == [(a, b) for a, b, _ in table]
        assert all(row.split is None for row in read)

    def test_lines_are_counted(self, tmp_path):
        file = write(tmp_path / "a.csv", '\ufeffpath,label\n\na.png,"two\nlines"\nb.png,x\n')
        assert [row.place for row in read_table(file)] == [f"{file}, line 4", f"{file}, line 5"]
        assert read_table(file)[0].label == "two\nlines"
        file = write(tmp_path / "a.jsonl", '\n{"file": "a.png", "class": 3, "set": "val"}\n')
        assert read_table(file, "file", "class", "set") == [Row("a.png", "3", "val", f"{file}, line 2")]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.txt", "path,label\n", "{} is not a .csv, .tsv or .jsonl file"),
            ("a.csv", "", "{} has no rows; it needs one for each image"),
            ("a.csv", "path,label\n", "{} has no rows"),
            ("a.jsonl", "\n", "{} has no rows"),
            ("a.csv", "path,class\na,b\n", "{}, line 1: no column 'label'; there are 'path', 'class'"),
            ("a.tsv", "path,label\na,b\n", "{}, line 1: no column 'path'; there are 'path,label'"),
            ("a.csv", "path,label,path\na,b,c\n", "{}, line 1: the column 'path' is there twice"),
            ("a.csv", "path,label\na,b\na,b,c\n", "{}, line 3 has 3 fields, but 2 columns are named; put fields"),
            ("a.csv", "path,label\na\n", "{}, line 2 has 1 fields"),
            ("a.csv", "path,label\na,\n", "{}, line 2: label is empty"),
            ("a.csv", 'path,label\n"a"b,c\n', "{}, line 2: ',' expected after '\"'"),
            ("a.jsonl", '{"path": "a", "label": 1}\n{"path": \n', "{}, line 2 is not JSON: Expecting value"),
            ("a.jsonl", "[1]\n", '{}, line 1 is not an object, such as {{"path": "...", "label": "..."}}'),
            ("a.jsonl", '{"path": "a"}\n', "{}, line 1: no column 'label'; there are 'path'"),
            ("a.jsonl", "{}\n", "{}, line 1: no column 'path'; there are none"),
            ("a.jsonl", '{"path": "a", "label": 1.5}\n', "{}, line 1: label is 1.5; give text or an integer"),
            ("a.jsonl", '{"path": "a", "label": true}\n', "{}, line 1: label is true; give text or an integer"),
        ],
    )
    def test_exception(self, tmp_path, name, text, message):
        file = write(tmp_path / name, text)
        with pytest.raises(DataError) as error:
            read_table(file)
        assert message.format(file) in str(error.value)

    def test_exception_of_files(self, tmp_path):
        with pytest.raises(DataError, match=r"no such table: .*a\.csv"):
            read_table(tmp_path / "a.csv")
        (tmp_path / "b.csv").write_bytes(b"path,label\n\xff\n")
        with pytest.raises(DataError, match=r"b\.csv.*UTF-8.*at byte 11"):
            read_table(tmp_path / "b.csv")
        (tmp_path / "c.csv").mkdir()
        with pytest.raises(DataError, match=r"c\.csv: Is a directory"):
            read_table(tmp_path / "c.csv")


class TestFindNames:
    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            (["b", "a", "b"], ("a", "b")),
            (["2", "0", "1", "0"], ("0", "1", "2")),
            (["01", "0"], ("0", "01")),
            (["1", "cat"], ("1", "cat")),
            ([str(i) for i in range(12)], tuple(map(str, range(12)))),
        ],
    )
    def test_feature(self, labels, names):
        assert find_names(rows(*labels)) == names

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["1", "2"], "the labels in a.csv are 1, 2: integers count two or more classes from 0"),
            (["0", "2"], "are 0, 2:"),
            (["-1", "0"], "are -1, 0:"),
            (["0"], "are 0:"),
            (["cat", "cat"], "a.csv has one label, 'cat'; classification needs two or more classes"),
        ],
    )
    def test_exception(self, labels, message):
        with pytest.raises(DataError, match=message):
            find_names(rows(*labels))


class TestNumberLabels:
    def test_feature(self):
        assert number_labels(rows("dog", "cat"), ["cat", "dog"]) == [1, 0]
        assert number_labels(rows("1", "0"), ["cat", "dog"]) == [1, 0]
        assert number_labels(rows("7", "3"), ["3", "7"]) == [1, 0], "names come first"

    def test_exception(self):
        with pytest.raises(DataError, match=r"a\.csv, line 3: label 'cow'.*'cat', 'dog'"):
            number_labels(rows("dog", "cow"), ["cat", "dog"])
        with pytest.raises(DataError, match=r"a\.csv, line 2: label '2'.*2 classes"):
            number_labels(rows("2"), ["cat", "dog"])
        with pytest.raises(DataError, match=r"a\.csv, line 3: label '1'"):
            number_labels(rows("cat", "1"), ["cat", "dog"])


def make_table(folder, *, name="all.csv", count=5, split=None):
    """A folder of images of two classes, and a table of them."""
    if not (folder / "images").exists():
        make_folder(folder / "images", count=count)
    lines = [f"images/{c}/{i}.png,{c}" for c in ("cat", "dog") for i in range(count)]
    header = "path,label"
    if split is not None:
        header, lines = f"{header},split", [f"{line},{split(i)}" for i, line in enumerate(lines)]
    return write(folder / name, "\n".join([header, *lines]) + "\n")


def counts(data):
    data.setup()
    return {name: len(split) for name, split in data.splits.items()}


class TestTableData:
    def test_splits_as_a_folder_does(self, tmp_path):
        data = TableData(str(make_table(tmp_path)), 4, 0, 24, seed=3)
        same = FolderData(str(tmp_path / "images"), 4, 0, 24, seed=3)
        assert counts(data) == counts(same) == {"train": 8, "val": 2}
        for split, part in data.splits.items():
            assert (part.files, part.labels) == (same.splits[split].files, same.splits[split].labels)
        batch = next(iter(data.train_dataloader()))
        assert batch.image.shape == (4, 3, 30, 30)
        assert [data.class_names[k] in m["path"] for k, m in zip(batch.label, batch.meta, strict=True)] == [True] * 4

    def test_a_table_for_each_split(self, tmp_path):
        train = make_table(tmp_path)
        (tmp_path / "lists").mkdir()
        val = write(tmp_path / "lists" / "val.jsonl", '{"path": "images/dog/1.png", "label": "dog"}\n')
        test = write(tmp_path / "lists" / "test.tsv", "label\tpath\n0\timages/cat/1.png\n1\timages/cat/2.png\n")
        data = TableData(str(train), val=str(val), test=str(test), root=str(tmp_path), num_workers=0)
        assert counts(data) == {"train": 10, "val": 1, "test": 2}
        assert data.splits["val"].labels == [1]
        assert data.splits["test"].labels == [0, 1], "numbers, in a table without names"
        assert sum(len(batch) for batch in data.test_dataloader()) == 2

    def test_a_column_of_splits(self, tmp_path):
        file = make_table(tmp_path, split=lambda i: ("train", "train", "val", "train", "test")[i % 5])
        assert counts(TableData(str(file), split_column="split")) == {"train": 6, "val": 2, "test": 2}
        file = make_table(tmp_path, split=lambda i: "test" if i % 5 == 0 else "train")
        assert counts(TableData(str(file), split_column="split")) == {"test": 2, "train": 6, "val": 2}

    def test_names_in_their_order(self, tmp_path):
        data = TableData(str(make_table(tmp_path)), class_names=["dog", "emu", "cat"])
        assert data.class_names == ("dog", "emu", "cat")
        assert counts(data) == {"train": 8, "val": 2}
        assert set(data.splits["train"].labels) == {0, 2}

    def test_unreadable_images_are_skipped(self, tmp_path):
        file = make_table(tmp_path)
        (tmp_path / "images/cat/2.png").write_bytes(b"no")
        (tmp_path / "images/dog/1.png").unlink()
        data = TableData(str(file), on_error="skip")
        assert counts(data) == {"train": 6, "val": 2}
        assert data.skipped == [tmp_path / "images/cat/2.png", tmp_path / "images/dog/1.png"]

    def test_a_missing_image_is_named(self, tmp_path):
        file = make_table(tmp_path)
        (tmp_path / "images/cat/3.png").unlink()
        (tmp_path / "images/dog/1.png").unlink()
        with pytest.raises(DataError, match=r"all\.csv, line 5.*cat/3\.png; 2 of 10 images"):
            TableData(str(file))

    def test_exception(self, tmp_path):
        file = str(make_table(tmp_path))
        for arguments, message in [
            ({"split_column": "split"}, "line 1: no column 'split'; there are 'path', 'label'"),
            ({"split_column": "split", "val": file}, "split_column is for a single table"),
            ({"split_column": "label"}, "line 2: label is 'cat'; available: 'train', 'val', 'test'"),
            ({"class_names": ["cat", "cow"]}, "line 7: label 'dog' is none of the 2 classes 'cat', 'cow'"),
            ({"class_names": ["cat", "cat"]}, "class_names are 'cat', 'cat'; give two or more, each once"),
            ({"on_error": "ignore"}, "available: 'raise', 'skip'"),
            ({"val_fraction": 0.0}, "val_fraction 0.0 is not between"),
        ]:
            with pytest.raises(ValueError, match=message):
                TableData(file, **arguments)
        data = TableData(file)
        data.setup()
        with pytest.raises(DataError, match=r"test split; give a table.*or run validate"):
            data.test_dataloader()
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        alone = write(tmp_path / "alone.csv", "path,label\na.png,x\na.png,y\na.png,y\n")
        with pytest.raises(DataError, match=r"'x' in .*alone\.csv has one image"):
            TableData(str(alone))
        only = make_table(tmp_path, name="b.csv", split=lambda i: "val")
        with pytest.raises(DataError, match=r"b\.csv.*'train'"):
            TableData(str(only), split_column="split")
