"""Changes random parts of the files that runs leave, and looks at what the commands that read them say.

python scripts/mutate_files.py --count 2000 --seed 0

Each time one file of a finished or an unfinished run, its backbone, its rows or the caches is damaged, and a command
that reads it is run. Right is the same result as without the damage, or one sentence that names the file or its folder.
Ends with exit code 1 if anything else happened, after printing what.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from petl_bench import cli
from petl_bench.backbones.load import open_backbone
from petl_bench.config import RunConfig, load_config
from petl_bench.errors import Interrupted, RequestError, RunError
from petl_bench.process import print_error, setup_logging
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.training.loop import TrainingLoop

FINISHED = ("lora", "full")
# What tells that a message was not meant for a user.
UNCLEAR = re.compile(r"Traceback|shows where|\b[A-Za-z]*Error: ")


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, its result, and its messages."""

    code: int
    result: str
    messages: str


@dataclass(frozen=True)
class Reader:
    """A command, the files that it reads, and how it may do without one of them.

    Attributes:
        files: Patterns below the working folder.
        command: Runs it; prints its result, and returns its exit code.
        without: Whether the result may be another one with exit code 0, if the messages name what is left out.
        note: What the result itself says where it leaves something out.
    """

    files: tuple[str, ...]
    command: Callable[[], int]
    without: bool = False
    note: str | None = None


def watched(command: Callable[[], int]) -> Outcome:
    """Runs a command in this process, with its output and messages kept."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        setup_logging()
        try:
            code = command()
        except SystemExit as error:
            code = int(error.code or 0)
        except Exception as error:
            code = 1
            print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
    return Outcome(code, out.getvalue(), err.getvalue())


def mutate(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Returns what was done, and the changed content."""
    position = rng.randrange(len(content))
    end = min(len(content), position + rng.choice((1, 2, 8, 64, 1000)))
    digits = [match.start() for match in re.finditer(rb"\d", content)]
    keys = list(re.finditer(rb'"(\w+)"\s*:', content))
    kind = rng.choice(("flip", "flip", "digit", "key", "truncate", "remove", "zero", "repeat", "noise"))
    if kind == "digit" and digits:
        at = rng.choice(digits)
        other = (int(content[at : at + 1]) + rng.randint(1, 9)) % 10
        return kind, content[:at] + b"%d" % other + content[at + 1 :]
    if kind == "key" and keys:
        start, stop = rng.choice(keys).span(1)
        return kind, content[:start] + rng.choice((b"x", b"", content[start:stop] + b"_")) + content[stop:]
    if kind == "truncate":
        return kind, content[:position]
    if kind == "remove":
        return kind, content[:position] + content[end:]
    if kind == "zero":
        return kind, content[:position] + bytes(end - position) + content[end:]
    if kind == "repeat":
        return kind, content[:end] + content[position:end] + content[end:]
    if kind == "noise":
        return kind, content[:position] + rng.randbytes(end - position) + content[end:]
    return "flip", content[:position] + bytes([content[position] ^ (1 << rng.randrange(8))]) + content[position + 1 :]


