"""What a process of a run does when torchrun, which started it, starts it again or is gone, or when SLURM is to.

References:
    - torchrun, https://docs.pytorch.org/docs/stable/elastic/run.html: the variables that it sets.
    - SLURM, https://slurm.schedmd.com/sbatch.html: ``--signal``, ``--requeue`` and the variables that it sets;
      https://slurm.schedmd.com/scontrol.html: ``requeue``.
"""

import os
import signal
import socket
import subprocess
import sys
import threading

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, though not in its __all__

__all__ = ["LauncherWatch", "meet_anew", "requeue"]

SECONDS = 2.0  # between two looks
GRACE = 120.0  # seconds to finish a step, or a validation, and to write the checkpoint


def meet_anew() -> None:
    """Let the processes that torchrun started again find each other by a store of their own.

    torchrun keeps one store over all its restarts: PyTorch 2.14's ``DynamicRendezvousHandler`` caches it. There a
    process that is quicker than another finds the address that the other had before, and fails to connect. So the first
    process tells the others by that store, under the number of the restart, a port for another one.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or restart == "0":
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False)
    key = f"kornia_mvit/port/{restart}/{os.environ['WORLD_SIZE']}"
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(key, str(free.getsockname()[1]))
    os.environ["MASTER_PORT"] = store.get(key).decode()  # which waits for it
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def requeue() -> bool:
    """Ask SLURM to run this process's job again, or its element of an array of jobs; print how that went.

    Returns:
        Whether SLURM will.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    try:
        run = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        reason = "" if run.returncode == 0 else run.stderr.strip() or f"exit status {run.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    told = f"SLURM will not run job {job} again, submit it anew: {reason}" if reason else f"SLURM runs job {job} again"
    print(f"kornia-mvit: {told}", file=sys.stderr, flush=True)
    return not reason


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
