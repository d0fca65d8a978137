"""The scripts do what their first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_a_pickled_checkpoint_is_converted_and_loads(tmp_path):
    cfg = load_config(["backbone=tiny_roberta"])
    plain = open_backbone(cfg.backbone, cfg.layers)
    torch.manual_seed(0)
    model = plain.build_model(2)
    pickled, out = tmp_path / "pickled", tmp_path / "out"
    model.config.save_pretrained(pickled)
    plain.load_tokenizer().save_pretrained(str(pickled))
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    subprocess.run([sys.executable, SCRIPTS / "convert_to_safetensors.py", pickled, out], check=True)

    tensors = load_file(out / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    converted = load_config(["backbone=tiny_roberta", f"backbone.path={out}", "backbone.weights=pretrained"])
    loaded = open_backbone(converted.backbone, converted.layers)
    assert loaded.load_tokenizer()("text")["input_ids"] == plain.load_tokenizer()("text")["input_ids"]
    for name, tensor in loaded.build_model(2).roberta.state_dict().items():
        assert torch.equal(tensor, model.roberta.state_dict()[name]), name


def test_a_pickle_that_holds_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("ran",)

    torch.save(Harmful(), tmp_path / "pytorch_model.bin")
    done = subprocess.run(
        [sys.executable, SCRIPTS / "convert_to_safetensors.py", tmp_path, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "ran" not in done.stdout


@pytest.mark.slow
def test_random_damage_to_the_files_of_runs_is_told_or_harmless():
    done = subprocess.run(
        [sys.executable, SCRIPTS / "mutate_files.py", "--count", "100"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "told" in done.stdout
