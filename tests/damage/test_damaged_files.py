"""Files that are damaged: what is raised is the package's own error, in one line, with the file's name."""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.serialization import set_crc32_options

from kornia_mvit import MobileViTClassifier, Preprocess, from_pretrained
from kornia_mvit.data.classes import read_classes
from kornia_mvit.data.formats import read_coco, read_voc, read_yolo
from kornia_mvit.data.formats.tables import find_names, read_table
from kornia_mvit.data.loading.shards import count_shards
from kornia_mvit.data.reading import DataError
from kornia_mvit.files import FileError
from kornia_mvit.training import last_checkpoint
from kornia_mvit.training.datamodules import COCOData, YOLOData
from kornia_mvit.weights.checkpoints import save_checkpoint
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, read_checkpoint
from tests.damage.kinds import TINY, make_kinds
from tests.damage.mutate import YAML_BOMBS, odd_tensor
from tests.damage.run import call_readers, limited

KINDS = ("pt", "ckpt", "safetensors", "card", "json", "yaml", "xml", "png", "jpeg")


@pytest.fixture(scope="module")
def tiny() -> MobileViTClassifier:
    model = MobileViTClassifier(TINY, num_classes=3).eval()
    model.class_names, model.preprocess = ("a", "b", "c"), Preprocess(32)
    return model


