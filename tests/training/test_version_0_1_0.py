"""A run that version 0.1.0 stopped in the middle: it loads, predicts and resumes as it did there.

``tests/golden/make_run_0_1_0.py``, run from a checkout of version 0.1.0, has written checkpoint and numbers.
"""

import json
import signal
from pathlib import Path

import pytest
import torch

from kornia_mvit.training import EMA, ClassificationTask, ExactResume, SaveOnSignal
from kornia_mvit.training.resuming import Stopped
from tests.training.probes import SignalAt
from tests.training.test_tasks import Tiny, Tones, trainer

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "run_0_1_0.ckpt"
EXPECTED = json.loads((GOLDEN / "run_0_1_0.json").read_text())


def test_predicts():
    task = ClassificationTask.load_from_checkpoint(CHECKPOINT, network=Tiny(), weights_only=True).eval()
    assert task.hparams["head_lr_multiplier"] == 2.0
    with torch.no_grad():
        logits = task(torch.linspace(0, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32))
    torch.testing.assert_close(logits, torch.tensor(EXPECTED["logits"]))


def test_resumes(tmp_path):
    task = ClassificationTask(num_classes=2, network=Tiny(), image_size=32, learning_rate=3e-3, head_lr_multiplier=2.0)
    callbacks = [SignalAt(7, signal.SIGTERM), EMA(0.9), ExactResume(), SaveOnSignal()]
    run = trainer(tmp_path, max_epochs=3, callbacks=callbacks)
    with pytest.raises(Stopped) as stopped:
        run.fit(task, Tones(), ckpt_path=CHECKPOINT, weights_only=True)
    after = torch.load(stopped.value.checkpoint, weights_only=True)
    assert after["global_step"] == 7
    # The gradient of the bias before batch normalisation is rounding alone, of which Adam makes whole steps.
    for name in ("state_dict", "current_model_state"):
        for key, expected in EXPECTED[name].items():
            wanted = torch.tensor(expected, dtype=after[name][key].dtype)
            torch.testing.assert_close(after[name][key], wanted, rtol=1e-5, atol=3e-3 if "0.bias" in key else 1e-5)
