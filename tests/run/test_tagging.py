"""Tagging runs: from the user's rows to scores, predictions and `predict`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import normalizers

from petl_bench import cli
from petl_bench.backbones.anatomy import LayersConfig
from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.records.predictions import PREDICTIONS_FILE, read_predictions
from petl_bench.records.store import RunFolder
from petl_bench.run.compare import compare_runs
from petl_bench.run.lifecycle import identify
from petl_bench.run.predict import Predictor
from petl_bench.run.run import run
from petl_bench.run.variability import variability, word_states
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import load_task, rows_of_texts
from petl_bench.training.batches import collate, loss_terms
from run.short_runs import FAST, write

NAMES, PLACES, OTHERS = ("ann", "bob", "eve"), ("rome", "oslo", "new york"), ("goes", "to", "and", "saw")


def sentences(count, seed):
    """Made sentences whose names are persons and whose places are locations: a byte tokenizer learns them at once."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words, tags = [], []
        for kind in rng.permutation(["per", "loc", "O", "O"]):
            found = rng.choice({"per": NAMES, "loc": PLACES, "O": OTHERS}[kind]).split()
            words += found
            tags += ["O"] if kind == "O" else [f"{'I' if i else 'B'}-{kind}" for i in range(len(found))]
        rows.append({"tokens": words, "tags": tags})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for number, (name, count) in enumerate({"train": 120, "dev": 40, "test": 120}.items()):
        write(folder / f"{name}.jsonl", sentences(count, number))
    return folder


@pytest.fixture(scope="module")
def request_of(files, tmp_path_factory):
    """Composes a short tagging run on these rows."""
    runs = tmp_path_factory.mktemp("runs")

    def compose(*overrides):
        base = [
            *("task=tagging", "backbone=tiny_bert", f"task.train_file={files / 'train.jsonl'}", f"runs_dir={runs}"),
            *(f"task.validation_file={files / 'dev.jsonl'}", f"task.test_file={files / 'test.jsonl'}", *FAST),
            "task.protocol=test",
            *("train.epochs=3", "train.learning_rate=1e-2", "task.max_length=24"),
        ]
        return load_config([*base, *overrides])

    return compose


@pytest.fixture(scope="module")
def done(request_of):
    """A finished run with LoRA: its config, record and folder."""
    cfg = request_of("method=lora")
    return cfg, run(cfg), identify(cfg).folder


def sets_of_entities(rows):
    """Entities by (sentence, type, first, last), by a reading of BIO tags of our own."""
    found = set()
    for number, tags in enumerate(rows):
        begin = None
        for place, tag in enumerate([*tags, "O"]):
            goes_on = begin is not None and tag == f"I-{begin[1]}"
            if begin is not None and not goes_on:
                found.add((number, begin[1], begin[0], place - 1))
                begin = None
            if tag != "O" and not goes_on:
                begin = (place, tag[2:])
    return found


def test_a_run_keeps_tags_from_which_its_scores_follow(done, files):
    _, record, folder = done
    table = pd.read_parquet(folder / PREDICTIONS_FILE)
    assert table.columns.tolist() == ["split", "row_id", "label", "predicted"]
    assert table["split"].value_counts().to_dict() == {"report": 120, "selection": 40}
    report = table[table["split"] == "report"]
    rows = [json.loads(line) for line in (files / "test.jsonl").read_text().splitlines()]
    assert [list(tags) for tags in report["label"]] == [row["tags"] for row in rows]
    gold, guessed = (sets_of_entities(report[column]) for column in ("label", "predicted"))
    right = len(gold & guessed)
    precision, recall = right / len(guessed), right / len(gold)
    assert record.selected_scores == pytest.approx(
        {
            "entity_f1": 2 * precision * recall / (precision + recall),
            "entity_precision": precision,
            "entity_recall": recall,
        }
    )
    assert record.selected_scores["entity_f1"] > 0.3
    by_type = record.tagging.types
    for kind in ("loc", "per"):
        of_type = [{one for one in found if one[1] == kind} for found in (gold, guessed)]
        assert by_type[kind].support == len(of_type[0])
        assert by_type[kind].recall == pytest.approx(len(of_type[0] & of_type[1]) / len(of_type[0]))
    assert record.protocol.selection_split == "validation"
    assert record.protocol.report_split == "test"
    assert record.data.rows_per_split == {"train": 120, "validation": 40, "test": 120}


