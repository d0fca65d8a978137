"""Every command and snippet of the README and the docs does what it says, in the folder that the clone lies in.

Models and rows are tiny and trainings last two updates; apart from that the commands run as they stand. A block that
cannot run here has a comment above it, `<!-- not run by the tests: REASON -->`.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

import chinese
from finished_runs import finished, table
from petl_bench import cli
from petl_bench.estimate import plan
from petl_bench.studies import choice
from petl_bench.tasks import table_files

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_read_parquet = table_files.read_parquet
# What makes a run small: a backbone of two layers for each architecture, few rows, two updates.
TINY = {"bert": "tiny_bert", "roberta": "tiny_roberta", "deberta-v2": "tiny_deberta_v2"}
SHAPE = ["num_hidden_layers=5", "max_position_embeddings=514"]
SMALL = [
    "train.max_steps=2",
    "train.batch_size=8",
    "train.eval_batch_size=512",
    "train.cache=off",
    "measure.ledger=false",
    "measure.inference=false",
    "measure.baselines=false",
]


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    file: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """Its commands, without comments, a command that goes on in the next line in one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def blocks(file: Path) -> list[Block]:
    text = file.read_text()
    marked = r"(?:<!-- not run by the tests: (?P<reason>[^>]+) -->\n)?"
    pattern = marked + r"^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```"
    return [
        Block(file, text[: found.start()].count("\n") + 1, found["language"], found["text"], found["reason"])
        for found in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL)
    ]


BLOCKS = [block for file in DOCUMENTS for block in blocks(file)]

pytestmark = pytest.mark.slow


