"""What the program puts out, measured through its command line alone, so that any refactoring can be held against it.

`python tests/snapshot/measure.py` writes snapshot.json anew: only after a change that is meant to change results.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from petl_bench.records.run_key import ADDED_LATER

HERE = Path(__file__).parent
SNAPSHOT = HERE / "snapshot.json"
RESULTS = HERE.parents[1] / "results"
# The committed results as the snapshot has them; the reports of all are held to their records by tests/test_results.py.
STUDIES = ("glue_small", "low_resource")

TINY = ("tiny_bert", "tiny_roberta", "tiny_modernbert")
METHODS = {
    "full": ["method=full"],
    "full_top": ["method=full", "layers=top", "layers.k=1"],
    "layer_selection": ["method=layer_selection", "layers.num_examples=32"],
    "head": ["method=head"],
    "head_pooler": ["method=head", "method.pooler=true"],
    "bitfit": ["method=bitfit"],
    "lora": ["method=lora"],
    "houlsby": ["method=houlsby"],
    "pfeiffer": ["method=houlsby", "method.variant=pfeiffer"],
    "parallel": ["method=houlsby", "method.variant=parallel"],
    "prefix": ["method=prefix"],
    "prefix_mlp": ["method=prefix", "method.mlp_hidden=16"],
    "fl_tuning": ["method=fl_tuning"],
    "coda": ["method=coda"],
    "coda_k2all": ["method=coda", "method.attention=k2all"],
    "flat": ["method=flat"],
    "lst": ["method=lst"],
    "ia3": ["method=peft", "method.type=IA3"],
    "adalora": ["method=peft", "method.type=ADALORA"],
}
NOT_ON = {("bitfit", "tiny_modernbert"), ("pfeiffer", "tiny_modernbert"), ("coda_k2all", "tiny_modernbert")}
RUNS = [(method, backbone) for method in METHODS for backbone in TINY if (method, backbone) not in NOT_ON]
# Two passes an update, three evaluations, a checkpoint after every update: all that the loop does.
SETTINGS = {
    "tiny": ["task.num_train_examples=48", "train.batch_size=16", "train.accumulation=2", "train.epochs=2",
             "train.evaluate_every=2", "train.checkpoint_seconds=0", "measure.inference=false"],
    "minilm": ["task.num_train_examples=128", "train.epochs=1", "measure.inference=false"],
}  # fmt: skip


def machine() -> dict[str, str]:
    """What floats may depend on to their last bits."""
    processor = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    ) if Path("/proc/cpuinfo").exists() else platform.machine()  # fmt: skip
    return {"processor": processor, "torch": version("torch"), "transformers": version("transformers")}


def command(*words: str) -> str:
    """Runs `petl-bench` in this process; returns what it prints."""
    from petl_bench.cli import main

    printed, full_error = io.StringIO(), os.environ.get("HYDRA_FULL_ERROR")
    arguments = sys.argv
    try:
        with contextlib.redirect_stdout(printed):
            code = main(list(words))
    finally:
        sys.argv = arguments
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    assert code == 0, f"petl-bench {' '.join(words)} ended with {code}"
    return printed.getvalue()


def run(method: str, backbone: str, runs_dir: str) -> dict[str, Any]:
    """One run: its key and settings, losses and scores, and a hash of the weights that it kept."""
    settings = SETTINGS["minilm" if backbone == "minilm" else "tiny"]
    words = [f"backbone={backbone}", "task=demo", *METHODS[method], *settings, f"runs_dir={runs_dir}"]
    record = json.loads(command("run", "--json", *words))
    (folder,) = Path(runs_dir).glob(f"*-{record['run_key']}")
    weights = sorted(folder.glob("adapter/*.safetensors")) or sorted(folder.glob("model/*.safetensors"))
    history = [{key: one[key] for key in ("epoch", "step", "train_loss", "scores")} for one in record["history"]]
    config = {key: value for key, value in record["config"].items() if key not in ("runs_dir", "data_root", "measure")}
    # A setting that came later changes nothing as long as it has the value that was meant before.
    for (group, name), default in ADDED_LATER.items():
        if config[group].get(name) == default:
            del config[group][name]
    # It came later, too, and is not in the key.
    del config["backbone"]["license"]
    return {
        "run_key": record["run_key"],
        "settings": sorted(leaves(config)),
        "params": record["params"],
        "layers": record["layers"],
        "history": history,
        "scores": record["scores"],
        "tensors": [digest(file.read_bytes()) for file in weights],
        "estimate": numbers(record["memory"], without=("process", "held")),
        "flops": numbers(record["flops"]),
    }


def plans(backbone: str) -> dict[str, list[float]]:
    """What `petl-bench plan` estimates, by method."""
    rows = json.loads(
        command("plan", "--json", "--budget", "2GiB", "task=demo", f"backbone={backbone}", "train.batch_size=8")
    )
    return {row["label"]: numbers(row) for row in rows}


def reports() -> dict[str, Any]:
    """The tables of the committed results, without the names of their columns."""
    found: dict[str, Any] = {}
    for study in STUDIES:
        folder = str(RESULTS / study)
        content = json.loads(command("report", folder, "--format", "json"))
        for kind, rows in content.items():
            if isinstance(rows, list):
                found[f"{study} {kind}"] = [numbers(row) for row in rows]
        table = list(csv.reader(io.StringIO(command("report", folder, "--format", "csv"))))
        found[f"{study} csv"] = [sorted(filter(None, row)) for row in table[1:]]
        lines = command("report", folder, "--format", "md").splitlines()
        # A header stands above its rule of dashes.
        header = {number for number, line in enumerate(lines[1:]) if line.startswith("| ---")}
        rows = [line for number, line in enumerate(lines) if line.startswith("|") and number not in header]
        found[f"{study} md"] = [sorted(cell.strip() for cell in row.split("|")) for row in rows if "| ---" not in row]
    return found


def leaves(content: Any, path: str = "") -> list[str]:
    """`path=value` of every value in nested containers."""
    if isinstance(content, dict):
        return [leaf for key, value in content.items() for leaf in leaves(value, f"{path}.{key}" if path else key)]
    return [f"{path}={json.dumps(content)}"]


def numbers(content: Any, without: tuple[str, ...] = ()) -> list[float]:
    """All numbers in nested containers, in ascending order; those under a key that starts with `without` left out."""
    if isinstance(content, dict):
        kept = [value for key, value in content.items() if not (without and key.startswith(without))]
        return sorted(number for value in kept for number in numbers(value, without))
    if isinstance(content, list):
        return sorted(number for value in content for number in numbers(value, without))
    return [content] if isinstance(content, int | float) and not isinstance(content, bool) else []


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def main() -> None:
    """Measures everything, one thread, in a cache of its own."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PETL_BENCH_CACHE"] = f"{folder}/cache"
        everything = [*RUNS, *((method, "minilm") for method in METHODS)]
        content = {
            "machine": machine(),
            "runs": {
                f"{method} {backbone}": run(method, backbone, f"{folder}/runs") for method, backbone in everything
            },
            "plans": {backbone: plans(backbone) for backbone in TINY},
            "reports": reports(),
        }
    SNAPSHOT.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
