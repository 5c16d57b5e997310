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
