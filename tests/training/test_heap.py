import os
import subprocess
import sys
from contextlib import nullcontext

import pytest

from kornia_mvit.training import ClassificationTask, callbacks, heap
from tests.training.test_tasks import Tiny, Tones, trainer

# In a process of its own, as malloc goes by what was freed before; the file alone, as PyTorch takes seconds.
START = f"""
import os, resource, runpy
heap = runpy.run_path({heap.__file__!r})
keep, release = heap["keep_freed_memory"], heap["release_freed_memory"]

def count_faults():
    "How many pages the system clears for 64 MiB, the second time that they are asked for."
    b"x" * 2**26
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def is_kept():
    "Whether that is under half of them, were they of 2 MiB, the largest that there are."
    return count_faults() < 16
"""


def run(code: str, **env: str) -> list[str]:
    """What a process prints."""
    done = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
class TestHeap:
    def test_keeps_and_releases(self):
        code = "print(release(), is_kept(), keep(), is_kept(), release(), is_kept(), keep(), is_kept())"
        assert run(code) == ["False", "False", "True", "True", "True", "False", "True", "True"]

    def test_forked_processes_release(self):
        code = """
assert keep() and is_kept()
if not os.fork():
    print(is_kept(), flush=True)
    os._exit(0)
os.wait()
print(is_kept())
"""
        assert run(code) == ["False", "True"]

    @pytest.mark.parametrize(
        "setting", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=100"}]
    )
    def test_leaves_what_the_environment_sets(self, setting):
        assert run("print(keep(), release(), is_kept())", **setting) == ["False"] * 3

    def test_leaves_another_libc(self, monkeypatch):
        monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
        monkeypatch.setattr(heap, "_set", None)
        assert not heap.keep_freed_memory()
        assert not heap.release_freed_memory()

    @pytest.fixture
    def events(self, monkeypatch):
        """What callbacks ask for, in order."""
        found = []
        monkeypatch.setattr(callbacks, "keep_freed_memory", lambda: found.append("keep"))
        monkeypatch.setattr(callbacks, "release_freed_memory", lambda: found.append("release"))
        return found

    @pytest.mark.parametrize("fails", [False, True])
    def test_tasks_keep_while_they_train(self, fails, events, tmp_path, monkeypatch):
        def start(batch, index):
            events.append("step")
            if fails:
                raise RuntimeError("no")

        task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32)
        monkeypatch.setattr(task, "on_train_batch_start", start)
        run = trainer(tmp_path, limit_train_batches=2, limit_val_batches=0)
        with pytest.raises(RuntimeError, match="no") if fails else nullcontext():
            run.fit(task, Tones())
        assert events == ["keep", "step", *["step"] * (not fails), "release"]