def repack(path: Path, method: int) -> None:
    """Write a zip file again, its entries compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def complaint_of(read: Callable[[], object], path: Path) -> str:
    """Return the message of the error that reading raises, which is one line and names the file."""
    with limited(), pytest.raises(FileError) as error:
        read()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert path.name in message or str(path.parent) in message
    return message


class TestMutations:
    @pytest.mark.parametrize("name", KINDS)
    def test_slice(self, tmp_path, name):
        assert call_readers(make_kinds(tmp_path)[name], 25, seed=1) == {}

    @pytest.mark.long
    @pytest.mark.parametrize("name", KINDS)
    def test_more(self, tmp_path, name):
        assert call_readers(make_kinds(tmp_path)[name], 80, seed=2) == {}

    def test_faults_are_found(self, tmp_path):
        kind = make_kinds(tmp_path)["json"]

        def broken(path: Path) -> object:
            raise IndexError(path)

        faults = call_readers(type(kind)(kind.damage, (broken,), kind.commands), 3, seed=0)
        assert faults
        assert all("broken: IndexError" in fault for fault in faults)


class TestArchives:
    def test_compressed(self, tmp_path, tiny):
        path = tmp_path / "a.pt"
        save_checkpoint(tiny, path)
        repack(path, zipfile.ZIP_DEFLATED)
        back = from_pretrained(path).state_dict()
        assert all(torch.equal(value, back[name]) for name, value in tiny.state_dict().items())

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_compressed_in_another_way(self, tmp_path, method):
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
        repack(tmp_path / "a.pt", method)
        with pytest.raises(CheckpointError, match=r"a\.pt is compressed .* torch\.save"):
            read_checkpoint(tmp_path / "a.pt")

    def test_bomb(self, tmp_path):
        torch.save({"a": torch.zeros(2**25)}, tmp_path / "a.pt")
        repack(tmp_path / "a.pt", zipfile.ZIP_DEFLATED)
        with pytest.raises(CheckpointError, match="would grow to 134,"):
            read_checkpoint(tmp_path / "a.pt")

    def test_every_bit_of_the_weights_counts(self, tmp_path):
        path = tmp_path / "a.pt"
        torch.save({"a": torch.ones(1000)}, path)
        data = bytearray(path.read_bytes())
        data[data.index(torch.ones(8).numpy().tobytes()) + 17] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"a\.pt is damaged: the checksum of .*data/0 is wrong"):
            read_checkpoint(path)

    def test_without_checksums(self, tmp_path):
        set_crc32_options(False)
        try:
            torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
        finally:
            set_crc32_options(True)
        assert torch.equal(read_checkpoint(tmp_path / "a.pt")["a"], torch.ones(3))

    def test_name_that_is_there_twice(self, tmp_path):
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr("a/data/0", torch.zeros(3).numpy().tobytes())
        with pytest.raises(CheckpointError, match=r"'a/data/0' 2 times"):
            read_checkpoint(tmp_path / "a.pt")

    def test_of_several_disks(self, tmp_path):
        path = tmp_path / "a.pt"
        torch.save({"a": torch.ones(3)}, path)
        data = bytearray(path.read_bytes())
        data[data.index(b"PK\x06\x07") + 16] = 9
        path.write_bytes(data)
        complaint_of(lambda: read_checkpoint(path), path)

    def test_long_names(self, tmp_path, tiny):
        path = tmp_path / "a.pt"
        save_checkpoint(tiny, path)
        data = read_checkpoint(path)
        data["state_dict"]["x" * 5000] = data["state_dict"].pop("backbone.stem.conv.weight")
        torch.save(data, tmp_path / "b.pt")
        assert "xxx ..." in complaint_of(lambda: from_pretrained(tmp_path / "b.pt"), tmp_path / "b.pt")

    def test_hash_of_safetensors(self, tmp_path, tiny):
        path = tmp_path / "a.safetensors"
        save_checkpoint(tiny, path)
        data = bytearray(path.read_bytes())
        assert CARD_KEY in read_checkpoint(path)
        for place in (len(data) - 3, data.index(b'num_classes\\": 3') + 15):
            damaged = data.copy()
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"a\.safetensors is damaged"):
                read_checkpoint(path)

    def test_safetensors_of_others_have_no_hash(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
        assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["a"], torch.ones(2))


class TestPickles:
    @pytest.mark.parametrize(
        "content",
        [
            b"\x80\x02.",
            b"\x80",
            b"\x80\x02" + b"(" * 5000 + b".",
            b"\x80\x02\x8a\xff" + b"9" * 300,
            b"\x80\x02X\xff\xff\xff\xffa.",
            b"\x80\x02q\x00.",
            b"\x80\x02h\x07.",
            b"PK\x03\x04",
            b"PK\x05\x06" + b"\0" * 18,
            b"\x80\x02" + b"\0" * 600,
        ],
    )
    def test_short(self, tmp_path, content):
        path = tmp_path / "a.ckpt"
        path.write_bytes(content)
        complaint_of(lambda: read_checkpoint(path), path)

    def test_last_is_passed_over(self, tmp_path):
        good, bad = tmp_path / "last.ckpt", tmp_path / "last-v1.ckpt"
        torch.save({"loops": {}}, good)
        bad.write_bytes(b"\x80\x02.")
        with pytest.warns(UserWarning, match=r"passed over .*last-v1\.ckpt"):
            assert last_checkpoint(tmp_path) == good

    def test_mapping_that_holds_itself(self, tmp_path):
        data: dict[str, Any] = {}
        data["state_dict"] = data
        torch.save(data, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"a\.pt holds no weights"):
            from_pretrained(tmp_path / "a.pt")

    @pytest.mark.parametrize("number", range(10))
    def test_odd_tensors(self, tmp_path, tiny, number):
        class Pick:
            def choice(self, values: Any) -> Any:
                return values[number]

        state = dict(tiny.state_dict())
        path = tmp_path / "a.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state[next(iter(state))] = odd_tensor(Pick())
            torch.save({"state_dict": state, CARD_KEY: _card(tiny)}, path)
            complaint_of(lambda: from_pretrained(path), path)


def _card(model: MobileViTClassifier) -> dict[str, Any]:
    from kornia_mvit.weights.cards import model_card

    return model_card(model, model.class_names, model.preprocess)


def _set(card: Any, keys: tuple[str | int, ...], value: Any) -> Any:
    if not keys:
        return value
    card = dict(card) if isinstance(card, dict) else list(card)
    card[keys[0]] = _set(card[keys[0]], keys[1:], value)
    return card


class TestCards:
    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            ((), 5, "does not say what model"),
            (("format",), True, "has format True"),
            (("format",), torch.ones(4, 4).to_sparse(), "has format"),
            (("model", "mode"), {"stem": 4, "expand": 1, "head_channels": 4}, "does not say stages"),
            (("model", "num_classes"), 10**10, "num_classes is 10000000000, not a whole number"),
            (("model", "num_classes"), 10**7, "num_classes"),
            (("model", "num_classes"), "3", "num_classes is '3'"),
            (("model", "mode"), None, "mode is None"),
            (("model", "mode"), "huge", "'huge'"),
            (("model", "mode", "stages", 0, "dim"), 2**16, "weights, and the file holds"),
            (("model", "mode", "stages", 0, "depth"), 10_000, "more layers"),
            (("model", "mode", "stages", 0, "dim"), 7, "cannot be built"),
            (("model", "mode", "stages"), [], "stages is"),
            (("model", "patch_size"), [0, 0], "patch_size is"),
            (("model",), {}, "mode"),
            (("model", "in_channels"), 10**30, "in_channels"),
            (("preprocess",), 3, "preprocess is 3"),
            (("preprocess", "std"), "abc", "preprocess.std is 'abc'"),
            (("preprocess", "mean"), [float("nan")], "preprocess.mean"),
            (("preprocess", "size"), 10**9, "preprocess.size"),
            (("preprocess", "interpolation"), "lanczos", "interpolation 'lanczos'"),
            (("class_names",), ["a", 5, "c"], "class_names"),
            (("class_names",), ["a", "\ud800", "c"], "class_names"),
            (("class_names",), ["a"], "1 names of classes"),
            (("task",), 7, "task is 7"),
            (("version",), [1], "version is"),
        ],
    )
    def test_field(self, tmp_path, tiny, keys, value, message):
        path = tmp_path / "a.pt"
        torch.save({"state_dict": tiny.state_dict(), CARD_KEY: _set(_card(tiny), keys, value)}, path)
        assert message in complaint_of(lambda: from_pretrained(path), path)

    def test_nothing_to_prepare(self, tmp_path, tiny):
        torch.save({"state_dict": tiny.state_dict(), CARD_KEY: _card(tiny) | {"preprocess": None}}, tmp_path / "a.pt")
        assert from_pretrained(tmp_path / "a.pt").preprocess is None


class TestTexts:
    @pytest.mark.parametrize("number", range(len(YAML_BOMBS)))
    def test_yaml(self, tmp_path, number):
        path = tmp_path / "classes.yaml"
        path.write_text(YAML_BOMBS[number])
        complaint_of(lambda: read_classes(path), path)

    @pytest.mark.parametrize("text", ["[" * 10**5, "9" * 5000, "\ud800", '{"a": 1e400', "NaN", '{"images": [{"id": 1'])
    def test_json(self, tmp_path, text):
        path = tmp_path / "a.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        table = tmp_path / "a.jsonl"
        table.write_bytes(text.encode("utf-8", "surrogatepass"))
        for read in (read_coco, read_classes, lambda path: count_shards(["a.tar"], path)):
            complaint_of(lambda read=read: read(path), path)
        complaint_of(lambda: read_table(table), table)

    def test_numbers_beyond_measure(self, tmp_path):
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"images": [{"id": 10**30, "file_name": "a"}], "annotations": [], "categories": []}))
        complaint_of(lambda: read_coco(path), path)
        image = {"id": 1, "file_name": "a", "width": 10**400, "height": 5}
        path.write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
        assert read_coco(path).sizes.tolist() == [[5, 0]]
        (tmp_path / "a.xml").write_text("<a><size><width>1e300</width><height>5</height></size></a>")
        assert read_voc(tmp_path / "a.xml").size == (0, 0)
        (tmp_path / "a.txt").write_text("9" * 5000 + " 0.5 0.5 0.1 0.1\n")
        assert len(read_yolo(tmp_path / "a.txt").names[0]) < 300
        (tmp_path / "a.csv").write_text(f"path,label\na,{'9' * 5000}\nb,1\n")
        assert len(find_names(read_table(tmp_path / "a.csv"))) == 2

    def test_shard_too_small_for_its_samples(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(b"\0" * 10240)
        (tmp_path / "sizes.json").write_text('{"a.tar": 21}')
        with pytest.raises(DataError, match=r"21 samples .* room for 20"):
            count_shards([str(tmp_path / "a.tar")])

    @pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800"])
    def test_names_that_no_file_has(self, tmp_path, name):
        coco = {"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / "a.json").write_text(json.dumps(coco))
        files = {"train_file": "a.json", "train_images": ".", "val_file": "a.json", "val_images": "."}
        message = complaint_of(lambda: COCOData(str(tmp_path), **files), tmp_path / "a.json")
        assert "missing" in message
        (tmp_path / "data.yaml").write_text(json.dumps({"train": name, "val": name, "names": ["a"], "path": name}))
        complaint_of(lambda: YOLOData(str(tmp_path)), tmp_path / "data.yaml")
