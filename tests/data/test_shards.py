"""Shards as files: finding, counting, reading and writing them."""

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kornia_mvit.data.loading.shards import (
    ShardFiles,
    count_samples,
    count_shards,
    decode_image,
    decode_label,
    find_shards,
    read_shard,
    write_shards,
)
from kornia_mvit.data.reading import DataError


def make_images(folder, count):
    """Images of one shade each, which is their number."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        if not path.exists():
            Image.new("RGB", (10, 8), (i, i, i)).save(path)
    return paths


def make_shards(folder, sizes):
    """Shards of the sizes; every second image is of class 1."""
    rows = [(path, i % 2) for i, path in enumerate(make_images(folder / "images", sum(sizes)))]
    shards = []
    for k, size in enumerate(sizes):
        begin = sum(sizes[:k])
        shards += write_shards(rows[begin : begin + size], folder / f"{k:03d}-%d.tar", max(size, 1))
    return shards


def make_tar(path, members):
    """A tar of files, given by name and content."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def cut_off(shard):
    """Lose the end of a shard, in the middle of its last image."""
    with tarfile.open(shard) as archive:
        end = archive.getmembers()[-1].offset_data + 5
    with open(shard, "r+b") as file:
        file.truncate(end)


class TestFindShards:
    def test_feature(self, tmp_path):
        for name in ("a-00.tar", "a-01.tar", "a-02.tar", "b.tar"):
            (tmp_path / name).touch()
        a = [f"{tmp_path}/a-0{i}.tar" for i in range(3)]
        assert find_shards(f"{tmp_path}/a-{{00..02}}.tar") == a
        assert find_shards(f"{tmp_path}/a-*.tar") == a
        assert find_shards([f"{tmp_path}/b.tar", f"{tmp_path}/a-0[12].tar"]) == [f"{tmp_path}/b.tar", *a[1:]]
        assert find_shards("pipe:cat /x/{a,b}.tar") == ["pipe:cat /x/a.tar", "pipe:cat /x/b.tar"]
        assert find_shards("s3://bucket/a?.tar") == ["s3://bucket/a?.tar"]

    def test_exception(self, tmp_path):
        (tmp_path / "a.tar").touch()
        for patterns, message in [
            (
                f"{tmp_path}/b-{{0..1}}.tar",
                r"no such shard: .*b-0\.tar; give \.tar files, by names such as",
            ),
            (f"{tmp_path}/*.tgz", "no such shard"),
            ([], "no shards; give names"),
            ([f"{tmp_path}/a.tar", f"{tmp_path}/*.tar"], r"a\.tar is named twice among the shards"),
        ]:
            with pytest.raises(DataError, match=message):
                find_shards(patterns)


class TestCountSamples:
    @given(
        members=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["cls", "a.png"])), max_size=8, unique=True)
    )
    def test_counts_what_is_read(self, tmp_path_factory, members):
        names = [f"deep/{key}.{suffix}" for key, suffix in members]
        extra = [("__meta__", b"x"), ("no suffix", b"y")]
        shard = make_tar(tmp_path_factory.mktemp("tar") / "a.tar", [*((name, b"1") for name in names), *extra])
        assert count_samples(shard) == sum(1 for _ in read_shard(shard))

    def test_exception(self, tmp_path):
        with pytest.raises(DataError, match=r"shard.*a\.tar.*No such file"):
            count_samples(tmp_path / "a.tar")
        (tmp_path / "a.tar").write_bytes(b"x" * 2000)
        with pytest.raises(DataError, match=r"shard.*a\.tar: "):
            count_samples(tmp_path / "a.tar")
        (shard,) = make_shards(tmp_path, [3])
        cut_off(shard)
        with pytest.raises(DataError, match=r"shard.*unexpected end of data"):
            count_samples(shard)


