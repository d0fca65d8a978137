"""Every method on every type of task: trained two updates, saved, loaded into a fresh model, predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from behaviour.matrix import ARCHITECTURES, METHODS, opened, two_layers
from petl_bench.backbones.load import open_backbone
from petl_bench.errors import RequestError
from petl_bench.model import build_adapted, load_trained, save_trained
from petl_bench.records.store import RunFolder
from petl_bench.run.evaluate import predict_logits
from petl_bench.tasks.encode import encode
from petl_bench.tasks.rows import Rows
from petl_bench.tasks.tagging import TaggedRows, split_text
from petl_bench.training.batches import BatchSource
from petl_bench.training.device import make_accelerator
from petl_bench.training.loop import build_optimizer

# As in `behaviour.matrix`, and the methods that are no PEFT tuners.
OVERRIDES = {name: row.overrides for name, row in METHODS.items()} | {
    "full": ["method=full"],
    "layer_selection": ["method=layer_selection", "layers=top", "layers.k=1"],
}
NOT_ON = {name: row.not_on for name, row in METHODS.items()} | {"full": (), "layer_selection": ()}

TEXTS = ["bob saw ann", "rome", "eve and bob in oslo", "ann"]
LABELS = {
    "classification": ["no", "yes", "maybe"],
    "regression": None,
    "multilabel": ["person", "place", "other"],
    "tagging": ["O", "B-person", "B-place"],
}
TYPES = list(LABELS)
# What a type of task refuses whatever the architecture, and what is said of it.
REFUSED = {("head_pooler", "tagging"): "the pooler, which a tagger does not have"}


def rows_of(task_type):
    if task_type == "tagging":
        tags = [[1, 0, 1], [2], [1, 0, 1, 0, 2], [1]]
        labels = np.empty(len(tags), dtype=object)
        labels[:] = [np.array(one) for one in tags]
        return TaggedRows((TEXTS,), labels, tuple(split_text(text, "words") for text in TEXTS))
    labels = {
        "classification": np.array([0, 1, 2, 0]),
        "regression": np.array([0.5, 1.0, -1.0, 0.0]),
        "multilabel": np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=np.float32),
    }
    return Rows((TEXTS,), labels[task_type])


def cells():
    """The full product: the cells of a Latin square run always, the others are slow.

    In the square, each method meets one architecture with each type of task, and another one with the next type.
    """
    found = []
    for number, method in enumerate(OVERRIDES):
        allowed = [name for name in ARCHITECTURES if name not in NOT_ON[method]]
        for shift, task_type in enumerate(TYPES):
            if (method, task_type) in REFUSED:
                continue
            chosen = allowed[(number + shift) % len(allowed)]
            found += [
                pytest.param(method, name, task_type, marks=[] if name == chosen else [pytest.mark.slow])
                for name in allowed
            ]
    return found


def made(method, architecture, task_type):
    """The run's config, backbone and adapted model."""
    cfg, _ = opened(architecture, *OVERRIDES[method], two_layers(architecture))
    cfg = replace(cfg, task=replace(cfg.task, type=task_type))
    backbone = open_backbone(cfg.backbone, cfg.layers, task_type=task_type)
    return cfg, backbone, build_adapted(cfg, backbone, LABELS[task_type], num_training_steps=2)[0]


@pytest.mark.parametrize(("method", "architecture", "task_type"), cells())
def test_a_method_learns_is_saved_and_predicts_on_every_type_of_task(method, architecture, task_type, tmp_path):
    cfg, backbone, model = made(method, architecture, task_type)
    accelerator = make_accelerator(cfg.train)
    rows = encode(rows_of(task_type), backbone.load_tokenizer(), 24, cached=False)
    source = BatchSource(rows, torch.device("cpu"))
    before = predict_logits(model, source, 3, accelerator)
    assert before.shape == (len(TEXTS) if task_type != "tagging" else 10, len(LABELS[task_type] or [0]))
    optimizer = build_optimizer(model, replace(cfg.train, learning_rate=1e-2), backbone.anatomy.in_head)
    model.train()
    for _ in range(2):
        batch = source.batch(np.arange(len(rows)))
        loss = source.forward(model, batch, batch.labels).loss
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = predict_logits(model.eval(), source, 3, accelerator)
    assert not np.allclose(trained, before)
    folder = RunFolder(tmp_path)
    save_trained(folder, model, backbone, card=str)
    # Random weights are those of the backbone that was trained only under the same seed.
    torch.manual_seed(cfg.train.seed)
    loaded = load_trained(folder, backbone, LABELS[task_type])
    np.testing.assert_allclose(predict_logits(loaded, source, 3, accelerator), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("method", "task_type"), REFUSED)
def test_what_a_type_of_task_does_not_allow_is_refused_in_a_sentence(method, task_type):
    for architecture in ("bert", "modernbert"):
        with pytest.raises(RequestError, match=REFUSED[method, task_type]):
            made(method, architecture, task_type)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_tokens_of_peft_in_front_are_refused_for_taggers(kind):
    cfg, _ = opened("bert", "method=peft", f"method.type={kind}", two_layers("bert"))
    backbone = open_backbone(cfg.backbone, cfg.layers, task_type="tagging")
    with pytest.raises(RequestError, match=f"PEFT cannot apply {kind} to a tagger"):
        build_adapted(cfg, backbone, LABELS["tagging"], 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_taggers_head_is_a_linear_layer_on_every_token(architecture):
    _, backbone, model = made("head", architecture, "tagging")
    base = model.get_base_model()
    assert type(base).__name__.endswith("ForTokenClassification")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(backbone.anatomy.in_head(name) for name in trained)
    pretrained = {"head"} if architecture == "modernbert" else set()
    assert {name.split(".modules_to_save")[0].rpartition(".")[2] for name in trained} == {"classifier"} | pretrained
    modules = dict(base.named_modules())
    assert all(path in modules for path in (*backbone.anatomy.head, *backbone.anatomy.above_layers))
    assert not any("pooler" in name for name in modules)


@pytest.mark.parametrize("method", ["flat", "lst"])
def test_side_networks_do_not_pool_the_tokens_of_a_tagger(method):
    """Whatever the method's settings say of pooling."""
    cfg, backbone, model = made(method, "bert", "tagging")
    torch.manual_seed(3)
    ids = torch.randint(10, 60, (2, 7))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
    assert logits.shape == (2, 7, 3)
    assert len(torch.unique(logits[0].round(decimals=5), dim=0)) > 1, "tokens differ"
    assert cfg.method.pool == "mean"
    assert backbone.anatomy.is_tagger