def test_the_record_reads_back_and_other_files_are_other_runs(done, request_of, files, tmp_path):
    cfg, record, folder = done
    assert RunFolder(folder).finished() == record
    (tmp_path / "test.jsonl").write_text((files / "test.jsonl").read_text())
    assert identify(request_of("method=lora", f"task.test_file={tmp_path / 'test.jsonl'}")).key == record.run_key
    write(tmp_path / "other.jsonl", sentences(3, 7))
    assert identify(request_of("method=lora", f"task.test_file={tmp_path / 'other.jsonl'}")).key != record.run_key
    assert cfg.task.test_file is not None


def test_no_file_is_recorded_with_the_home_folder(request_of, files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    recorded = identify(request_of("method=lora")).config["task"]
    names = [recorded[f"{role}_file"] for role in ("train", "validation", "test")]
    assert names == ["~/train.jsonl", "~/dev.jsonl", "~/test.jsonl"]


def test_cut_words_and_entities_are_counted_and_scored_as_outside(request_of, files, caplog):
    cfg = request_of("method=head", "task.max_length=12", "train.max_steps=2")
    with caplog.at_level("WARNING"):
        record = run(cfg)
    rows = [json.loads(line) for line in (files / "test.jsonl").read_text().splitlines()]
    # The byte tokenizer makes a token of each character, and adds two of its own.
    seen = [[sum(map(len, row["tokens"][:place])) < 10 for place in range(len(row["tokens"]))] for row in rows]
    assert record.tagging.words_cut["test"] == sum(not one for row in seen for one in row) > 0
    of_entities = sets_of_entities(row["tags"] for row in rows)
    cut = sum(not all(seen[number][first : last + 1]) for number, _, first, last in of_entities)
    assert record.tagging.entities_cut["test"] == cut > 0
    assert f"test: {record.tagging.words_cut['test']} words and {cut} entities are cut" in caplog.text
    kept = read_predictions(identify(cfg).folder)
    hidden = [
        tag
        for tags, row in zip(kept.predicted, seen, strict=True)
        for tag, one in zip(tags, row, strict=True)
        if not one
    ]
    assert set(hidden) == {"O"}


def test_every_tagged_word_of_an_update_weighs_the_same(request_of):
    """With and without accumulation the gradient is that of the mean over all words; lengths differ."""

    def weights(accumulation):
        cfg = request_of("method=lora", f"train.accumulation={accumulation}", "train.max_steps=3", "train.seed=5",
                         "task.max_length=16", "train.batching=shuffled", "method.dropout=0",
                         "+backbone.architecture.hidden_dropout_prob=0",
                         "+backbone.architecture.attention_probs_dropout_prob=0")  # fmt: skip
        record = run(cfg)
        return record.history[-1].train_loss, read_adapter(identify(cfg).folder)

    (one_loss, one), (three_loss, three) = weights(1), weights(3)
    assert three_loss == pytest.approx(one_loss, rel=1e-5)
    for name, tensor in one.items():
        torch.testing.assert_close(three[name], tensor, rtol=1e-4, atol=1e-6)


def read_adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_terms_of_the_loss_and_labels_of_a_batch(request_of):
    cfg = request_of("method=head")
    task = load_task(cfg.task, None)
    tokenizer = open_backbone(cfg.backbone, LayersConfig(), task_type="tagging").load_tokenizer()
    rows = encode(task.train, tokenizer, 8, cached=False)
    indices = np.arange(4)
    batch = collate(rows, indices)
    assert batch.labels.shape == batch.inputs["input_ids"].shape
    assert loss_terms(rows, indices) == int((batch.labels >= 0).sum())
    assert loss_terms(rows, indices) < task.train.word_offsets[4]


def test_an_update_without_a_tagged_word_has_no_loss(request_of, files, tmp_path):
    # This tokenizer makes nothing of the only word of the first row, which is alone in its pass.
    rows = [{"tokens": ["\u200b"], "tags": ["O"]}, *sentences(7, 0)]
    backbone = open_backbone(request_of().backbone, LayersConfig(), task_type="tagging")
    tokenizer = backbone.load_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    model = backbone.build_model(5)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    file = write(tmp_path / "train.jsonl", rows)
    cfg = request_of("method=head", f"task.train_file={file}", "train.accumulation=8", "train.max_steps=2",
                     "backbone.weights=pretrained", f"backbone.path={tmp_path / 'base'}")  # fmt: skip
    record = run(cfg)
    assert record.tagging.words_cut["train"] == 1
    assert np.isfinite(record.history[-1].train_loss)


def test_cached_features_change_no_score(request_of):
    scores = []
    for cache in ("off", "memory"):
        record = run(request_of("method=houlsby", "layers=top", "layers.k=1", f"train.cache={cache}", "train.epochs=1"))
        assert record.frozen.layers == 1
        assert not record.frozen.first_token_only
        scores.append((record.history[-1].train_loss, record.scores.best))
    assert scores[0] == scores[1]


def test_predict_gives_entities_with_their_characters(done, predict):
    folder = done[2]
    texts = ["saw  ann and  new york", "goes", "", "bob to oslo"]
    lines = predict(folder, "--json", stdin="".join(f"{text}\n" for text in texts))
    found = [json.loads(line) for line in lines]
    assert [row["text"] for row in found] == texts
    for row in found:
        assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row["entities"])
    assert {"type": "per", "start": 5, "end": 8, "text": "ann"} in found[0]["entities"]
    table = predict(folder, stdin="".join(f"{text}\n" for text in texts))
    assert table[0] == "row\ttype\tstart\tend\ttext"
    expected = [(number, one) for number, row in enumerate(found, start=1) for one in row["entities"]]
    assert table[1:] == [
        f"{number}\t{one['type']}\t{one['start']}\t{one['end']}\t{' '.join(one['text'].split())}"
        for number, one in expected
    ]


