"""Make run_0_1_0.ckpt and run_0_1_0.json: a run that version 0.1.0 stopped in its second epoch, and what it did next.

Run from a checkout of version 0.1.0 (commit ccd7116), with the folder to write to:
``PYTHONPATH=. python .../tests/golden/make_run_0_1_0.py FOLDER``. Made with torch 2.14.1 and pytorch-lightning 2.6.6.
"""

import json
import shutil
import signal
import sys
from pathlib import Path

import torch

from kornia_mvit.training import EMA, ClassificationTask, ExactResume, SaveOnSignal
from kornia_mvit.training.resuming import Stopped
from tests.training.probes import SignalAt
from tests.training.test_tasks import Tiny, Tones, trainer


def run_until(folder: Path, step: int, checkpoint: Path | None = None) -> Path:
    torch.manual_seed(0)
    task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32, learning_rate=3e-3, head_factor=2.0)
    callbacks = [SignalAt(step, signal.SIGTERM), EMA(0.9), ExactResume(), SaveOnSignal()]
    try:
        trainer(folder, max_epochs=3, callbacks=callbacks).fit(task, Tones(), ckpt_path=checkpoint, weights_only=True)
    except Stopped as stopped:
        return stopped.checkpoint
    raise AssertionError("the run was not stopped")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    shutil.copy(run_until(folder / "first", 6), folder / "run_0_1_0.ckpt")
    task = ClassificationTask.load_from_checkpoint(folder / "run_0_1_0.ckpt", network=Tiny(), weights_only=True).eval()
    images = torch.linspace(0, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32)
    with torch.no_grad():
        logits = task(images).tolist()
    after = torch.load(run_until(folder / "second", 7, folder / "run_0_1_0.ckpt"), weights_only=True)
    parts = ("state_dict", "current_model_state")
    states = {part: {key: value.tolist() for key, value in after[part].items()} for part in parts}
    (folder / "run_0_1_0.json").write_text(json.dumps({"logits": logits, **states}))
