"""Rows out of distribution: which they are, how they are scored, and what a run's files say of them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score

from petl_bench import cli
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.records import OOD_SCORES
from petl_bench.records.predictions import Predictions, read_predictions
from petl_bench.records.schema import Record
from petl_bench.records.store import DETECTOR_FILE, RunFolder
from petl_bench.reports.classification import roc_curves
from petl_bench.run.lifecycle import identify
from petl_bench.run.ood_detection import Detector, judged, last_linear_input
from petl_bench.run.run import run
from petl_bench.tasks.load import load_task, trained_labels
from petl_bench.tasks.ood import without_texts_of
from petl_bench.tasks.rows import Rows
from petl_bench.tasks.table_files import PACKAGE_DATA


def load(*overrides, root=None):
    return load_task(load_config(list(overrides)).task, None if root is None else str(root))


@pytest.fixture(scope="module")
def snips(tmp_path_factory):
    """A folder with ten test rows of each of Snips' intents, five for training and two for validation."""
    folder = tmp_path_factory.mktemp("snips")
    for split, count in (("train", 5), ("validation", 2), ("test", 10)):
        rows = {"text": [f"{split} {i}" for i in range(7 * count)], "label": [i % 7 for i in range(7 * count)]}
        pd.DataFrame(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


class TestRows:
    """The table of docs/ood.md: classes kept, and rows that train, report and are out of distribution."""

    @pytest.mark.parametrize(
        ("overrides", "classes", "train", "report", "ood"),
        [
            (["task=clinc150", "task.ood=oos"], 150, 15000, 4500, 1000),
            (["task=clinc150", "task.ood=classes", "task.ood_share=0.25"], 40, 4000, 1200, 3300),
            (["task=clinc150", "task.ood=classes", "task.ood_share=0.5"], 80, 8000, 2400, 2100),
            (["task=clinc150", "task.ood=classes", "task.ood_share=0.75"], 110, 11000, 3300, 1200),
            (["task=clinc150", "task.ood=banking77"], 120, 12000, 3600, 3980),
            (["task=banking77", "task.ood=classes", "task.ood_share=0.25"], 19, None, 760, 2320),
            (["task=banking77", "task.ood=classes", "task.ood_share=0.5"], 38, None, 1520, 1560),
            (["task=banking77", "task.ood=classes", "task.ood_share=0.75"], 58, None, 2320, 760),
        ],
    )
    def test_counts_are_those_of_the_splits_that_are_followed(self, overrides, classes, train, report, ood):
        task = load(*overrides)
        assert len(task.labels) == classes
        assert trained_labels(task.settings) == task.labels
        assert len(task.train) == train or train is None
        assert (len(task.report), len(task.ood)) == (report, ood)
        assert task.rows_per_split()["ood"] == ood
        for rows in (task.train, task.selection, task.report):
            assert set(rows.labels) == set(range(classes))
            assert not set(rows.texts[0]) & set(task.ood.texts[0])
        assert set(task.ood.labels) == {-1}

    @pytest.mark.parametrize(("share", "kept"), [(0.25, 2), (0.5, 4), (0.75, 5)])
    def test_snips_keeps_two_four_or_five_of_its_seven_intents(self, snips, share, kept):
        task = load("task=snips", "task.ood=classes", f"task.ood_share={share}", root=snips)
        assert (len(task.labels), len(task.report), len(task.ood)) == (kept, 10 * kept, 70 - 10 * kept)

    def test_clinc150_against_snips_leaves_seven_intents_out_and_hashes_the_other_rows(self, snips, tmp_path):
        task = load("task=clinc150", "task.ood=snips", root=snips)
        assert (len(task.labels), len(task.train), len(task.report), len(task.ood)) == (143, 14300, 4290, 70 + 210)
        (tmp_path / "test-00000-of-00001.parquet").write_bytes(
            (snips / "validation-00000-of-00001.parquet").read_bytes()
        )
        keys = [
            identify(load_config(["task=clinc150", "task.ood=snips", f"data_root={root}"])).key
            for root in (snips, tmp_path)
        ]
        assert keys[0] != keys[1]

    def test_banking77_against_clinc150_leaves_out_the_domains_that_both_have(self):
        task = load("task=banking77", "task.ood=clinc150")
        assert (len(task.labels), len(task.ood)) == (77, 4500 - 900)

    def test_classes_are_drawn_by_the_data_seed_from_each_domain_and_nested(self):
        few, more, other = (
            load("task=clinc150", "task.ood=classes", f"task.ood_share={share}", f"task.data_seed={seed}").labels
            for share, seed in ((0.25, 1), (0.5, 1), (0.25, 2))
        )
        assert set(few) < set(more)
        assert few != other
        domains = json.loads((PACKAGE_DATA / "clinc150" / "domains.json").read_text())
        assert Counter(name for name, intents in domains.items() for one in intents if one in few) == dict.fromkeys(
            domains, 4
        )

    def test_a_text_with_two_labels_trains_only_where_none_is_out_of_distribution(self):
        rows, ood = Rows((["a", "b", "c"],), np.array([0, 1, 1])), Rows((["b", "d"],), np.array([-1, -1]))
        assert without_texts_of(rows, ood).texts == (["a", "c"],)
        assert without_texts_of(rows, None) is rows

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["task=clinc150", "task.ood=classes"], "go together"),
            (["task=clinc150", "task.ood_share=0.5"], "go together"),
            (["task=clinc150", "task.ood=classes", "task.ood_share=1.5"], "must be between 0 and 1"),
            (["task=clinc150", "task.ood=banking"], "Did you mean 'banking77'"),
            (["task=clinc150", "task.ood=clinc150"], "its own data set|own data set"),
            (["task=banking77", "task.ood=oos"], "is for task=clinc150"),
            (["task=stsb", "task.ood=banking77"], "is for classes, which task.type=regression has not"),
            (["task=mrpc", "task.ood=banking77"], "has one text a row, but task=mrpc takes 2"),
        ],
    )
    def test_requests_that_cannot_work(self, overrides, words):
        with pytest.raises(RequestError, match=words):
            load_config(overrides)

    def test_too_few_classes_are_refused(self):
        with pytest.raises(RequestError, match="keeps 1 of the 2 classes"):
            load("task=smoke", "task.ood=classes", "task.ood_share=0.5")

    def test_snips_without_its_folder_is_told(self):
        with pytest.raises(RequestError, match=r"task\.ood=snips needs data_root=DIR"):
            load("task=clinc150", "task.ood=snips")