def prepare(root: Path) -> dict[str, Reader]:
    """Makes a backbone, rows, two finished runs and an unfinished one; returns the commands that read them."""
    os.environ["PETL_BENCH_CACHE"] = str(root / "cache")
    plain = load_config(["backbone=tiny_bert", "backbone.architecture.num_hidden_layers=2"])
    backbone = open_backbone(plain.backbone, plain.layers)
    backbone.build_model(2).save_pretrained(root / "base")
    backbone.load_tokenizer().save_pretrained(str(root / "base"))
    for name, count in (("train", 48), ("validation", 24)):
        words = ["good" if i % 2 else "bad" for i in range(count)]
        lines = [f"{word} row {i} of {name},{word}" for i, word in enumerate(words)]
        (root / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")

    def config(*overrides: str) -> RunConfig:
        return load_config(
            [
                *("backbone=tiny_bert", "backbone.weights=pretrained", f"backbone.path={root / 'base'}"),
                *("task=custom", f"task.train_file={root / 'train.csv'}"),
                *(f"task.validation_file={root / 'validation.csv'}", "task.max_length=16"),
                *("train.batch_size=16", "measure.ledger=false", "measure.inference=false", *overrides),
            ]
        )

    for name in FINISHED:
        # So that the two disagree on some rows, whose texts `compare` then looks up.
        length = ("train.epochs=12", "train.learning_rate=2e-3") if name == "full" else ("train.epochs=1",)
        cfg = config(f"method={name}", *length, f"runs_dir={root / 'made'}")
        run(cfg)
        identify(cfg).folder.rename(root / name)
    unfinished = config(
        *("method=lora", "layers=top", "layers.k=1", "train.epochs=2", "train.cache=disk", "train.seed=1"),
        *("train.checkpoint_seconds=0", f"runs_dir={root / 'unfinished'}"),
    )
    _interrupted(unfinished, after=4)

    def predict(name: str) -> Callable[[], int]:
        return lambda: cli.main(["predict", str(root / name), "--text", "this is good", "--json"])

    compared = [str(root / name) for name in FINISHED]
    stored = ("adapter_config.json", "adapter_model.safetensors")
    return {
        "report": Reader(("*/result.json",), lambda: cli.main(["report", *compared, "--format", "csv"]), without=True),
        "predict, adapter": Reader(("lora/result.json", *(f"lora/adapter/{name}" for name in stored)), predict("lora")),
        "predict, model": Reader(("full/model/*",), predict("full")),
        "predict, backbone": Reader(("base/*",), predict("lora")),
        "compare": Reader(("*/predictions.parquet", "*/result.json"), lambda: cli.main(["compare", *compared])),
        "compare, rows": Reader(
            *(("validation.csv",), lambda: cli.main(["compare", *compared])),
            without=True,
            note="the texts of the rows cannot be shown",
        ),
        "run, checkpoint": Reader(
            ("unfinished/*/checkpoint/*", "unfinished/*/result.json"), lambda: _resume(unfinished)
        ),
        "run, caches": Reader(("cache/tokens/*.npz", "cache/frozen/*.[sj]*"), lambda: _resume(unfinished)),
    }


def _interrupted(cfg: RunConfig, after: int) -> None:
    update = TrainingLoop._update

    def interrupting(loop: TrainingLoop, indices: object) -> None:
        if loop.state.progress.num_steps == after:
            raise Interrupted(15)
        update(loop, indices)

    with patch.object(TrainingLoop, "_update", interrupting), contextlib.suppress(Interrupted):
        run(cfg)


def _resume(cfg: RunConfig) -> int:
    """Finishes the unfinished run, and prints everything that must be the same however it was interrupted."""
    try:
        record = run(cfg)
    except (RequestError, RunError) as error:
        print_error(error)
        return error.exit_code
    weights = identify(cfg).folder / "adapter" / "adapter_model.safetensors"
    history = [(entry.step, entry.train_loss, entry.scores) for entry in record.history]
    print(record.scores, history, hashlib.sha256(weights.read_bytes()).hexdigest())
    return 0


def _restore(kept: Path, root: Path) -> None:
    """Puts back what a run changes."""
    for part in ("unfinished", "cache"):
        shutil.rmtree(root / part)
        shutil.copytree(kept / part, root / part)


def judge(reader: Reader, file: Path, wanted: Outcome, found: Outcome) -> str:
    """Returns `told`, `the same`, or what is wrong."""
    named = file.name in found.messages or str(file.parent) in found.messages
    named = named or (reader.note is not None and reader.note in found.result)
    if UNCLEAR.search(found.messages):
        return "no clear sentence"
    if found.code == 0 and found.result == wanted.result:
        return "told" if named else "the same"
    if not named:
        return "other, without a word" if found.code == 0 else "told without the file's name"
    return "told" if found.code in (1, 2) or reader.without else "other, though told"


def main() -> int:
    """Mutates, runs, judges and counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="number of mutations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311 (no secret depends on it)
    counts, wrong = Counter[tuple[str, str]](), 0
    logging.captureWarnings(True)
    with tempfile.TemporaryDirectory() as folder:
        root, kept = Path(folder) / "work", Path(folder) / "kept"
        root.mkdir()
        readers = prepare(root)
        shutil.copytree(root, kept)
        wanted = {}
        for name, reader in readers.items():
            wanted[name] = watched(reader.command)
            assert wanted[name].code == 0, (name, wanted[name])
            assert reader.note is None or "of validation" in wanted[name].result, "no texts are shown"
            _restore(kept, root)
        for number in range(options.count):
            name = rng.choice(list(readers))
            reader = readers[name]
            pattern = rng.choice(reader.files)
            file = rng.choice(sorted(file for file in root.glob(pattern) if file.stat().st_size))
            whole = file.read_bytes()
            kind, damaged = mutate(whole, rng)
            file.write_bytes(damaged)
            found = watched(reader.command)
            verdict = judge(reader, file, wanted[name], found) if damaged != whole else "the same"
            if name.startswith("run"):
                _restore(kept, root)
            file.write_bytes(whole)
            counts[name, verdict] += 1
            if verdict not in ("told", "the same"):
                wrong += 1
                print(f"{number}: {kind} in {file.relative_to(root)}: {verdict}\n  {found}", flush=True)
    for (name, verdict), count in sorted(counts.items()):
        print(f"{count:6d}  {name}: {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(code)
