"""What processes do that torchrun or SLURM started."""

import os
import socket

import pytest
import torch

from kornia_mvit.training.launchers import meet_anew, requeue


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


class TestRequeue:
    @pytest.mark.parametrize("array", [{}, {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}])
    def test_asks_for_the_job_or_the_element_of_an_array(self, array, tmp_path, monkeypatch, capsys):
        place = tmp_path / "scontrol"
        place.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
        place.chmod(0o755)
        for name, value in {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_JOB_ID": "73", **array}.items():
            monkeypatch.setenv(name, value)
        job = "70_3" if array else "73"
        assert requeue()
        assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
        assert f"job {job} again" in capsys.readouterr().err

    def test_says_why_it_will_not_run(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("SLURM_JOB_ID", "73")
        assert not requeue()
        assert "job 73" in (told := capsys.readouterr().err) and "scontrol" in told
        (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2\nexit 1\n")
        (tmp_path / "scontrol").chmod(0o755)
        assert not requeue()
        assert "presently disabled" in capsys.readouterr().err