class TestCountShards:
    def test_sizes_go_before_counting(self, tmp_path):
        shards = make_shards(tmp_path, [2, 3])
        assert count_shards(shards) == (dict(zip(shards, [2, 3], strict=True)), [])
        (tmp_path / "sizes.json").write_text(json.dumps({"000-0.tar": 7}))
        assert count_shards(shards) == (dict(zip(shards, [7, 3], strict=True)), [])
        (tmp_path / "sizes.json").unlink()
        assert count_shards(shards) == (dict(zip(shards, [2, 3], strict=True)), [])

    def test_shards_elsewhere_need_sizes(self, tmp_path):
        file = tmp_path / "counts.json"
        file.write_text(json.dumps({"a.tar": 4, "s3://x/b.tar": 5}))
        shards = ["pipe:aws s3 cp s3://x/a.tar -", "s3://x/b.tar"]
        assert count_shards(shards, file) == (dict(zip(shards, [4, 5], strict=True)), [])
        with pytest.raises(DataError, match=r"2 shards.*pipe:aws s3 cp s3://x/a\.tar -; give"):
            count_shards(shards)

    def test_broken_ones_are_told_of(self, tmp_path):
        shards = make_shards(tmp_path, [2, 3])
        (tmp_path / "sizes.json").unlink()
        cut_off(shards[0])
        counts, (error,) = count_shards(shards)
        assert counts == {shards[1]: 3}
        assert shards[0] in error

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, r"no such file of sizes: .*x\.json"),
            ("{", r"x\.json is not JSON"),
            ("[1]", r"x\.json does not hold numbers of samples by shard, such as"),
            ('{"a.tar": 1.5}', "does not hold numbers"),
            ('{"a.tar": true}', "does not hold numbers"),
        ],
    )
    def test_exception(self, tmp_path, text, message):
        if text is not None:
            (tmp_path / "x.json").write_text(text)
        with pytest.raises(DataError, match=message):
            count_shards(["s3://x/a.tar"], tmp_path / "x.json")


class TestReadShard:
    def test_feature(self, tmp_path):
        (shard,) = make_shards(tmp_path, [5])
        samples = list(read_shard(shard))
        assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(5)]
        assert [sample["cls"] for sample in samples] == [b"0", b"1", b"0", b"1", b"0"]
        assert samples[3]["png"] == (tmp_path / "images/3.png").read_bytes()
        assert list(read_shard(shard, 1, 3)) == samples[1:3]
        assert list(read_shard(f"pipe:cat {shard}", 1, 3)) == [
            sample | {"__url__": f"pipe:cat {shard}"} for sample in samples[1:3]
        ]

    def test_exception(self, tmp_path):
        (shard,) = make_shards(tmp_path, [5])
        with pytest.raises(DataError, match=r"000-0\.tar.*5 samples.*6.*sizes\.json"):
            list(read_shard(shard, 2, 6))
        with pytest.raises(DataError, match=r"shard.*no\.tar.*No such file"):
            list(read_shard(str(tmp_path / "no.tar")))
        with pytest.raises(DataError, match="pipe:exit 3 after 0 samples"):
            list(read_shard("pipe:exit 3"))
        cut_off(shard)
        read = []
        with pytest.raises(DataError, match=r"000-0\.tar after 4 samples: unexpected end of data$"):
            read.extend(read_shard(shard))
        assert len(read) == 4, "what is whole was given"