def test_every_block_says_what_it_is():
    assert [block.name for block in BLOCKS if block.language not in ("bash", "python", "yaml", "toml", "text")] == []


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Folders with a small random encoder of each architecture, one of them of Chinese characters."""
    from petl_bench.backbones.load import open_backbone
    from petl_bench.config import load_config

    root = tmp_path_factory.mktemp("backbones")
    for architecture, option in TINY.items():
        # As many layers and positions as the commands speak of.
        cfg = load_config([f"backbone={option}", *(f"backbone.architecture.{one}" for one in SHAPE)])
        backbone = open_backbone(cfg.backbone, cfg.layers)
        backbone.build_model(2).save_pretrained(root / architecture)
        backbone.load_tokenizer().save_pretrained(root / architecture)
    chinese.save_backbone(root / "chinese", ["这是一个句子"], positions=514)
    return root


@pytest.fixture
def reader(tmp_path, monkeypatch, backbones):
    """Runs commands as somebody who reads one document, in a folder that holds the clone and files of their own."""
    monkeypatch.chdir(tmp_path)
    Path("petl_bench").symlink_to(ROOT)
    monkeypatch.setenv("PETL_BENCH_DATA", str(tmp_path / "DIR"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(choice, "estimate_all", lambda jobs: [plan._estimate(*job) for job in jobs])
    monkeypatch.setattr(table_files, "read_parquet", few_test_rows)
    _write_files()
    return Reader(backbones, monkeypatch)


def few_test_rows(files: list[Path], source: str, columns: Collection[str]) -> table_files.Table:
    """Reads parquet files; of those with test rows, every twentieth row."""
    table = _read_parquet(files, source, columns)
    return table.take(range(0, table.num_rows, 20)) if "test" in files[0].name else table


def _write_files() -> None:
    """The files that the documents speak of, and `DIR` with rows of public tasks as their publishers lay them out."""
    rows = table("classification", 90, 0).rename(columns={"question": "text"})
    rows.to_csv("tickets.csv", index=False)
    rows = rows[:24].copy()
    rows["ticket"] = [f"T-{number}" for number in range(len(rows))]
    rows["question"] = rows["answer"] = rows["text"]
    rows["verdict"] = rows["label"]
    for name in ("mine", "new", "train", "dev"):
        rows.to_csv(f"{name}.csv", index=False)
    rows[["text"]].to_csv("queries.csv", index=False)
    for name in ("train.csv", "dev.csv"):
        sentences = ["Bob\tB-person", "flies\tO", "to\tO", "New\tB-location", "York\tI-location", ""]
        Path(name).with_suffix(".conll").write_text("\n".join(sentences * 8))
        table("multilabel", 24, 0).rename(columns={"question": "text", "label": "labels"}).to_json(
            Path(name).with_suffix(".jsonl"), orient="records", lines=True
        )
    Path("test.conll").write_text(Path("dev.conll").read_text())
    Path("sentences.txt").write_text("".join(f"This is sentence {number}.\n" for number in range(80)))
    study = {"methods": {"full": [], "head": []}, "tasks": {"smoke": ["task=smoke"]}, "seeds": [0]}
    Path("mine.yaml").write_text(json.dumps({"description": "Ours", "settings": ["backbone=minilm"], **study}))
    here = Path("DIR")
    pairs = [{"sentence1": row, "sentence2": row, "label": n % 2, "idx": n} for n, row in enumerate(rows["text"])]
    for split in ("train", "validation"):
        for name in ("mrpc", "rte"):
            chinese.write_split(here, name, split, pairs)
    for split in ("train", "dev", "test"):
        news = [{"sentence": f"这是{n}", "label": str(100 + n % 2), "label_desc": ""} for n in range(16)]
        chinese.write_lines(here / "tnews" / f"{split}.json", news)
        chinese.write_lines(here / "afqmc" / f"{split}.json", [{**row, "label": str(row["label"])} for row in pairs])
        people = [{"text": "李四说", "label": {"name": {"李四": [[0, 1]]}}}] * 8
        chinese.write_lines(here / "cluener" / f"{split}.json", people)
    for number in range(5):
        inference = [{**row, "label": ("neutral", "entailment")[row["label"]]} for row in pairs]
        for split in (f"train_{number}", f"dev_{number}", "test_public"):
            chinese.write_lines(Path("FEWCLUE/datasets/ocnli") / f"{split}.json", inference)
    for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"):
        (here / name).write_text(Path("dev.conll").read_text())


class Reader:
    """Runs the commands of a document, one after the other."""

    def __init__(self, backbones: Path, monkeypatch):
        self.backbones, self.monkeypatch = backbones, monkeypatch

    def run_dir(self) -> str:
        """The run that an earlier command of the document made, else a run on texts like those of the files."""
        made = sorted(Path("runs").glob("*/result.json"), key=lambda record: record.stat().st_mtime_ns)
        return str(made[0].parent if made else finished())

    def named(self, word: str) -> str:
        """What a word of a command stands for here."""
        if word == "RUN_DIR":
            return self.run_dir()
        if word.startswith("method.init=runs/pretrained-"):
            return f"method.init={next(Path('runs').glob('pretrained-*'))}"
        if word in ("runs/RUN_A", "runs/RUN_B"):
            return str(finished())
        if word.startswith(("runs", "results")) and not Path(word).exists():
            # Runs of a study that this reader has made.
            kept = "low_resource" if "low_resource" in word else "glue_small"
            shutil.copytree(ROOT / "results" / kept, word)
            if word == "runs":
                # Of no study, and with the predictions of one of them.
                Path(word, "study.json").unlink()
                shutil.copytree(finished(), Path(word, finished().name))
        return word

    def small(self, words: list[str]) -> list[str]:
        """Settings that make a run, or the runs of a study, small."""
        chosen = " ".join(words)
        architecture = "deberta-v2" if "deberta" in chosen else "roberta" if "roberta_base" in chosen else "bert"
        if "chinese" in chosen or "wwm" in chosen:
            architecture = "chinese"
        return [*SMALL, f"backbone.path={self.backbones / architecture}", "backbone.sha256=null"]

    def do(self, command: str) -> None:
        """Runs a command as it stands, but for settings that make it small and names that stand for a folder."""
        words = shlex.split(command.removeprefix("export "))
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            name, _, value = words.pop(0).partition("=")
            self.monkeypatch.setenv(name, value)
        if not words:
            return
        assert words[0] == "petl-bench", f"{command}: not a command of petl-bench"
        arguments = [self.named(word) for word in words[1:]]
        if arguments[0] in ("run", "choose", "pretrain"):
            arguments += self.small(arguments)
            if arguments[0] == "choose":
                # Of so small a backbone one percent is less than any method trains.
                arguments += ["--methods", "lora,head", "--trainable", "50%"]
        elif arguments[0] == "plan":
            arguments.append("backbone.architecture.num_hidden_layers=2")
        elif arguments[0] == "study":
            arguments += [] if "--plan" in arguments else ["--dry-run"]
            # To count the costs of one method is enough.
            arguments += [] if any(word.startswith("methods=") for word in arguments) else ["methods=full"]
        try:
            code = cli.main(arguments)
        except SystemExit as stopped:
            code = stopped.code
        assert code == 0, command


WITH_COMMANDS = [file for file in DOCUMENTS if any(b.language == "bash" and not b.reason for b in blocks(file))]


@pytest.mark.parametrize("file", WITH_COMMANDS, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_run_in_the_folder_that_holds_the_clone(file, reader, estimates_here):
    for block in blocks(file):
        if block.language == "bash" and not block.reason:
            for command in block.commands():
                reader.do(command)


# What a snippet finds there: names, and what stands for a reader's own run and for the model from the hub.
BEFORE = {
    "docs/methods/houlsby.md": "from transformers import AutoModelForSequenceClassification as Model\n"
    "model = Model.from_pretrained('BASE')\n",
    "docs/reports.md": "from petl_bench.reports.fields import Field\n",
    "docs/tagging.md": "import pandas\n",
}
STANDS_FOR = {
    "sentence-transformers/all-MiniLM-L6-v2": "BASE",
    "runs/<run>": "RUN_DIR",
    "runs/...": "RUN_DIR",
}


def test_snippets_run_in_the_folder_that_holds_the_clone(reader):
    from transformers import AutoModel

    # The hub's encoder comes without a classifier, too.
    run, base = finished(), Path("encoder")
    AutoModel.from_pretrained(run.parent.parent / "base").save_pretrained(base)
    # Those of the guides to methods and backbones are tested beside what they make.
    snippets = [b for b in BLOCKS if b.language == "python" and not b.file.name.startswith("add-a-")]
    assert len(snippets) == 4
    for block in snippets:
        code = BEFORE.get(str(block.file.relative_to(ROOT)), "") + block.text
        for written, stands in STANDS_FOR.items():
            code = code.replace(written, stands)
        Path("snippet.py").write_text(code.replace("BASE", str(base)).replace("RUN_DIR", str(run)))
        done = subprocess.run([sys.executable, "snippet.py"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block.name}: {done.stderr}"
