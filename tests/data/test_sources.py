"""Shards from addresses: the cache, attempts, and epochs over servers that fail."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from fsspec.registry import _registry

from kornia_mvit.data.loading import sources
from kornia_mvit.data.loading.index import ShardEntry, ShardIndex
from kornia_mvit.data.loading.shards import count_shards, find_shards
from kornia_mvit.data.loading.sources import ShardCache, is_address, read_address
from kornia_mvit.data.reading import DataError
from kornia_mvit.training.datamodules import ShardData
from tests.data.serving import FAULTS, serving
from tests.data.test_shards import make_shards


def write(folder, sizes):
    """Files of sizes, whose content is known by size and checksum."""
    known = {}
    for number, size in enumerate(sizes):
        content = os.urandom(size)
        (folder / f"{number}.tar").write_bytes(content)
        known[f"{number}.tar"] = (size, hashlib.sha256(content).hexdigest())
    return known


def kept(cache):
    return sum(path.stat().st_size for path in cache.folder.glob("*.tar*"))


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


class TestShardCache:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_another_attempt_follows_a_fault(self, fault, served, tmp_path, caplog):
        known = write(served, [300_000])
        with serving(served, faults=[fault, fault], stall=1.0) as (address, state):
            cache = ShardCache(tmp_path / "cache", pause=0.01, stall=0.3, known={f"{address}/0.tar": known["0.tar"]})
            with cache.open(f"{address}/0.tar") as file:
                assert file.read() == (served / "0.tar").read_bytes()
            with cache.open(f"{address}/0.tar") as file:
                assert len(file.read()) == 300_000
            assert (len(state.requests), state.told) == (3, [fault, fault])
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 2
        assert all(f"{address}/0.tar: " in line for line in told)
        assert ["attempt 2 follows in 0.01 s" in told[0], "attempt 3 follows in 0.02 s" in told[1]] == [True, True]

    def test_gives_up_and_leaves_nothing(self, served, tmp_path):
        known = write(served, [9000])
        with serving(served, faults=["cut"] * 3) as (address, state):
            cache = ShardCache(tmp_path / "cache", attempts=3, pause=0.01, known={f"{address}/0.tar": known["0.tar"]})
            with pytest.raises(DataError, match=r"cannot read http://.*/0\.tar: .*, after 3 attempts"):
                cache.open(f"{address}/0.tar")
            assert kept(cache) == 0
            with pytest.raises(DataError, match=r"9\.tar: .*after 1 attempts"):
                cache.open(f"{address}/9.tar")
            assert [name for name in cache.folder.iterdir()] == [cache.folder / ".lock"]
            assert state.requests.count("0.tar") == 3

    def test_those_not_used_for_longest_make_room(self, served, tmp_path):
        known = write(served, [400, 400, 400, 900])
        with serving(served) as (address, state):
            cache = ShardCache(
                tmp_path / "cache", 1000, known={f"{address}/{name}": value for name, value in known.items()}
            )
            for number in (0, 1, 0, 2, 0):
                cache.open(f"{address}/{number}.tar").close()
                assert kept(cache) <= 1000
                time.sleep(0.01)
            assert Counter(state.requests) == {"0.tar": 1, "1.tar": 1, "2.tar": 1}
            cache.open(f"{address}/1.tar").close()
            assert state.requests.count("1.tar") == 2, "it was removed for 2.tar"
            reading = cache.open(f"{address}/1.tar")
            assert cache._have(f"{address}/3.tar", 0.0) is None, "what is read stays"
            reading.close()
            cache.open(f"{address}/3.tar").close()
            assert kept(cache) == 900

    def test_without_room_a_file_is_read_into_memory(self, served, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(sources, "_PATIENCE", 0.05)
        write(served, [600, 700, 2000])
        with serving(served) as (address, _):
            cache = ShardCache(tmp_path / "cache", 1000)
            with cache.open(f"{address}/0.tar"):
                for name in ("1.tar", "2.tar"):
                    with cache.open(f"{address}/{name}") as file:
                        assert file.read() == (served / name).read_bytes()
                    assert kept(cache) == 600
        assert "2.tar has 2000 bytes, more than the cache's 1000" in caplog.text
        assert caplog.text.count("is read into memory: there is no room for it in") == 2

    def test_is_fetched_once_by_several(self, served, tmp_path):
        write(served, [500_000])
        with serving(served) as (address, state):
            caches = [ShardCache(tmp_path / "cache") for _ in range(6)]
            threads = [threading.Thread(target=lambda c=c: c.open(f"{address}/0.tar").close()) for c in caches]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert state.requests.count("0.tar") <= 7, "one fetches; others may ask for the size"
            assert kept(caches[0]) == 500_000

    def test_is_filled_ahead(self, served, tmp_path):
        known = write(served, [500, 600])
        with serving(served) as (address, state):
            cache = ShardCache(tmp_path / "c", known={f"{address}/{name}": value for name, value in known.items()})
            cache.fetch_ahead([f"{address}/0.tar", f"{address}/none.tar", f"{address}/1.tar"])
            end = time.monotonic() + 30
            while (kept(cache) < 1100 or len(state.requests) < 3) and time.monotonic() < end:
                time.sleep(0.01)
            count = len(state.requests)
            cache.open(f"{address}/1.tar").close()
            assert len(state.requests) == count

    def test_what_a_killed_process_left_is_removed(self, served, tmp_path):
        write(served, [600])
        with serving(served) as (address, _):
            cache = ShardCache(tmp_path / "cache", 1000)
            cache.folder.mkdir()
            (cache.folder / "x.tar.part").write_bytes(bytes(900))
            cache.open(f"{address}/0.tar").close()
            assert kept(cache) == 600

    def test_exception(self, tmp_path):
        with pytest.raises(ValueError, match="limit 0 and attempts 6"):
            ShardCache(tmp_path, 0)
        with pytest.raises(DataError, match="cannot open nothing://a/b"):
            ShardCache(tmp_path).open("nothing://a/b")

    @pytest.mark.parametrize(("address", "package"), [("s3://a/b.tar", "s3fs"), ("gs://a/b.tar", "gcsfs")])
    def test_a_package_is_missing(self, address, package, tmp_path, monkeypatch):
        monkeypatch.delitem(_registry, address[:2], raising=False)  # a class that is there already
        monkeypatch.setitem(sys.modules, package, None)
        message = rf"shards at {address[:2]}:// addresses need {package}; install kornia-mvit\[stream\]"
        with pytest.raises(ImportError, match=message):
            ShardCache(tmp_path).open(address)

    def test_addresses(self):
        assert [is_address(name) for name in ("hf://a/b", "C:/a.tar", "pipe:cat x://y", "a.tar")] == [
            True, False, False, False
        ]  # fmt: skip


def indexed(folder, sizes):
    """Shards in a folder, with an index."""
    paths = [Path(shard) for shard in make_shards(folder, sizes)]
    entries = [
        ShardEntry(p.name, size, p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
        for p, size in zip(paths, sizes, strict=True)
    ]
    ShardIndex("label", ("even", "odd"), {"train": entries, "val": entries[:1]}).write(folder)
    return paths


def epoch(data):
    data.setup()
    return [
        meta["path"].partition("//")[2].partition("/")[2] for batch in data.train_dataloader() for meta in batch.meta
    ]


class TestAddresses:
    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
    def test_an_index(self, workers, served, tmp_path):
        indexed(served, [6, 4, 5])
        with serving(served) as (address, state):
            options = {"batch_size": 5, "num_workers": workers, "storage_size": 8, "cache": str(tmp_path / "cache")}
            data = ShardData(f"{address}/index.json", **options)
            assert data.class_names == ("even", "odd")
            seen = epoch(data)
            assert len(seen) == len(set(seen)) == 15
            assert [len(batch) for batch in data.val_dataloader()] == [5, 1]
            assert Counter(name for name in state.requests if name.endswith(".tar")) == {
                f"00{k}-0.tar": 1 for k in range(3)
            }

    def test_names_with_braces_and_sizes(self, served, tmp_path):
        make_shards(served, [6, 4, 5])
        with serving(served) as (address, _):
            assert json.loads(read_address(f"{address}/sizes.json")) == {
                "000-0.tar": 6, "001-0.tar": 4, "002-0.tar": 5
            }  # fmt: skip
            shards = find_shards(f"{address}/00{{0..2}}-0.tar")
            assert count_shards(shards, f"{address}/sizes.json")[0] == dict(zip(shards, (6, 4, 5), strict=True))
            data = ShardData(
                f"{address}/00{{0..2}}-0.tar", f"{address}/000-0.tar", 5, 0, 8, num_classes=2,
                sizes=f"{address}/sizes.json", cache=str(tmp_path / "cache"),
            )  # fmt: skip
            assert len(set(epoch(data))) == 15

    def test_a_shard_that_cannot_be_had(self, served, tmp_path):
        paths = indexed(served, [6, 4, 5])
        paths[1].write_bytes(paths[1].read_bytes().replace(b"IHDR", b"IDHR"))
        options = {"batch_size": 3, "num_workers": 0, "storage_size": 8, "attempts": 1}
        with serving(served) as (address, _):
            data = ShardData(f"{address}/index.json", cache=str(tmp_path / "a"), **options)
            with pytest.raises(DataError, match=r"001-0\.tar: its checksum is another one, after 1 attempts"):
                epoch(data)
            data = ShardData(f"{address}/index.json", cache=str(tmp_path / "b"), on_error="skip", **options)
            with pytest.warns(UserWarning, match=r"skipped, as number 1: .*001-0\.tar: its checksum"):
                seen = epoch(data)
            assert len(seen) == 15, "others are repeated"
            assert len(set(seen)) == 11
            assert len(data.skipped) == 1


PROGRAM = """
import json, logging, sys
from kornia_mvit.data.loading.index import ShardIndex
from kornia_mvit.data.loading.shards import ShardFiles
from kornia_mvit.data.loading.sources import ShardCache
from kornia_mvit.data.loading.streams import ShardBatches, ShardLoader

