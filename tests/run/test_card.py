"""What lies beside the weights of a run: the names of the labels, and a model card whose code works."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification

from finished_runs import EPOCHS, LABELS, TEXT_COLUMN, code_of, finished, record_of, root, table
from petl_bench.records.schema import Record
from petl_bench.run.export import model_card
from petl_bench.run.predict import Predictor
from petl_bench.tasks.load import rows_of_texts

LOWER = ("method=lora", "layers=window", "layers.bottom=1", "layers.top=1")
TEXT = "a ccc ccc"


def weights_folder(run):
    return next(folder for folder in (run / "adapter", run / "model") if folder.is_dir())


def printed(run, monkeypatch, capsys) -> str:
    """What the code of a run's card prints, with the base model in the working directory, as its name says."""
    folder = weights_folder(run)
    monkeypatch.chdir(root())
    code = code_of((folder / "README.md").read_text())
    assert 'folder = "."' in code
    code = code.replace('folder = "."', f'folder = "{folder}"').replace('"a text"', f'"{TEXT}"')
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("kind", "names"),
    [("classification", LABELS), ("multilabel", LABELS), ("tagging", ["O", "B-card", "I-card"])],
)
def test_the_config_beside_an_adapter_names_the_labels(kind, names):
    folder = finished(kind) / "adapter"
    config = AutoConfig.from_pretrained(folder / "model_config.json")
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: index for index, name in enumerate(names)}


def test_transformers_alone_loads_the_adapter_with_its_labels(monkeypatch):
    folder = finished() / "adapter"
    # The adapter names its base model, which transformers looks for.
    monkeypatch.chdir(root())
    config = AutoConfig.from_pretrained(folder / "model_config.json")
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)
    assert model.config.id2label == dict(enumerate(LABELS))


def test_a_whole_model_names_its_labels():
    config = AutoConfig.from_pretrained(finished("classification", "method=full") / "model")
    assert config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("classification", ()),
        ("classification", ("method=houlsby",)),
        ("classification", LOWER),
        ("classification", ("method=full",)),
        ("regression", ()),
        ("multilabel", ()),
        ("tagging", ()),
    ],
)
def test_the_code_of_a_card_says_what_the_run_says(kind, overrides, monkeypatch, capsys):
    run = finished(kind, *overrides)
    predictor = Predictor(run)
    (answer,), names = predictor.answer(rows_of_texts(([TEXT],), predictor.task))
    found = printed(run, monkeypatch, capsys)
    if kind == "classification":
        assert found == answer.label
    elif kind == "regression":
        assert float(found) == pytest.approx(answer.value, abs=1e-5)
    elif kind == "multilabel":
        assert found == str(answer.labels)
    else:
        # One tag a token, which are bytes of words, with special ones at both ends; a word's first byte is read.
        tags = found.strip("[]").replace("'", "").split(", ")
        assert len(tags) == len(TEXT.replace(" ", "")) + 2
        assert (tags[1], tags[2], tags[5]) == names[0]
        assert {one.type for one in answer.entities} == {"card"}


@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_a_card_says_what_was_done_and_none_of_the_texts(kind):
    run = finished(kind)
    text = (run / "adapter" / "README.md").read_text()
    card, record = ModelCard(text), record_of(run)
    assert card.data.pipeline_tag == ("token-classification" if kind == "tagging" else "text-classification")
    assert card.data.library_name == "peft"
    scores = record["scores"]["best"]
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {
        name: pytest.approx(value, abs=1e-4) for name, value in scores.items()
    }
    for said in (
        *("24 rows (validation)", "Training rows: 60", "Learning rate: 0.01", f"Epochs: {EPOCHS[kind]}", "Seed: 0"),
        "lora (r=8",
    ):
        assert said in text
    assert "base model: unknown" in text
    assert str(root()) not in text
    rows = table(kind, 60, 0)[TEXT_COLUMN[kind]]
    assert not any((one if isinstance(one, str) else " ".join(one)) in text for one in rows if len(one) > 12)


def test_a_card_is_made_of_the_record_alone():
    run = finished()
    content = record_of(run)
    assert model_card(Record.from_dict(content), "adapter") == (run / "adapter" / "README.md").read_text()


def test_a_card_names_a_base_of_the_hub_and_its_licence():
    content = record_of(finished())
    del content["content_sha256"]
    content["config"]["backbone"] |= {
        "path": None, "hub_id": "FacebookAI/roberta-base", "revision": "abc", "license": "mit",
    }  # fmt: skip
    text = model_card(Record.from_dict(content), "adapter")
    assert ModelCard(text).data.base_model == "FacebookAI/roberta-base"
    assert "Base model: FacebookAI/roberta-base, revision abc" in text
    assert "Licence of the base model: mit" in text
    assert 'base = "FacebookAI/roberta-base"\n' in code_of(text)


def test_a_card_on_random_weights_offers_no_code():
    content = record_of(finished())
    del content["content_sha256"]
    content["config"]["backbone"] |= {"path": None, "weights": "random"}
    text = model_card(Record.from_dict(content), "adapter")
    assert "```" not in text
    assert "random weights" in text


def test_a_card_says_which_rows_chose_the_weights():
    content = record_of(finished())
    del content["content_sha256"]
    same = "the same rows, which can make the scores higher"
    assert same in model_card(Record.from_dict(content), "adapter")
    content["protocol"] |= {"selection_split": "train_held_out"}
    assert same not in model_card(Record.from_dict(content), "adapter")
    content["protocol"]["selection"] = "last"
    assert "They are those of the last weights." in model_card(Record.from_dict(content), "adapter")


def test_the_files_beside_the_weights_are_the_same_again(tmp_path):
    run = finished()
    before = {file.name: file.read_bytes() for file in (run / "adapter").iterdir()}
    assert json.loads(before["model_config.json"])["num_hidden_layers"] == 2
    again = finished("classification", "method=lora", "force=true")
    assert again == run
    assert {file.name: file.read_bytes() for file in (again / "adapter").iterdir()} == before
