"""Evaluations, their numbers, and the files of a report."""

import base64
import csv
import json
from html.parser import HTMLParser

import pytest
import sklearn.metrics
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kornia_mvit import Batch, Preprocess
from kornia_mvit.draw import charts as figures
from kornia_mvit.evaluation.classification import Collector
from kornia_mvit.evaluation.page import Picture, Section, Table, Text, render_page
from kornia_mvit.training import Evaluation, classification_metrics, wilson_interval, write_report

PICTURES = {"confusion.png", "reliability.png", "per_class.png"}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Reads a page, and refuses one whose tags do not match."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.attributes, self.texts, self.cells = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(name, value) for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "img":
            assert dict(attrs)["alt"]
            self.images.append(base64.b64decode(dict(attrs)["src"].removeprefix("data:image/png;base64,")))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("th", "td"):
            self.cells.append(data)


def evaluate(logits, label, **meta):
    """An evaluation in batches of 10, with pictures."""
    collector = Collector(**meta)
    for start in range(0, len(label), 10):
        part = slice(start, start + 10)
        collector.add({"logits": logits[part]}, Batch(torch.rand(len(label[part]), 3, 20, 30), label[part]))
    return collector.evaluation()


def draw(classes, count, seed=0, gain=2.0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), label] += gain
    return logits, label


class TestEvaluation:
    def test_smoke(self):
        logits, label = draw(8, 40)
        found = Evaluation.from_logits(logits, label)
        assert len(found) == 40
        assert torch.equal(found.predicted, logits.argmax(1))
        torch.testing.assert_close(found.top_probability, logits.softmax(1).topk(5).values)
        torch.testing.assert_close(found.loss.mean(), torch.nn.functional.cross_entropy(logits, label))

    @pytest.mark.parametrize(
        ("logits", "label", "message"),
        [
            (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), "1 class; an evaluation needs two or more"),
            (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "needs one image or more"),
            (torch.zeros(2, 3), torch.tensor([0, 3]), "labels from 0 to 3 are not among 3 classes"),
            (torch.zeros(2, 3), torch.tensor([-1, 2]), "labels from -1 to 2 are not among 3 classes"),
            (torch.zeros(2, 3), torch.tensor([0]), r"got \(2, 3\) and 1"),
        ],
    )
    def test_exception(self, logits, label, message):
        with pytest.raises(ValueError, match=message):
            Evaluation.from_logits(logits, label)

    def test_exception_of_parts(self):
        with pytest.raises(ValueError, match="no evaluations"):
            Evaluation.concatenate([])
        with pytest.raises(ValueError, match="2 and 3 classes"):
            Evaluation.concatenate([Evaluation.from_logits(torch.eye(k), torch.arange(k)) for k in (3, 2)])

    def test_soft_labels_count_as_their_largest(self):
        found = Evaluation.from_logits(torch.zeros(1, 3), torch.tensor([[0.2, 0.7, 0.1]]))
        assert found.label.tolist() == [1]

    def test_goes_through_a_checkpoint(self, tmp_path):
        before = evaluate(*draw(4, 30))
        torch.save(before.to_dict(), tmp_path / "a.pt")
        after = Evaluation.from_dict(torch.load(tmp_path / "a.pt", weights_only=True))
        assert classification_metrics(after) == classification_metrics(before)
        assert [mistake.name for mistake in after.mistakes] == [mistake.name for mistake in before.mistakes]


