"""What a process of a run does when the program that started it is gone.

References:
    - torchrun, https://docs.pytorch.org/docs/stable/elastic/run.html: the variables that it sets.
"""

import os
import signal
import sys
import threading

__all__ = ["LauncherWatch"]

SECONDS = 2.0  # between two looks
GRACE = 120.0  # seconds to finish a step, or a validation, and to write the checkpoint


class LauncherWatch:
    """End this process when torchrun, which started it, is gone, as one that was killed by SIGKILL.

    It would train on, and hold its device, with nobody to stop it. It gets SIGTERM, on which a run writes its
    checkpoint, and SIGKILL where it lives two minutes later, since it may wait for another process for ever. Without
    torchrun nothing is watched: a shell or a scheduler may end before what it started.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._over = threading.Event()

    def start(self) -> None:
        """Watch from now on, in a thread that ends with the process."""
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=self._watch, name="launcher watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()

    def _watch(self) -> None:
        while os.getppid() == self._parent:
            if self._over.wait(SECONDS):
                return
        print("kornia-mvit: torchrun, which started this process, is gone; it ends, too", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._over.wait(GRACE):
            os.kill(os.getpid(), signal.SIGKILL)
