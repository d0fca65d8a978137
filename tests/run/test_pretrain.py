"""The training phase without labels: what it trains, that it goes on where it stopped, and runs that start from it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.errors import Interrupted, RequestError
from petl_bench.methods.coda.distillation import CodaDistillation
from petl_bench.model import build_adapted
from petl_bench.run import pretrain as pretraining
from petl_bench.run.lifecycle import identify
from petl_bench.run.pretrain import load_pretrain_config, pretrain
from petl_bench.run.run import run
from petl_bench.training.loop import TrainingLoop

# Sentences of a few words, in which the same words come back.
WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "old",
    "new",
    "house",
    "tree",
    "dog",
    "cat",
    "sees",
    "likes",
    "under",
    "over",
    "and",
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 12, (120,), generator=generator).tolist()
    drawn = [torch.randint(len(WORDS), (length,), generator=generator).tolist() for length in lengths]
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("".join(" ".join(WORDS[word] for word in line) + "\n" for line in drawn), encoding="utf-8")
    return file


UNTRAINED = ("train.learning_rate=1e-30", "phase.norm_learning_rate=1e-30")


def compose(texts, folder, *overrides):
    return load_pretrain_config(
        [
            f"texts.files=[{texts}]",
            "texts.held_out=24",
            "backbone=tiny_bert",
            *(() if any("backbone=" in one for one in overrides) else ["backbone.architecture.num_hidden_layers=2"]),
            # Layers that change their states, as trained ones do.
            "+backbone.architecture.initializer_range=0.3",
            "method.bottleneck=8",
            "train.max_steps=40",
            "train.batch_size=16",
            "train.evaluate_every=20",
            "train.learning_rate=1e-2",
            f"runs_dir={folder}",
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def phase(texts, tmp_path_factory):
    """A finished phase: its record and its folder."""
    return pretrain(compose(texts, tmp_path_factory.mktemp("phase")))


def test_the_states_come_closer_to_those_of_the_dense_encoder(phase):
    record, _ = phase
    first, last = record.history[0].scores, record.history[-1].scores
    assert set(first) == {"distance", "k2all_r3", "k2all_r5", "k2k_r3", "k2k_r5"}
    assert last["distance"] < first["distance"]
    assert first["distance"] == pytest.approx(sum(first[name] for name in first if name != "distance") / 4)
    # At a larger reduction more tokens skip the layers.
    assert last["k2all_r3"] < last["k2all_r5"]
    assert record.status == "finished" and record.updates == 40
    assert record.num_texts == 120 - 24


def test_the_inner_layers_count_as_they_are_weighed(texts, tmp_path):
    last, both, twice = (
        pretrain(compose(texts, tmp_path, "train.max_steps=1", *UNTRAINED, f"phase.inner_weight={weight}"))[0]
        .history[0]
        .scores["distance"]
        for weight in (0, 1, 2)
    )
    assert 0 < last < both
    assert twice - both == pytest.approx(both - last)


def test_a_process_without_rows_takes_part_in_the_backward_pass(texts, tmp_path, monkeypatch):
    """It multiplies the logits by zero, so they must reach the parameters."""
    forward, reach = CodaDistillation.forward, []

    def recorded(self, **inputs):
        outputs = forward(self, **inputs)
        reach.append(outputs.logits.requires_grad)
        return outputs

    monkeypatch.setattr(CodaDistillation, "forward", recorded)
    pretrain(compose(texts, tmp_path, "train.max_steps=1", *UNTRAINED))
    assert any(reach)


@pytest.mark.parametrize("compared", ["tokens", "mean"])
def test_the_distance_does_not_depend_on_the_batches(texts, tmp_path, compared):
    """Texts of other lengths share a batch, which pads otherwise."""
    ones = ("train.max_steps=1", *UNTRAINED, f"phase.compared={compared}")
    one, many = (
        pretrain(compose(texts, tmp_path, *ones, f"train.eval_batch_size={size}"))[0].history[0].scores
        for size in (1, 24)
    )
    assert one == pytest.approx(many, rel=1e-4)
    assert one["distance"] > 0


@pytest.mark.parametrize("compared", ["tokens", "mean"])
def test_an_update_is_the_same_in_several_passes(texts, tmp_path, compared):
    """With short and long texts in one pass, and the first tokens' weight."""
    settings = ("train.max_steps=1", "train.evaluate_every=1", f"phase.compared={compared}")
    once, split = (
        pretrain(compose(texts, tmp_path, *settings, *more))[0].history[0].train_loss
        for more in ((), ("train.accumulation=5",))
    )
    assert once == pytest.approx(split, rel=1e-6)


