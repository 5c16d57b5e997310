"""Two processes: what each draws, and what both draw alike."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import sys, torch, torch.distributed as dist
import kornia.augmentation as K
from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.ops.seeds import multiscale_sizes

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
pipeline = AugmentationPipeline(
    [K.RandomResizedCrop((48, 48)), K.RandomHorizontalFlip()], multi_scale=multiscale_sizes(32, 96, 3), seed=7
).train()
images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
torch.rand(int(sys.argv[2]) * 5)
out = []
for epoch in range(2):
    pipeline.set_epoch(epoch)
    out += [pipeline.augment(Batch(images)) for _ in range(4)]
torch.save([(batch.image, params["steps"][0]["data"]["src"]) for batch, params in out], sys.argv[3])
dist.destroy_process_group()
"""


def start(folder: Path) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder / "meet"), str(rank), str(folder / f"{rank}.pt")],
            env=environment,
        )
        for rank in range(2)
    ]
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.long
@pytest.mark.processes
def test_ranks_draw_apart_and_their_sizes_alike(tmp_path):
    """And both the same again, when they are started again with the same seed."""
    first, second = start(tmp_path / "a")
    sizes = [tuple(image.shape[-2:]) for image, _ in first]
    assert sizes == [tuple(image.shape[-2:]) for image, _ in second]
    assert len(set(sizes)) > 2
    for (image, crops), (other, other_crops) in zip(first, second, strict=True):
        assert not torch.equal(crops, other_crops)
        assert not torch.equal(image, other)
    again = start(tmp_path / "b")
    for run, same in zip((first, second), again, strict=True):
        for (image, crops), (other, other_crops) in zip(run, same, strict=True):
            assert torch.equal(image, other)
            assert torch.equal(crops, other_crops)


LOADING = """
import sys, torch, torch.distributed as dist
import kornia.augmentation as K
from torch.utils.data import DataLoader, Dataset
from kornia_mvit import AugmentationPipeline
from kornia_mvit.data.loading.loaders import ResumableLoader
from kornia_mvit.data.loading.samplers import EpochBatchSampler

class Noise(Dataset):
    def __init__(self):
        self.pipeline = AugmentationPipeline([K.RandomGaussianNoise(p=1.0), K.RandomRotation(20.0)]).train()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.pipeline(torch.full((1, 1, 8, 8), 0.5))

if __name__ == "__main__":
    _, meet, rank, file, method = sys.argv
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method="file://" + meet, rank=int(rank), world_size=2)
    usual = DataLoader(Noise(), batch_size=2, num_workers=1, multiprocessing_context=method)
    sampler = EpochBatchSampler(range(4), 1, shuffle=False)
    own = ResumableLoader(Noise(), sampler, num_workers=1, multiprocessing_context=method, collate_fn=torch.stack)
    alone = ResumableLoader(Noise(), sampler, collate_fn=torch.stack)
    drawn = [list(usual), list(usual), list(own), list(alone)]
    torch.save([torch.stack(batches).flatten(0, -5) for batches in drawn], file)
    dist.destroy_process_group()
"""


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_loaders_of_ranks_draw_apart(method, tmp_path):
    """Both ranks seed PyTorch alike, and start workers that may know nothing of the group."""
    program, meet = tmp_path / "loading.py", tmp_path / "meet"
    program.write_text(LOADING)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, program, meet, str(rank), tmp_path / f"{rank}.pt", method], env=environment)
        for rank in range(2)
    ]
    assert [run.wait(timeout=600) for run in runs] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    images = torch.cat([part.flatten(1) for drawn in found for part in drawn[:3]])
    assert len(images.unique(dim=0)) == len(images) == 20
    for drawn in found:
        assert torch.equal(drawn[2], drawn[3])
