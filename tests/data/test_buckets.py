"""Shards from s3:// addresses, of a server of moto's on loopback that fails now and then."""

import hashlib
from collections import Counter

import pytest

from kornia_mvit.data.loading.sources import ShardCache, _Fetch
from kornia_mvit.data.reading import DataError
from kornia_mvit.training.datamodules import ShardData
from tests.data.serving import FAULTS, serving_buckets
from tests.data.test_sources import check_epoch, epoch, indexed, run_epoch


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


@pytest.fixture
def enter(monkeypatch):
    """Lead s3:// addresses of this process to a server, as its environment says."""
    import s3fs

    def set_environment(environment):
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    yield set_environment
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_has_no_attempts_of_its_own(enter):
    system, path = _Fetch(3, 0.1, 7.0).system("s3://bucket/a.tar")
    assert (path, system.retries) == ("bucket/a.tar", 1)
    assert system.config_kwargs == {
        "connect_timeout": 7.0, "read_timeout": 7.0, "retries": {"total_max_attempts": 1}
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_another_attempt_follows_a_fault(fault, served, tmp_path, caplog, enter):
    content = bytes(range(256)) * 1200
    (served / "0.tar").write_bytes(content)
    known = {f"s3://{fault}s/0.tar": (len(content), hashlib.sha256(content).hexdigest())}
    with serving_buckets(served, f"{fault}s", faults=[fault, fault], stall=1.0) as (environment, state):
        enter(environment)
        cache = ShardCache(tmp_path / "cache", pause=0.01, stall=0.3, known=known)
        with cache.open(f"s3://{fault}s/0.tar") as file:
            assert file.read() == content
        assert state.told == [fault, fault]
        gets = 1 if fault == "refuse" else 3  # a refusal is for whatever comes first
        assert Counter(state.requests) == {f"HEAD /{fault}s/0.tar": 3, f"GET /{fault}s/0.tar": gets}
    told = [record.getMessage() for record in caplog.records if record.name.startswith("kornia_mvit")]
    assert len(told) == 2
    assert all(line.startswith(f"s3://{fault}s/0.tar: ") for line in told)


@pytest.mark.long
def test_an_index(served, tmp_path, enter):
    indexed(served, [6, 4, 5])
    with serving_buckets(served, "indexed") as (environment, state):
        enter(environment)
        data = ShardData("s3://indexed/index.json", None, 5, 0, 8, cache=str(tmp_path / "cache"))
        assert data.class_names == ("even", "odd")
        seen = epoch(data)
        assert len(seen) == len(set(seen)) == 15
        assert Counter(name for name in state.requests if name.startswith("GET")) == {
            f"GET /indexed/00{k}-0.tar": 1 for k in range(3)
        }
        with pytest.raises(DataError, match=r"s3://indexed/none\.tar: .*, after 1 attempts"):
            ShardCache(tmp_path / "other").open("s3://indexed/none.tar")


@pytest.mark.long
def test_without_credentials_there_is_one_attempt(tmp_path, enter, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    nowhere = {"AWS_CONFIG_FILE": str(tmp_path), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path)}
    enter(nowhere | {"AWS_EC2_METADATA_DISABLED": "true"})
    with pytest.raises(DataError, match=r"s3://bucket/a\.tar: Unable to locate credentials, after 1 attempts"):
        ShardCache(tmp_path / "cache").open("s3://bucket/a.tar")


@pytest.mark.long
@pytest.mark.processes
def test_four_processes_and_buckets_that_fail(served, tmp_path):
    sizes = [3 + 7 * k % 11 for k in range(40)]
    limit = 6 * max(path.stat().st_size for path in indexed(served, sizes))
    with serving_buckets(served, "many", share=0.05, seed=42, stall=3.0) as (environment, state):
        texts, most = run_epoch(tmp_path, "s3://many", environment, limit)
    check_epoch(texts, most, limit, sizes, state)