def test_the_backbone_is_not_trained_and_every_part_of_the_method_is(phase, texts, tmp_path):
    record, folder = phase
    trained = load_file(folder / "adapter" / "adapter_model.safetensors")
    untrained_folder = pretrain(compose(texts, tmp_path, "train.max_steps=1", *UNTRAINED))[1]
    untrained = load_file(untrained_folder / "adapter" / "adapter_model.safetensors")
    assert trained.keys() == untrained.keys()
    assert sum(tensor.numel() for tensor in trained.values()) == record.trainable
    assert all(any(part in name for part in ("coda_adapter", "coda_router", "LayerNorm")) for name in trained)
    assert not [name for name in trained if torch.equal(trained[name], untrained[name])]
    card = (folder / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card and "- Texts: 96 without labels, of texts.txt\n" in card
    assert f"kept apart: {record.history[-1].scores['distance']:.4f}\n" in card
    assert record.stored_files.keys() >= {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}


def test_an_interrupted_phase_goes_on_to_the_same_bits(phase, texts, tmp_path, monkeypatch):
    update = TrainingLoop._update

    def interrupted(self, indices):
        if self.state.progress.num_steps == 29:
            raise KeyboardInterrupt
        update(self, indices)

    cfg = compose(texts, tmp_path, "train.checkpoint_seconds=0")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingLoop, "_update", interrupted)
        pretrain(cfg)
    record, folder = pretrain(cfg)
    assert record.resumed_at_updates == [29]
    undisturbed, expected = phase
    file = "adapter/adapter_model.safetensors"
    assert (folder / file).read_bytes() == (expected / file).read_bytes()
    assert [entry.scores for entry in record.history] == [entry.scores for entry in undisturbed.history]
    # A finished phase is not repeated.
    assert pretrain(cfg)[0].to_dict() == record.to_dict()


def test_the_adapter_is_one_of_peft_for_the_bare_encoder(phase):
    _, folder = phase
    settings = load_config(["backbone=tiny_bert"])
    torch.manual_seed(0)
    encoder = AutoModel.from_config(open_backbone(settings.backbone, settings.layers).config)
    model = PeftModel.from_pretrained(encoder, str(folder / "adapter")).eval()
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    router = dict(model.named_parameters())["base_model.model.encoder.layer.1.coda_router.default"]
    assert torch.equal(router, stored["base_model.model.encoder.layer.1.coda_router"])


START = ("method=coda", "method.bottleneck=8", "method.train_layernorm=true", "method.last_router=learned")


def test_a_run_starts_from_the_phase(phase, tiny, tmp_path):
    _, folder = phase
    cfg = tiny(*START, f"method.init={folder}")
    backbone = open_backbone(cfg.backbone, cfg.layers)
    model, params = build_adapted(cfg, backbone, ["a", "b"], 10)
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    found = {name: value for name, value in model.named_parameters() if value.requires_grad}
    inside = {name: value for name, value in found.items() if "classifier" not in name}
    assert len(inside) == len(stored)
    for name, value in inside.items():
        plain = name.replace(".modules_to_save.default", "").replace(".default", "").replace("model.bert.", "model.")
        assert torch.equal(value, stored[plain]), name
    fresh, _ = build_adapted(tiny(*START), backbone, ["a", "b"], 10)
    head = "base_model.model.classifier.modules_to_save.default.weight"
    assert torch.equal(dict(fresh.named_parameters())[head], found[head])
    assert params.trainable == sum(value.numel() for value in found.values())

    record = run(tiny(*START, f"method.init={folder}"))
    assert record.status == "finished"
    assert record.config["method"]["init"] == str(folder)