def test_predict_on_a_file_gives_what_was_scored(done, files, predict):
    lines = predict(done[2], "--json", "--file", files / "test.jsonl")
    kept = read_predictions(done[2])
    for line, tags in zip(lines, kept.predicted, strict=True):
        row = json.loads(line)
        words = row["text"].split(" ")
        starts = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
        expected = [(kind, starts[first], starts[last] + len(words[last])) for _, kind, first, last in
                    sorted(sets_of_entities([tags]), key=lambda one: one[2])]  # fmt: skip
        assert [(one["type"], one["start"], one["end"]) for one in row["entities"]] == expected


def test_predict_reads_columns_without_tags(done, tmp_path, predict):
    (tmp_path / "new.conll").write_text("saw\nann\n\nbob\n")
    found = [json.loads(line) for line in predict(done[2], "--json", "--file", tmp_path / "new.conll")]
    assert [row["text"] for row in found] == ["saw ann", "bob"]


def test_a_whole_model_is_loaded_as_a_tagger(request_of):
    cfg = request_of("method=full", "train.epochs=1")
    record = run(cfg)
    predictor = Predictor(identify(cfg).folder)
    rows = load_task(cfg.task, None).report
    expected = read_predictions(identify(cfg).folder).predicted
    found = predictor.predict(rows)
    assert [len(one.entities) for one in found] == [len(sets_of_entities([tags])) for tags in expected]
    assert record.params.trainable_head == 32 * 5 + 5


