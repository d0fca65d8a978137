"""The metric nu: fixed points, invariances, numerics; and the layers it chooses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from petl_bench.backbones.anatomy import LayersConfig, layer_window, resolve_layers
from petl_bench.estimate.plan import extreme_plans
from petl_bench.run.variability import bins_of, choose_layers, pooled_states, variability

SQUARE = np.array([[0, 0], [2, 0], [1, 1], [1, -1]], dtype=float)


def fixture(*shifts: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    states = np.concatenate([SQUARE + shift for shift in shifts])
    return states, np.repeat(np.arange(len(shifts)), len(SQUARE))


@pytest.fixture
def drawn():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    return generator.normal(size=(60, 8)) + 2 * generator.normal(size=(3, 8))[labels], labels


def explicit(states: np.ndarray, labels: np.ndarray) -> float:
    """The formula as written, with the d x d matrices."""
    classes = np.unique(labels)
    means = np.stack([states[labels == label].mean(axis=0) for label in classes])
    within = np.mean([np.cov(states[labels == label].T, bias=True) for label in classes], axis=0)
    between = np.cov(means.T, bias=True)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)) / len(classes))


def test_fixed_points():
    assert variability(*fixture((0, 0), (4, 0))) == pytest.approx(0.0625, rel=1e-12)
    assert variability(*fixture((0, 0), (4, 0), (2, 4))) == pytest.approx(0.109375, rel=1e-12)


def test_two_classes_have_a_closed_form(drawn):
    states, labels = drawn
    states, labels = states[labels < 2], labels[labels < 2]
    within = np.mean([np.cov(states[labels == label].T, bias=True) for label in (0, 1)], axis=0)
    d = states[labels == 0].mean(axis=0) - states[labels == 1].mean(axis=0)
    assert variability(states, labels) == pytest.approx(2 * d @ within @ d / (d @ d) ** 2, rel=1e-12)


def test_it_is_the_explicit_formula_without_its_matrices():
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), 40)
    states = generator.normal(size=(120, 1024)) + generator.normal(size=(3, 1024))[labels]
    found = variability(states, labels)
    assert found == pytest.approx(explicit(states, labels), rel=1e-9)
    assert found < 1e6


def test_invariances(drawn):
    states, labels = drawn
    expected = variability(states, labels)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0]
    assert variability(states + 5.0, labels) == pytest.approx(expected, rel=1e-11)
    assert variability(states @ rotation, labels) == pytest.approx(expected, rel=1e-11)
    assert variability(states * 7.0, labels) == pytest.approx(expected, rel=1e-11)
    assert variability(states, (labels + 1) % 3) == pytest.approx(expected, rel=1e-11)
    constant = np.concatenate([states, np.full((60, 2), 3.0)], axis=1)
    assert variability(constant, labels) == pytest.approx(expected, rel=1e-11)
    once_more = np.concatenate([states] + [states[labels == 0]] * 4)
    more = np.concatenate([labels] + [labels[labels == 0]] * 4)
    assert variability(once_more, more) == pytest.approx(expected, rel=1e-11)
    assert variability(states * np.arange(1, 9), labels) != pytest.approx(expected, rel=0.05)


def test_spread(drawn):
    states, labels = drawn
    means = np.stack([states[labels == label].mean(axis=0) for label in range(3)])
    noise = states - means[labels]
    expected = variability(states, labels)
    assert variability(2 * means[labels] + noise, labels) == pytest.approx(expected / 4, rel=1e-11)
    assert variability(means[labels] + 2 * noise, labels) == pytest.approx(expected * 4, rel=1e-11)
    assert variability(means[labels], labels) < 1e-25


@pytest.mark.parametrize(("num_classes", "expected"), [(2, 1.03), (3, 2.07)])
def test_labels_without_signal_give_the_null_line(num_classes, expected):
    """nu is not free of the sample's size: about (|Y| - 1)(n - 1) / d for n examples a class."""
    found = []
    for seed in range(4):
        states = np.random.default_rng(seed).normal(size=(800 * num_classes, 768))
        found.append(variability(states, np.repeat(np.arange(num_classes), 800)))
    assert np.mean(found) == pytest.approx(expected, rel=0.06)


def test_what_cannot_be_measured_is_said(drawn):
    states, labels = drawn
    with pytest.raises(ValueError, match="class 3 has no example"):
        variability(states, labels, num_classes=4)
    with pytest.raises(ValueError, match="two classes"):
        variability(states, np.zeros(60, dtype=int))
    broken = states.copy()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        variability(broken, labels)
    assert variability(np.ones((60, 8)), labels) == math.inf
    with pytest.raises(ValueError, match="no class has two examples"):
        variability(states, np.arange(60), num_classes=60)
    with pytest.raises(ValueError, match=r"class 2 has no example|outside"):
        variability(states, np.where(labels == 2, 7, labels), num_classes=3)
    with pytest.raises(ValueError, match="label is not finite"):
        variability(states, np.where(labels == 2, np.nan, labels))
    alone = np.append(labels[:-1], 3)
    assert np.isfinite(variability(states, alone, num_classes=4))


def test_regression_targets_fall_into_classes_of_about_equal_size():
    targets = np.random.default_rng(0).uniform(0, 5, 1000)
    classes = bins_of(targets, 5)
    assert np.bincount(classes).tolist() == [200] * 5
    assert all(targets[classes == n].max() <= targets[classes == n + 1].min() for n in range(4))
    # Many equal targets leave fewer classes, none of them empty and none of them lost.
    for low, high, bins in ((90, 10, 5), (10, 90, 5), (3, 1, 2), (1, 3, 2)):
        assert bins_of(np.array([0.0] * low + [1.0] * high), bins).tolist() == [0] * low + [1] * high