if __name__ == "__main__":
    logging.basicConfig(level="WARNING", format="LOG %(message)s")
    address, folder, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    index = ShardIndex.read(f"{address}/index.json")
    entries = index.splits["train"]
    known = {f"{address}/{e.name}": (e.bytes, e.sha256) for e in entries}
    cache = ShardCache(folder, int(sys.argv[4]), pause=0.05, stall=1.0, known=known)
    files = ShardFiles({f"{address}/{e.name}": e.samples for e in entries}, index.class_names, cache=cache)
    batches = ShardBatches(files, 4, drop_last=False, num_replicas=2, rank=rank)
    names = [meta["path"] for batch in ShardLoader(batches, num_workers=2) for meta in batch.meta]
    print(json.dumps(names))
"""


def run_epoch(folder, address, environment, limit):
    """Read an epoch by two processes with two workers each; what they print, and the most that their cache held."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | environment
    cache, program, most = folder / "cache", folder / "run.py", 0
    program.write_text(PROGRAM)
    runs = [
        subprocess.Popen(
            [sys.executable, str(program), address, str(cache), str(rank), str(limit)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    end = time.monotonic() + 300
    while any(run.poll() is None for run in runs):
        assert time.monotonic() < end
        total = 0
        for path in cache.iterdir() if cache.exists() else ():
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
        most = max(most, total)
        time.sleep(0.005)
    texts = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], texts
    return texts, most


def check_epoch(texts, most, limit, sizes, state):
    """Each sample once but for one that evens out the processes, each fault in the log, the cache within its bound."""
    seen = Counter(name for out, _ in texts for name in json.loads(out.splitlines()[-1]))
    assert len(seen) == sum(sizes)
    assert seen.total() - len(seen) <= 1
    assert 0 < most <= limit
    assert set(state.told) == set(FAULTS)
    logged = sum(text.count("LOG http") + text.count("LOG s3") for _, text in texts)
    assert logged >= len(state.told), "each fault has a line"


@pytest.mark.long
@pytest.mark.processes
def test_four_processes_and_a_server_that_fails(served, tmp_path):
    sizes = [3 + 7 * k % 11 for k in range(40)]
    limit = 6 * max(path.stat().st_size for path in indexed(served, sizes))
    with serving(served, share=0.05, seed=42, stall=3.0) as (address, state):
        texts, most = run_epoch(tmp_path, address, {}, limit)
    check_epoch(texts, most, limit, sizes, state)
