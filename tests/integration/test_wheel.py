"""The wheel alone, without the checkout: it contains its profiles, its teacher, its records and its page."""

import os
import subprocess
import sys
import zipfile

import pytest
from paths import ROOT

SMALL = (
    "calibration.num_sequences=4", "calibration.seq_len=32", "evaluation.num_sequences=2", "evaluation.seq_len=32",
    "distill.seq_len=32",
    "distill.batch_size=1", "distill.max_steps=2", "distill.optimizer.warmup_steps=1",
    "corpus.max_tokens=200000",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_from_the_wheel_finds_all_it_needs(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    alone = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path / "site")}, "timeout": 300}
    where = [sys.executable, "-c", "import lit_prune; print(lit_prune.__file__)"]
    assert str(tmp_path) in subprocess.run(where, check=True, capture_output=True, text=True, **alone).stdout
    words = [word for setting in SMALL for word in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "lit_prune.experiments.loss_ablation",
        *words,
        "--seeds",
        "1",
        "--wandb",
        "disabled",
    ]
    said = subprocess.run(command, capture_output=True, text=True, **alone)
    assert said.returncode == 0, said.stderr
    assert "L_logits(KLD)" in said.stdout
    reads = "import lit_prune as lp; print(len(lp.load_report('loss_ablation', profile='laptop').frame))"
    recorded = [sys.executable, "-c", reads]
    assert int(subprocess.run(recorded, check=True, capture_output=True, text=True, **alone).stdout) >= 20
    (page,) = (tmp_path / "store").rglob("report.html")
    assert "Claims of the paper" in page.read_text()