@pytest.mark.parametrize(
    ("strategy", "k", "window"),
    [
        ("prefix", 2, (1, 4, 4)),
        ("window", 2, (3, 4, 4)),
        ("window", 9, (1, 4, 4)),
        ("window_top_head", 1, (4, 4, 6)),
        ("top", 2, (3, 6, 6)),
    ],
)
def test_strategies(strategy, k, window):
    chosen = layer_window(LayersConfig(name="variability", strategy=strategy, k=k), best=4, num_layers=6)
    plan = resolve_layers(chosen, 6)
    assert (plan.bottom, plan.top, plan.head) == window


def task_and_config(*overrides: str):
    from petl_bench.config import load_config
    from petl_bench.tasks.load import load_task

    cfg = load_config(
        ["task=smoke", "backbone=tiny_roberta", "layers=variability", "task.num_train_examples=120", *overrides]
    )
    return cfg, load_task(cfg.task, cfg.data_root)


def test_batches_and_padding_do_not_matter():
    import torch

    from petl_bench.backbones.load import open_backbone

    cfg, task = task_and_config()
    backbone = open_backbone(cfg.backbone, LayersConfig())
    found = []
    for size in (60, 7):
        torch.manual_seed(0)
        found.append(pooled_states(backbone, task.train, 32, size, "cpu"))
    assert found[0].shape == (4, 120, 32)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_special_tokens_are_left_out():
    import torch

    from petl_bench.backbones.load import open_backbone

    cfg, task = task_and_config()
    backbone = open_backbone(cfg.backbone, LayersConfig())
    rows = task.train.take(np.arange(3))
    torch.manual_seed(0)
    found = pooled_states(backbone, rows, 32, 3, "cpu")
    torch.manual_seed(0)
    encoder = backbone.build_model(2).roberta.eval()
    encoded = backbone.load_tokenizer()(rows.texts[0][1], return_tensors="pt", truncation=True, max_length=32)
    with torch.no_grad():
        states = encoder(**encoded, output_hidden_states=True).hidden_states
    for level in range(4):
        np.testing.assert_allclose(found[level, 1], states[level + 1][0, 1:-1].mean(dim=0), rtol=1e-4, atol=1e-6)


def test_the_choice_is_the_lowest_layer_and_is_recorded():
    cfg, task = task_and_config()
    chosen, found = choose_layers(cfg.layers, cfg.backbone, task, 32, "cpu")
    assert found.num_examples == 120
    assert len(found.variability) == len(found.variability_shuffled) == 4
    best = int(np.argmin(found.variability)) + 1
    assert (chosen.name, chosen.bottom, chosen.top, chosen.head) == ("window", 1, best, best)
    fewer = choose_layers(task_and_config("layers.num_examples=50")[0].layers, cfg.backbone, task, 32, "cpu")[1]
    assert fewer.num_examples == 50


def test_a_class_without_an_example_is_a_clear_error(tmp_path):
    from petl_bench.errors import RequestError

    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "\n".join(f"word {n},{'ab'[n % 2]}" for n in range(20)))
    cfg, task = task_and_config(
        "task=custom", f"task.train_file={rows}", f"task.validation_file={rows}", "task.text_columns=[text]",
        "task.label_column=label", "task.labels=[a,b,c]", "task.num_train_examples=null",
    )  # fmt: skip
    with pytest.raises(RequestError, match="class 2 has no example among 20 rows"):
        choose_layers(cfg.layers, cfg.backbone, task, 32, "cpu")


@pytest.mark.parametrize("method", ["layer_selection", "lora layers=variability", "flat layers=variability"])
def test_a_run_prints_records_and_predicts_by_its_choice(method, tiny, caplog):
    from petl_bench.run.predict import Predictor
    from petl_bench.run.run import run
    from petl_bench.tasks.rows import Rows

    cfg = tiny(*f"method={method}".split())
    assert cfg.layers.name == "variability"
    with caplog.at_level("INFO"):
        record = run(cfg)
    assert "<- lowest" in caplog.text
    assert record.layers.head == int(np.argmin(record.layers.variability)) + 1
    assert record.config["layers"]["bottom"] is None
    folder = next(path.parent for path in __import__("pathlib").Path(cfg.runs_dir).rglob("result.json"))
    assert json.loads((folder / "result.json").read_text())["layers"]["head"] == record.layers.head
    prediction = Predictor(folder).predict(Rows((["a fine film"],), None))[0]
    assert prediction.label in ("negative", "positive")


def test_regression_tasks_are_binned(glue, minilm):
    from petl_bench.config import load_config
    from petl_bench.tasks.load import load_task

    cfg = load_config(["task=stsb", "task.num_train_examples=300", f"data_root={glue}", "layers=variability"])
    task = load_task(cfg.task, cfg.data_root)
    _, found = choose_layers(cfg.layers, cfg.backbone, task, 32, "cpu")
    assert len(found.variability) == 6
    # A sentence encoder tells scores of similarity apart better than chance does.
    assert min(found.variability) < min(found.variability_shuffled)


def test_plans_without_rows_are_the_extreme_ones():
    layers = LayersConfig(name="variability", strategy="window_top_head", k=2, num_bins=5)
    plans = [(plan.bottom, plan.top, plan.head) for plan in extreme_plans(layers, 6)]
    assert plans == [(1, 1, 6), (1, 2, 6), (5, 6, 6)]
    layers.strategy = "prefix"
    assert [(plan.bottom, plan.top, plan.head) for plan in extreme_plans(layers, 6)] == [(1, 1, 1), (1, 6, 6)]
    top = LayersConfig(name="top", k=1)
    assert extreme_plans(top, 6) == [top]
