"""Precision "auto" by the capabilities of the machine."""

import subprocess

import pytest

from lit_prune.config import precision
from lit_prune.config.precision import fastest_precision, resolve_precision


@pytest.fixture(autouse=True)
def probed_again():
    fastest_precision.cache_clear()
    yield
    fastest_precision.cache_clear()


def cpu(monkeypatch, tmp_path, flags):
    """A processor with these instruction sets and no GPU."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(precision._cpu_flags, "__defaults__", (cpuinfo,))
    monkeypatch.setattr(precision.shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 avx512f", "32-true"),
        ("avx512f avx512_bf16", "bf16-mixed"),
        ("amx_tile amx_bf16 amx_int8", "bf16-mixed"),
        ("amx_int8 avx512_vnni", "32-true"),
    ],
)
def test_auto_follows_the_instruction_sets_of_the_processor(monkeypatch, tmp_path, flags, expected):
    cpu(monkeypatch, tmp_path, flags)
    assert resolve_precision("auto") == expected
    assert (resolve_precision("32-true"), resolve_precision("bf16-mixed")) == ("32-true", "bf16-mixed")


def test_a_machine_that_does_not_list_them_computes_in_float32(monkeypatch, tmp_path):
    cpu(monkeypatch, tmp_path, "avx512_bf16")
    monkeypatch.setattr(precision._cpu_flags, "__defaults__", (tmp_path / "absent",))
    assert fastest_precision() == "32-true"


@pytest.mark.parametrize(
    ("shown", "visible", "expected"),
    [
        ("9.0\n", None, "bf16-mixed"),
        ("8.0\n7.0\n", None, "32-true"),
        ("7.5\n", "0", "32-true"),
        ("7.5\n", "", "bf16-mixed"),  # hidden: the processor computes
        ("No devices were found\n", None, "bf16-mixed"),
    ],
)
def test_auto_follows_the_oldest_gpu_before_the_processor(monkeypatch, tmp_path, shown, visible, expected):
    cpu(monkeypatch, tmp_path, "avx512_bf16")
    monkeypatch.setattr(precision.shutil, "which", lambda name: f"/usr/bin/{name}")
    run = lambda *arguments, **options: subprocess.CompletedProcess(arguments, 0, stdout=shown)  # noqa: E731
    monkeypatch.setattr(precision.subprocess, "run", run)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert fastest_precision() == expected
