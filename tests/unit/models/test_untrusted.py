"""Folders with an unsupported or untrusted format: quantised, adapters, GGUF, custom code."""

import json
import os
import sys

import pytest
from refusals import refuses
from spoiled import change, refused

from lit_prune.models import loading


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8", "unheard_of"])
def test_quantised_weights_are_refused(folder, method):
    change(folder, quantization_config={"quant_method": method, "bits": 4})
    assert method in refused(folder)


@pytest.mark.parametrize("alone", [True, False])
def test_adapters_are_refused(folder, alone):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "somewhere/else"}')
    if alone:
        (folder / "config.json").unlink()
    assert "adapter_config.json" in refused(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_gguf_alone_is_refused(folder, file):
    (folder / file).unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert "model.gguf" in refused(folder)


@pytest.mark.parametrize("part", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
def test_code_of_a_folder_is_never_run_and_nobody_is_asked(folder, part, monkeypatch):
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n")
    file = "tokenizer_config.json" if part == "AutoTokenizer" else "config.json"
    known = json.loads((folder / file).read_text())
    kind = {"tokenizer_class": "Own"} if part == "AutoTokenizer" else {"model_type": "unheard_of"}
    value = ["own.Own", None] if part == "AutoTokenizer" else "own.Own"
    (folder / file).write_text(json.dumps(known | kind | {"auto_map": {part: value}}))
    read, write = os.pipe()
    os.write(write, b"y\n")
    os.close(write)
    with os.fdopen(read) as answers:
        monkeypatch.setattr(sys, "stdin", answers)
        for load in (loading.load_tokenizer,) if part == "AutoTokenizer" else (loading.load_config, loading.load_model):
            with refuses(str(folder), file):
                load(str(folder))
        assert answers.read() == "y\n"
    assert not (folder / "ran").exists()
