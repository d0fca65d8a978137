"""Converts a checkpoint whose weights are pickled (`pytorch_model.bin`) to safetensors, once.

    python scripts/convert_to_safetensors.py FOLDER OUT

FOLDER is a checkpoint in the Hugging Face format; OUT then serves as `backbone.path=OUT`. Only tensors are read
(`torch.load(..., weights_only=True)`): a file that holds anything else is refused.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

PICKLED = "pytorch_model.bin"


def convert(folder: Path, out: Path) -> None:
    """Writes `out` with the same files, the weights as `model.safetensors`."""
    tensors = torch.load(folder / PICKLED, map_location="cpu", weights_only=True)
    out.mkdir(parents=True, exist_ok=True)
    # Tied tensors share memory, which safetensors does not keep.
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, out / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt", ".model"):
            shutil.copy(file, out / file.name)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if not (arguments.folder / PICKLED).is_file():
        parser.error(f"{arguments.folder} holds no {PICKLED}")
    convert(arguments.folder, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