class TestScores:
    def test_msp_and_energy_by_hand(self):
        detector = Detector.fit(np.eye(4)[[0, 1, 2, 3, 0, 1]], np.array([0, 0, 0, 1, 1, 1]))
        logits = np.array([[2.0, 1.0, 0.0], [12.0, 11.0, 10.0]])
        scores = detector.scores(logits, np.eye(4)[:2])
        assert scores["msp"] == pytest.approx([0.665241, 0.665241], abs=1e-6)
        assert scores["energy"] == pytest.approx([2.407606, 12.407606], abs=1e-5)

    @pytest.fixture(scope="class")
    def drawn(self):
        rng = np.random.default_rng(0)
        labels = np.repeat([0, 1, 2], 40)
        return rng.normal(size=(120, 6)) + 3 * np.eye(6)[labels], labels, rng.normal(size=(30, 6))

    def test_mahalanobis_is_that_of_the_shrunk_covariance(self, drawn):
        vectors, labels, further = drawn
        found = Detector.fit(vectors, labels).scores(np.zeros((30, 3)), further)["mahalanobis"]
        means = np.stack([vectors[labels == index].mean(axis=0) for index in range(3)])
        precision = LedoitWolf(assume_centered=True).fit(vectors - means[labels]).precision_
        by_hand = [-min((row - mean) @ precision @ (row - mean) for mean in means) for row in further]
        assert found == pytest.approx(by_hand, rel=1e-4)

    def test_scaling_the_vectors_changes_neither_mahalanobis_nor_cosine(self, drawn):
        vectors, labels, further = drawn
        one, other = (
            Detector.fit(scale * vectors, labels).scores(np.zeros((30, 3)), scale * further) for scale in (1, 7)
        )
        assert one["mahalanobis"] == pytest.approx(other["mahalanobis"], rel=1e-4)
        assert one["cosine"] == pytest.approx(other["cosine"], abs=1e-6)

    def test_the_cosine_is_the_largest_over_the_training_rows(self, drawn):
        vectors, labels, further = drawn
        detector = Detector.fit(vectors, labels)
        assert detector.scores(np.zeros((120, 3)), vectors)["cosine"] == pytest.approx(np.ones(120), abs=1e-6)
        by_hand = [max(row @ one / np.linalg.norm(row) / np.linalg.norm(one) for one in vectors) for row in further]
        assert detector.scores(np.zeros((30, 3)), further)["cosine"] == pytest.approx(by_hand, abs=1e-6)

    def test_figures_by_hand(self):
        known, other = np.arange(1.0, 21.0), np.array([0.0, 1.0, 2.0, 3.0])
        found = judged(known, other, selection=known + 0.5)
        assert found.auroc == pytest.approx(0.94375)
        # The threshold is the second of twenty scores, 2, which two of four reach.
        assert found.fpr95 == 0.5
        assert found.threshold == 2.5
        same = judged(np.exp(known), np.exp(other), known)
        assert (same.auroc, same.fpr95) == (found.auroc, found.fpr95)
        assert judged(known, known, known).auroc == pytest.approx(0.5, abs=1e-12)

    def test_roc_curves_end_in_both_corners_and_have_the_area_of_auroc(self):
        rng = np.random.default_rng(1)
        rows = [_kept(rng.normal(loc, size=400)) for loc in (1.0, 0.0)]
        curve = roc_curves(*rows)["energy"]
        assert curve[-1] == 1.0
        auroc = judged(rows[0].scores["energy"], rows[1].scores["energy"], rows[0].scores["energy"]).auroc
        assert np.trapezoid(curve, dx=0.01) == pytest.approx(auroc, abs=0.01)

    def test_the_last_linear_layer_is_read(self):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        with last_linear_input(model) as found:
            outputs = model(torch.randn(5, 3))
        torch.testing.assert_close(model[2](found[0]), outputs)


