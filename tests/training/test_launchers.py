"""What processes do that torchrun started."""

import os
import socket

import torch

from kornia_mvit.training.launchers import meet_anew


class TestMeetAnew:
    def test_one_port_for_all_in_each_restart(self, monkeypatch):
        """The first process gives it, and the others take it; what the agent's store has of before is left behind."""
        server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ports = {}
        for restart in ("1", "2"):
            for rank in ("0", "1"):
                monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
                monkeypatch.setenv("MASTER_PORT", str(server.port))
                monkeypatch.setenv("WORLD_SIZE", "2")
                monkeypatch.setenv("RANK", rank)
                monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
                monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
                meet_anew()
                assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
                ports[restart, rank] = int(os.environ["MASTER_PORT"])
        for restart in ("1", "2"):
            assert ports[restart, "0"] == ports[restart, "1"] != server.port
            with socket.socket() as free:
                free.bind(("127.0.0.1", ports[restart, "0"]))  # nobody listens there yet

    def test_a_first_start_is_left_alone(self, monkeypatch):
        for kept, restart in (("True", "0"), ("False", "3")):
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", kept)
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
            monkeypatch.setenv("MASTER_PORT", "1")
            meet_anew()
            assert os.environ["MASTER_PORT"] == "1"
            assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == kept
