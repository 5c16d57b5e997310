"""What `make gpu` runs, in small and on a CPU, so that it works on the day when there is a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_every_part_writes_its_rows(tmp_path):
    found = run("--device", "cpu", "--short", "--minutes", "12", "--out", str(tmp_path))
    assert found.returncode == 0, found.stdout + found.stderr
    rows = {path.stem: json.loads(path.read_text())["rows"] for path in tmp_path.iterdir()}
    assert set(rows) == {"gpu-tests-cpu", "speed-cpu", "pipeline-cpu", "memory-cpu", "waits-cpu"}
    assert rows["gpu-tests-cpu"][0]["status"] == 0
    assert "11 passed" in rows["gpu-tests-cpu"][0]["summary"]
    networks = {row["network"] for row in rows["speed-cpu"] if row["images_a_second"] > 0}
    assert networks == {"ours", "timm", "transformers"}
    assert {row["policy"] for row in rows["pipeline-cpu"] if row["what"] == "pipeline"} == {
        "classification_train",
        "classification_strong",
        "segmentation_train",
        "detection_train",
    }


@pytest.mark.long
def test_rows_stay_where_time_runs_out(tmp_path):
    found = run("--device", "cpu", "--short", "--parts", "waits", "--minutes", "0.02", "--out", str(tmp_path))
    assert found.returncode == 1
    assert "these did not end well: waits" in found.stderr
    assert json.loads((tmp_path / "waits-cpu.json").read_text())["rows"][-1]["ended"] == "stopped after 1 s"


def test_unknown_part_is_named():
    found = run("--parts", "tests,sped")
    assert found.returncode == 1
    assert "'sped'" in found.stderr