def _kept(scores):
    return Predictions(
        np.arange(len(scores)), np.zeros(len(scores)), np.zeros((len(scores), 2)), scores={"energy": scores}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on three of five classes of our own rows, whose words give the class away; and its config."""
    folder = tmp_path_factory.mktemp("ood")
    words = ("red", "green", "blue", "one", "two")
    for name, count in (("train", 200), ("test", 75)):
        lines = [f"{words[i % 5]} {words[i % 5]} {name} {i},{words[i % 5]}" for i in range(count)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    cfg = load_config(
        [
            "task=custom",
            f"task.train_file={folder}/train.csv",
            f"task.validation_file={folder}/test.csv",
            "task.protocol=held_out",
            "task.num_held_out_examples=45",
            "task.ood=classes",
            "task.ood_share=0.6",
            "task.max_length=16",
            "backbone=tiny_bert",
            "method=full",
            "train.epochs=4",
            "train.batch_size=8",
            "train.learning_rate=3e-3",
            "measure.ledger=false",
            "measure.inference=false",
            f"runs_dir={folder}/runs",
        ]
    )
    return run(cfg), cfg, identify(cfg).folder


class TestRun:
    def test_figures_are_recomputed_from_the_predictions(self, trained):
        record, _, folder = trained
        assert (record.ood.kind, record.ood.share, record.ood.num_examples) == ("classes", 0.6, 30)
        known, other, selected = (read_predictions(folder, split) for split in ("report", "ood", "selection"))
        assert (len(known.labels), len(other.labels), len(selected.labels)) == (45, 30, 45)
        assert set(other.labels) == {-1}
        is_known = [1] * 45 + [0] * 30
        for name in OOD_SCORES:
            figures = getattr(record.ood, name)
            scores = np.concatenate([known.scores[name], other.scores[name]])
            assert figures.auroc == pytest.approx(roc_auc_score(is_known, scores), abs=1e-12)
            assert figures.aupr_in == pytest.approx(average_precision_score(is_known, scores), abs=1e-12)
            assert figures.aupr_out == pytest.approx(
                average_precision_score(1 - np.array(is_known), -scores), abs=1e-12
            )
            threshold = sorted(known.scores[name])[45 // 20]
            assert figures.fpr95 == sum(score >= threshold for score in other.scores[name]) / 30
            assert figures.threshold == sorted(selected.scores[name])[45 // 20]

    def test_msp_and_energy_are_those_of_the_kept_logits(self, trained):
        _, _, folder = trained
        for split in ("report", "ood", "selection"):
            kept = read_predictions(folder, split)
            shares = torch.softmax(torch.from_numpy(kept.outputs), dim=1).max(dim=1).values.numpy()
            assert kept.scores["msp"] == pytest.approx(shares, abs=1e-5)
            energy = torch.logsumexp(torch.from_numpy(kept.outputs), dim=1).numpy()
            assert kept.scores["energy"] == pytest.approx(energy, abs=1e-4)

    def test_no_row_out_of_distribution_trains_or_selects(self, trained):
        record, cfg, folder = trained
        task = load_task(cfg.task, None)
        left_out = set(task.all_labels) - set(task.labels)
        assert (record.classes, len(left_out)) == (task.labels, 2)
        for rows in (task.train, task.selection, task.report):
            assert not any(text.split()[0] in left_out for text in rows.texts[0])
        assert all(text.split()[0] in left_out for text in task.ood.texts[0])
        assert set(read_predictions(folder, "ood").row_ids) == set(task.ood.ids())

    def test_the_record_is_read_again_and_one_without_the_field_too(self, trained):
        record, _, folder = trained
        content = json.loads((folder / "result.json").read_text())
        assert RunFolder(folder).finished().ood == record.ood
        del content["ood"], content["content_sha256"]
        assert Record.from_dict(content).ood is None

    def test_cached_features_give_the_same_figures(self, trained, tmp_path):
        _, cfg, _ = trained
        found = {}
        for cache in ("auto", "off"):
            # One epoch: without the pass over all rows at the end, the cache would not be worth its while.
            train = replace(cfg.train, cache=cache, epochs=1, learning_rate=1e-2)
            record = run(
                replace(cfg, train=train, method=load_config(["method=head"]).method, runs_dir=str(tmp_path / cache))
            )
            found[record.frozen.cache] = record.ood
        assert found["memory"] == found["off"]

    def test_predict_gives_the_scores_of_the_run_and_judges_by_the_threshold(self, trained, capsys):
        record, cfg, folder = trained
        task = load_task(cfg.task, None)
        kept = read_predictions(folder, "ood")
        pd.DataFrame({"text": task.ood.texts[0]}).to_csv(folder.parent / "ood.csv", index=False)
        for name in OOD_SCORES:
            words = ["predict", str(folder), "--file", str(folder.parent / "ood.csv"), "--ood", name, "--json"]
            assert cli.main(words) == 0
            found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [one["ood_score"] for one in found] == pytest.approx(kept.scores[name], rel=1e-3, abs=1e-4)
            threshold = getattr(record.ood, name).threshold
            assert [one["in_distribution"] for one in found] == [one["ood_score"] >= threshold for one in found]
            assert set(found[0]["probabilities"]) == set(record.classes)

    def test_predict_prints_columns(self, trained, capsys):
        *_, folder = trained
        assert cli.main(["predict", str(folder), "--ood", "--text", "red red"]) == 0
        header, row = capsys.readouterr().out.splitlines()
        assert header.split("\t")[:3] == ["in_distribution", "ood_score", "label"]
        assert row.split("\t")[0] in ("yes", "no")

    def test_a_broken_detector_and_a_run_without_one_are_told(self, trained, tiny, capsys):
        *_, folder = trained
        content = (folder / DETECTOR_FILE).read_bytes()
        try:
            (folder / DETECTOR_FILE).write_bytes(content[:50])
            assert cli.main(["predict", str(folder), "--ood", "--text", "red"]) == 2
        finally:
            (folder / DETECTOR_FILE).write_bytes(content)
        assert f"{DETECTOR_FILE}: not what the run wrote" in capsys.readouterr().err
        assert set(load_file(folder / DETECTOR_FILE)) == {"means", "factor", "directions"}
        cfg = tiny("method=head")
        run(cfg)
        assert cli.main(["predict", str(identify(cfg).folder), "--ood", "--text", "red"]) == 2
        assert "was made without task.ood" in capsys.readouterr().err

    def test_reports_show_the_figures(self, trained, capsys, tmp_path):
        record, _, folder = trained
        page = tmp_path / "page.html"
        assert cli.main(["report", str(folder), "--format", "md", "--html", str(page)]) == 0
        out = capsys.readouterr().out
        assert "rows out of distribution**" in out
        assert f"{100 * record.ood.energy.auroc:.1f}" in out
        assert "custom: 30 rows out of distribution (classes left out, 0.6 kept)" in out
        assert '"roc":{"energy":[[0' in page.read_text()
        assert cli.main(["report", str(folder), "--format", "csv"]) == 0
        (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert float(row["ood_aupr_out_cosine_mean"]) == record.ood.cosine.aupr_out