class TestDecode:
    @staticmethod
    def sample(**files):
        return {"__url__": "a.tar", "__key__": "7", **files}

    @pytest.mark.parametrize(
        ("files", "label"),
        [
            ({"cls": b"1\n"}, 1),
            ({"cls": b"dog"}, 1),
            ({"json": b'{"label": 1}'}, 1),
            ({"json": b'{"label": "dog"}'}, 1),
            ({"json": b'{"label": "dog"}', "cls": b"0"}, 0),
        ],
    )
    def test_labels(self, files, label):
        assert decode_label(self.sample(**files), ["cat", "dog"]) == label

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, r"a\.tar/7 has no label: it needs a \.cls file, or a \.json one with a label in it"),
            ({"json": b"{"}, "has no label"),
            ({"json": b"[1]"}, "has no label"),
            ({"json": b'{"class": 1}'}, "has no label"),
            ({"cls": b"\xff"}, "has no label"),
            ({"cls": b"2"}, r"a\.tar/7: label 2 is none of the 2 classes 'cat', 'dog'"),
            ({"cls": b"-1"}, "label -1 is none of"),
            ({"cls": b"cow"}, "label 'cow' is none of"),
            ({"json": b'{"label": true}'}, "label True is none of"),
            ({"json": b'{"label": 1.0}'}, r"label 1\.0 is none of"),
        ],
    )
    def test_exception_of_labels(self, files, message):
        with pytest.raises(DataError, match=message):
            decode_label(self.sample(**files), ["cat", "dog"])

    def test_images(self, tmp_path):
        (path,) = make_images(tmp_path, 1)
        out = decode_image(self.sample(png=path.read_bytes(), cls=b"1"), 1)
        assert out["image"].shape == (3, 8, 10)
        assert (out["label"], out["meta"]) == (1, {"path": "a.tar/7.png"})
        with pytest.raises(DataError, match=r"a\.tar/7.*left\.png, cls"):
            decode_image(self.sample(**{"left.png": b"", "cls": b"1"}), 1)
        with pytest.raises(DataError, match=r"a\.tar/7\.webp"):
            decode_image(self.sample(webp=b"no"), 1)


class TestShardFiles:
    def test_feature(self, tmp_path):
        shards = make_shards(tmp_path, [2, 4, 1])
        files = ShardFiles(count_shards(shards)[0], ["even", "odd"], lambda s: s | {"image": s["image"][:, :4]})
        assert len(files) == 7
        for i in (0, 1, 2, 5, 6):
            sample = files[i]
            assert sample["image"].shape == (3, 4, 10)
            assert (int(sample["image"][0, 0, 0]), sample["label"]) == (i, i % 2)

    @given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
    def test_cut(self, counts, data):
        files = ShardFiles({str(k): count for k, count in enumerate(counts)}, ["a", "b"])
        order = data.draw(st.permutations(range(len(counts))))
        start = data.draw(st.integers(0, len(files)))
        stop = data.draw(st.integers(start, len(files)))
        whole = [(str(k), i) for k in order for i in range(counts[k])]
        pieces = files.cut(start, stop, order)
        assert [(name, i) for name, first, last in pieces for i in range(first, last)] == whole[start:stop]
        assert all(first < last for _, first, last in pieces)


class TestWriteShards:
    def test_feature(self, tmp_path):
        paths = make_images(tmp_path, 5)
        out = tmp_path / "shards"
        counts = write_shards(zip(paths, ["a", "b", "a", "b", "a"], strict=True), out / "val-%03d.tar", 2)
        assert counts == {f"{out}/val-00{i}.tar": n for i, n in enumerate([2, 2, 1])}
        assert [count_samples(shard) for shard in counts] == [2, 2, 1]
        assert [decode_label(sample, ["a", "b"]) for shard in counts for sample in read_shard(shard)] == [0, 1, 0, 1, 0]
        first = (out / "val-000.tar").read_bytes()
        write_shards([(paths[0], 0)], f"{out}/test-%d.tar")
        write_shards(zip(paths, ["a", "b", "a", "b", "a"], strict=True), out / "val-%03d.tar", 2)
        assert (out / "val-000.tar").read_bytes() == first, "the same again"
        assert json.loads((out / "sizes.json").read_text()) == {
            "test-0.tar": 1,
            **{f"val-00{i}.tar": n for i, n in enumerate([2, 2, 1])},
        }

    def test_exception(self, tmp_path):
        (path,) = make_images(tmp_path, 1)
        for arguments, message in [
            (([(path, 0)], "a.tar"), r"pattern a\.tar has no place for a number, such as in train-%05d\.tar"),
            (([(path, 0)], f"{tmp_path}/%d.tar", 0), "max_count 0 is not at least one"),
            (([], f"{tmp_path}/%d.tar"), "no samples to write"),
            (([(tmp_path / "a.txt", 0)], f"{tmp_path}/%d.tar"), r"a\.txt has no suffix of an image: \.bmp, "),
            (([(tmp_path / "a.jpg", 0)], f"{tmp_path}/%d.tar"), r"cannot read .*a\.jpg: No such file"),
        ]:
            with pytest.raises(ValueError, match=message):
                write_shards(*arguments)