class TestCollector:
    @given(seed=st.integers(0, 1000), count=st.integers(1, 45), worst=st.integers(0, 30))
    def test_keeps_the_most_confident_mistakes(self, seed, count, worst):
        logits, label = draw(4, count, seed, gain=0.5)
        found = evaluate(logits, label, worst=worst)
        confidence, predicted = logits.softmax(1).max(1)
        expected = sorted(confidence[predicted != label].tolist(), reverse=True)[:worst]
        assert [mistake.confidence for mistake in found.mistakes] == pytest.approx(expected)
        for mistake in found.mistakes:
            number = int(mistake.name.removeprefix("image "))
            assert (mistake.label, mistake.predicted) == (label[number], predicted[number])

    def test_pictures_are_looked_at_without_preprocessing_and_padding(self):
        preprocess = Preprocess(8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        image = torch.full((1, 3, 400, 200), 100 / 255)
        batch = Batch((image - 0.5) / 0.25, torch.tensor([0]), size=torch.tensor([[400, 100]]))
        collector = Collector()
        collector.add({"logits": torch.tensor([[0.0, 1.0]])}, batch, preprocess)
        picture = collector.evaluation().mistakes[0].image
        assert picture.shape == (3, 160, 40)
        assert picture.unique().tolist() == [100]

    def test_names_are_paths_or_numbers(self):
        collector = Collector()
        for meta in ([{"path": "a/b.png"}], [{"id": 7}], None):
            batch = Batch(torch.rand(1, 3, 8, 8), torch.tensor([0]), meta=meta)
            collector.add({"logits": torch.tensor([[0.0, 1.0]])}, batch)
        assert {mistake.name for mistake in collector.evaluation().mistakes} == {"a/b.png", "id 7", "image 2"}

    def test_nothing(self):
        assert Collector().evaluation() is None
        with pytest.raises(ValueError, match="this batch has none"):
            Collector().add({"logits": torch.zeros(1, 2)}, Batch(torch.rand(1, 3, 8, 8)))


class TestClassificationMetrics:
    def test_by_hand(self):
        """Six images of three classes; the third is never predicted, and 4 of 6 are right."""
        share = torch.tensor([0.8, 0.6, 0.9, 0.7, 0.5, 0.9])
        predicted, label = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 1, 2])
        probabilities = ((1 - share) / 2)[:, None].repeat(1, 3)
        probabilities[torch.arange(6), predicted] = share
        found = classification_metrics(Evaluation.from_logits(probabilities.log(), label), ["a", "b", "c"])
        assert found["confusion"] == [[2, 0, 0], [1, 2, 0], [1, 0, 0]]
        assert (found["images"], found["mistakes"], found["top1"]["right"]) == (6, 2, 4)
        assert found["top1"]["value"] == pytest.approx(4 / 6)
        assert "top5" not in found
        a, b, c = found["per_class"]
        assert (a["support"], a["predicted"], a["precision"], a["recall"], a["f1"]) == (2, 4, 0.5, 1.0, 0.666667)
        assert (b["support"], b["predicted"], b["precision"], b["recall"], b["f1"]) == (3, 2, 1.0, 0.666667, 0.8)
        assert (c["support"], c["predicted"], c["precision"], c["recall"], c["f1"]) == (1, 0, None, 0.0, 0.0)
        assert found["f1"] == pytest.approx((2 / 3 + 0.8 + 0) / 3, abs=1e-6)
        truth = torch.tensor([0.8, 0.6, 0.9, 0.7, 0.25, 0.05])
        assert found["loss"] == pytest.approx(-float(truth.log().mean()), abs=1e-5)
        # Bins of a fifteenth: 0.5 alone, 0.6 alone, 0.7 alone, 0.8 alone, and both 0.9, of which one is right.
        error = (0.5 + 0.4 + 0.3 + 0.2 + 2 * 0.4) / 6
        assert found["calibration_error"] == pytest.approx(error, abs=1e-5)

    @given(classes=st.integers(2, 12), count=st.integers(1, 60), seed=st.integers(0, 1000))
    def test_against_scikit_learn(self, classes, count, seed):
        logits, label = draw(classes, count, seed, gain=1.0)
        evaluation = Evaluation.from_logits(logits, label)
        found, predicted = classification_metrics(evaluation), logits.argmax(1)
        every = list(range(classes))
        expected = sklearn.metrics.confusion_matrix(label, predicted, labels=every)
        assert found["confusion"] == expected.tolist()
        columns = sklearn.metrics.precision_recall_fscore_support(label, predicted, labels=every, zero_division=0)
        for name, values in zip(("precision", "recall", "f1", "support"), columns, strict=True):
            ours = [row[name] or 0 for row in found["per_class"]]
            assert ours == pytest.approx(values.tolist(), abs=1e-5), name
        if classes > 5:
            right = sum(int(truth) in row.topk(5).indices.tolist() for truth, row in zip(label, logits, strict=True))
            assert found["top5"]["right"] == right
        bins = [one for one in found["reliability"] if one["images"]]
        error = sum(one["images"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / count
        assert found["calibration_error"] == pytest.approx(error, abs=1e-5)

    def test_logits_that_are_not_finite(self):
        logits = torch.tensor([[0.0, 3.0], [float("nan"), 0.0], [float("inf"), 0.0]])
        found = classification_metrics(Evaluation.from_logits(logits, torch.tensor([1, 1, 0])))
        assert found["not_finite"] == 2
        assert found["loss"] is None

    def test_exception(self):
        with pytest.raises(ValueError, match=r"2 class names.*3 classes"):
            classification_metrics(Evaluation.from_logits(torch.eye(3), torch.arange(3)), ["a", "b"])


class TestWilsonInterval:
    def test_feature(self):
        """The worked example of Newcombe (Statistics in Medicine 17, 1998), table I: 81 of 263."""
        assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)

    @given(count=st.integers(1, 10**6), share=st.floats(0, 1))
    @example(count=35, share=1.0)
    @example(count=10**6, share=0.0)
    def test_holds_the_share(self, count, share):
        right = round(share * count)
        low, high = wilson_interval(right, count)
        assert 0 <= low <= right / count <= high <= 1
        assert low < high

    @pytest.mark.parametrize(("right", "count"), [(0, 0), (-1, 3), (4, 3)])
    def test_exception(self, right, count):
        with pytest.raises(ValueError, match="is no share"):
            wilson_interval(right, count)


class TestWriteReport:
    def test_smoke(self, tmp_path):
        history = [{"epoch": 1.0, "train/loss": 1.0, "lr": 0.1}, {"epoch": 2.0, "val/loss": 0.5, "val/accuracy": 0.7}]
        evaluation = evaluate(*draw(7, 60))
        names = ["<b>bold</b>", "a & b", '"quoted"', "$x_1$", "</title><script>", "名前", "seven"]
        path = write_report(
            tmp_path / "new" / "report",
            evaluation,
            history=history,
            class_names=names,
            title="Seven <classes>",
            about=["60 images & a checkpoint."],
            best=2,
            settings={"a<b": "<i>"},
        )
        files = {file.name for file in path.parent.iterdir()}
        assert files == {*PICTURES, "curves.png", "mistakes.png", "index.html", "metrics.json", "per_class.csv"}
        page = Page(path)
        charts = [path.parent / name for name in (*PICTURES, "curves.png")]
        assert all(chart.read_bytes() in page.images for chart in charts)
        assert len(page.images) == len(charts) + len(evaluation.mistakes)
        assert all(value.startswith(("data:image/png;base64,", "#s")) for _, value in page.attributes)
        assert "http" not in "".join(page.texts)
        assert set(names) <= set(page.cells)
        assert {"a<b", "<i>"} <= set(page.cells)
        numbers = json.loads((path.parent / "metrics.json").read_text())
        assert numbers["history"] == history
        assert numbers["top1"]["right"] == int(evaluation.right.sum())
        assert [one["image"] for one in numbers["worst"]] == [mistake.name for mistake in evaluation.mistakes]
        with (path.parent / "per_class.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["class"] for row in rows] == names
        assert [int(row["support"]) for row in rows] == torch.bincount(evaluation.label, minlength=7).tolist()

    def test_no_mistakes(self, tmp_path):
        (tmp_path / "mistakes.png").write_bytes(b"of an earlier report")
        path = write_report(tmp_path, evaluate(torch.eye(2)[[0, 1, 0]] * 9, torch.tensor([0, 1, 0])))
        assert {file.suffix for file in tmp_path.iterdir()} == {".png", ".html", ".json", ".csv"}
        assert not (tmp_path / "mistakes.png").exists()
        text = " ".join(Page(path).texts)
        assert "There is none: all 3 images were classified rightly." in text
        assert "No class was taken for another." in text

    def test_many_classes(self, tmp_path):
        """Of 300 classes, some without images, the page shows the worst and the files have all."""
        logits, label = draw(300, 400, gain=3.0)
        path = write_report(tmp_path, evaluate(logits, label, worst=3), class_names=[f"name {i}" for i in range(300)])
        page = Page(path)
        assert (tmp_path / "confusion_part.png").read_bytes() in page.images
        assert "The 50 weakest of 300 classes by F1; per_class.csv has all" in page.texts
        assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 301
        assert len(json.loads((tmp_path / "metrics.json").read_text())["confusion"]) == 300

    def test_a_run_that_diverged(self, tmp_path):
        logits = torch.full((4, 2), float("nan"))
        history = [{"epoch": 1.0, "train/loss": float("nan"), "val/loss": float("inf")}]
        path = write_report(tmp_path, evaluate(logits, torch.tensor([0, 1, 0, 1])), history=history)
        assert "The loss of 4 images is not finite" in " ".join(Page(path).texts)
        numbers = json.loads((tmp_path / "metrics.json").read_text())
        assert numbers["history"] == [{"epoch": 1.0, "train/loss": None, "val/loss": None}]


class TestRenderPage:
    def test_exception(self):
        with pytest.raises(ValueError, match="a chart is a PNG file"):
            Picture(b"GIF89a", "none").html()

    def test_cells_fit_the_head(self):
        with pytest.raises(ValueError):
            render_page("a", [], [Section("b", [Table(["one", "two"], [["1", "2", "3"]])])])

    def test_escapes(self):
        page = render_page("<a>", [Text(["<b>"])], [Section("<c>", [Picture(b"\x89PNG" + bytes(20), '"d"', ["<e>"])])])
        assert not {"<a>", "<b>", "<c>", "<e>", '""d""'} & set(page.replace("><", ">\n<").splitlines())
        assert 'alt="&quot;d&quot;"' in page


class TestFigures:
    def test_curves_of_nothing(self):
        with pytest.raises(ValueError, match="no metrics"):
            figures.draw_curves([{"epoch": 1.0}])

    def test_curves_leave_single_classes_out(self):
        rows = [{"epoch": 1.0, "val/accuracy": 0.5, "lr": 0.1}, {"epoch": 2.0, "val/accuracy": 0.7, "lr": 0.0}]
        more = [row | {f"val/accuracy/{i}": 0.5 for i in range(1000)} for row in rows]
        assert figures.draw_curves(more) == figures.draw_curves(rows)

    @given(seed=st.integers(0, 100), count=st.integers(0, 8))
    def test_most_confused_are_pairs_that_were_confused(self, seed, count):
        confusion = torch.randint(0, 3, (6, 6), generator=torch.Generator().manual_seed(seed))
        chosen = figures.most_confused(confusion, count)
        assert len(chosen) <= count
        block = confusion[chosen][:, chosen].fill_diagonal_(0)
        assert (block.sum(0) + block.sum(1) > 0).all()