def test_two_runs_are_compared_sentence_by_sentence(done, request_of, capsys):
    other = request_of("method=lora", "train.seed=1")
    run(other)
    found = compare_runs(done[2], identify(other).folder)
    assert found.rows == 120
    f1 = next(figure for figure in found.metrics if figure.name == "entity_f1")
    low, high = f1.interval
    assert low < f1.a - f1.b < high
    a, b = (read_predictions(folder) for folder in (done[2], identify(other).folder))
    same = [first == second for first, second in zip(a.predicted, b.predicted, strict=True)]
    assert found.agreement_percent == pytest.approx(100 * np.mean(same))
    assert len(found.differences) == same.count(False)
    assert set(found.differences[0].a.split()) <= {"O", "B-loc", "I-loc", "B-per", "I-per"}
    assert cli.main(["compare", str(done[2]), str(identify(other).folder)]) == 0
    assert "a label here is the tags of a sentence" in " ".join(capsys.readouterr().out.split())


def test_reports_test_over_seeds_and_sentences(done, request_of, capsys, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(done[2], runs / done[2].name)
    for method, seed in (("lora", 1), ("houlsby", 0), ("houlsby", 1)):
        cfg = request_of(f"method={method}", f"train.seed={seed}")
        run(cfg)
        shutil.copytree(identify(cfg).folder, runs / identify(cfg).folder.name)
    assert cli.main(["report", str(runs), "--format", "json", "--html", str(tmp_path / "page.html")]) == 0
    content = json.loads(capsys.readouterr().out)
    (test,) = content["comparisons"]
    assert (test["test"], test["rows"]) == ("seeds and rows", 120)
    assert 0 <= test["p"] <= 1
    assert "entity f1" in (tmp_path / "page.html").read_text()
    assert cli.main(["report", str(runs), "--rows"]) == 2
    assert "tables of classes and calibration are of tasks with one label a row" in capsys.readouterr().err


def test_layers_are_chosen_by_the_states_of_words(request_of, files):
    cfg = request_of("layers=variability", "method=full", "train.max_steps=2", "task.num_train_examples=40")
    record = run(cfg)
    task = load_task(cfg.task, None)
    backbone = open_backbone(cfg.backbone, LayersConfig())
    torch.manual_seed(cfg.train.seed)
    states, tags = word_states(backbone, task.train, cfg.task.max_length, 7, "cpu")
    # Each state is that of the model at the word's first token.
    torch.manual_seed(cfg.train.seed)
    encoder = backbone.build_model(2).eval().bert
    rows = encode(task.train, backbone.load_tokenizer(), cfg.task.max_length, cached=False)
    direct, expected = [], []
    for row in range(len(rows)):
        with torch.no_grad():
            ids = torch.from_numpy(rows.ids[rows.offsets[row] : rows.offsets[row + 1]].astype(np.int64))[None]
            hidden = encoder(input_ids=ids, output_hidden_states=True).hidden_states[2][0].numpy()
        labels = rows.labels[rows.offsets[row] : rows.offsets[row + 1]]
        direct.append(hidden[labels >= 0])
        expected.append(labels[labels >= 0])
    np.testing.assert_allclose(states[1], np.concatenate(direct), atol=1e-5)
    assert tags.tolist() == np.concatenate(expected).tolist()
    assert record.layers.variability[1] == pytest.approx(variability(states[1], tags), rel=1e-4)


def test_of_a_frequent_tag_only_some_words_are_looked_at(request_of, monkeypatch):
    monkeypatch.setattr("petl_bench.run.variability._WORDS_OF_A_TAG", 30)
    cfg = request_of()
    _, tags = word_states(open_backbone(cfg.backbone, LayersConfig()), load_task(cfg.task, None).train, 24, 16, "cpu")
    assert max(np.bincount(tags)) == 30


def test_rows_of_texts_are_those_of_the_task(request_of, multilabel_of):
    assert rows_of_texts((["a b"],), request_of().task).words == [["a", "b"]]
    assert rows_of_texts((["a b"],), multilabel_of().task).texts == (["a b"],)