def test_the_start_is_part_of_the_run_by_its_content_alone(phase, tiny, tmp_path):
    _, folder = phase
    (tmp_path / "copy").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "copy" / file).write_bytes((folder / "adapter" / file).read_bytes())
    key = identify(tiny(*START, f"method.init={folder}")).key
    assert identify(tiny(*START, f"method.init={tmp_path / 'copy'}")).key == key
    assert identify(tiny(*START)).key != key
    content = bytearray((tmp_path / "copy" / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "copy" / "adapter_model.safetensors").write_bytes(content)
    assert identify(tiny(*START, f"method.init={tmp_path / 'copy'}")).key != key


def test_lora_starts_from_the_adapter_of_another_task(tiny, tmp_path):
    first = run(tiny("method=lora", "train.learning_rate=1e-2"))
    folder = identify(tiny("method=lora", "train.learning_rate=1e-2")).folder
    cfg = tiny("method=lora", f"method.init={folder}")
    model, _ = build_adapted(cfg, open_backbone(cfg.backbone, cfg.layers), ["a", "b", "c"], 10)
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    lora = {name.replace(".default", ""): value for name, value in model.named_parameters() if "lora_" in name}
    assert lora and all(torch.equal(value, stored[name]) for name, value in lora.items())
    assert first.status == "finished"


def test_a_method_with_an_option_of_that_name_takes_a_folder_too(tiny):
    run(tiny("method=houlsby", "method.bottleneck=4", "method.init=lora"))
    folder = identify(tiny("method=houlsby", "method.bottleneck=4", "method.init=lora")).folder
    cfg = tiny("method=houlsby", "method.bottleneck=4", f"method.init={folder}")
    model, _ = build_adapted(cfg, open_backbone(cfg.backbone, cfg.layers), ["a", "b"], 10)
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    found = {name.replace(".default", ""): value for name, value in model.named_parameters() if "houlsby_" in name}
    assert found and all(torch.equal(value, stored[name]) for name, value in found.items())
    keys = {identify(tiny("method=houlsby", f"method.init={init}")).key for init in ("lora", "normal")}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=lora"], "lacks"),
        (["method=full"], "method=full has no adapter"),
        (["method=coda", "method.train_layernorm=true", "method.last_router=learned"], "method.bottleneck=8"),
        (["method=coda", "method.bottleneck=8", "method.last_router=learned"], "method.train_layernorm=True"),
        (["method=coda", "method.bottleneck=8", "method.train_layernorm=true"], "method.last_router=learned"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(phase, tiny, overrides, words):
    with pytest.raises(RequestError, match=words):
        run(tiny(*overrides, f"method.init={phase[1]}"))


def test_a_folder_without_an_adapter_is_refused(tiny, tmp_path):
    with pytest.raises(RequestError, match=r"method\.init=.* holds no adapter"):
        run(tiny("method=lora", f"method.init={tmp_path}"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["texts.files=[]"], "There are no texts"),
        (["texts.held_out=120"], "120 texts"),
        (["texts.files=[a/lines.txt,b/lines.txt]"], "Two sources of texts are called lines.txt"),
        (["texts.tasks=[smoke,smoke]"], "Two sources of texts are called smoke"),
        (["method.init=runs/other"], "the phase has a start of its own"),
        (["layers=top", "layers.k=1"], "layers=top"),
        (["method=lora"], "use one of coda"),
        (["phase.attention=all"], "Allowed: both, k2all, k2k"),
        (["phase.compared=first"], "Allowed: mean, tokens"),
        (["phase.k2all_share=2"], "between 0 and 1"),
        (["texts.files=[missing.txt]"], "missing.txt"),
        (["backbone=tiny_deberta_v2"], "phase.attention=k2k"),
        (["backbone=tiny_distilbert"], "train_layernorm=true does not work with distilbert"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(texts, tmp_path, overrides, words):
    overrides = [one for one in overrides if one != "texts.files=[]"]
    base = [] if words == "There are no texts" else [f"texts.files=[{texts}]", "texts.held_out=24"]
    with pytest.raises(RequestError, match=words):
        pretrain(load_pretrain_config([*base, "backbone=tiny_bert", f"runs_dir={tmp_path}", *overrides]))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_texts_are_the_lines_of_a_file(tmp_path, caplog):
    file = tmp_path / "texts.txt"
    file.write_bytes("one\u2028two\x0cthree\x85four\r\nfive\rsix\n \nseven".encode("utf-16"))
    cfg = load_pretrain_config([f"texts.files=[{file}]", "texts.held_out=1", "backbone=tiny_bert"])
    with caplog.at_level("WARNING"):
        (rows,) = pretraining._read_texts(cfg).values()
    assert sorted(rows.texts[0]) == ["five", "one\u2028two\x0cthree\x85four", "seven", "six"]
    assert "texts.txt: no words in ['line 4']: these lines are left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("texts.txt", b"one\ntw\xff\n", r"texts.txt, line 2: the byte 0xff is no text in UTF-8"),
        ("texts.txt", b"one\ntw\0o\n", r"texts.txt, line 2 holds a zero byte"),
        ("texts.jsonl", b'{"text": "one"}\n', r"texts\.files=.*texts\.jsonl is a folder or a table: give a plain text"),
        ("texts", None, r"texts\.files=.*texts is a folder or a table"),
    ],
)
def test_files_that_hold_no_text_a_line_are_refused(tmp_path, name, content, words):
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
    cfg = load_pretrain_config([f"texts.files=[{tmp_path / name}]", "texts.held_out=1", "backbone=tiny_bert"])
    with pytest.raises(RequestError, match=words):
        pretrain(cfg)


@pytest.mark.parametrize(
    ("backbone", "norms"), [("tiny_deberta_v2", "true"), ("tiny_modernbert", "false"), ("tiny_distilbert", "false")]
)
def test_every_architecture_is_trained(texts, tmp_path, backbone, norms):
    overrides = (f"backbone={backbone}", f"method.train_layernorm={norms}")
    record, folder = pretrain(compose(texts, tmp_path, *overrides, "phase.attention=k2k", "train.max_steps=2"))
    assert record.history[-1].scores["distance"] > 0
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["peft_type"] == "CODA"
    assert (folder / "pretraining.json").is_file()


def test_half_precision_halves_the_file(texts, tmp_path, phase):
    _, folder = pretrain(compose(texts, tmp_path, "half=true"))
    half = load_file(folder / "adapter" / "adapter_model.safetensors")
    whole = load_file(phase[1] / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(half[name], whole[name].half()) for name in whole)
