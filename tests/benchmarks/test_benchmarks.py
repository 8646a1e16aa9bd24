"""The benchmarks: the published form is the published one, the scripts run, and what the pages say of them is so."""

import hashlib
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness
from benchmarks.experiments import find, splits
from benchmarks.pages import plots
from benchmarks.pages import tables as pages
from benchmarks.speed import loss_variants, losses, method_losses, processes, published, spectra
from benchmarks.speed import views as speed
from matrix_ssl.data import open_source
from matrix_ssl.data.files.images import read_image
from matrix_ssl.data.kinds.packed import read_shard
from matrix_ssl.data.randomness import permutation
from matrix_ssl.errors import DataError
from matrix_ssl.losses import matrix_ssl_loss
from tests.support.runs import start_processes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TAYLOR = json.loads((RESULTS / "taylor_gradients.json").read_text())
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "published_losses.json").read_text())


def branches(n, d, *, noise=0.4, seed=0):
    """Outputs z1, z2, p1, p2 as the golden values were computed from."""
    r = np.random.default_rng(seed)
    base = r.standard_normal((n, d)) * np.exp(-np.arange(d) * (3.0 / d))
    return [torch.from_numpy(base + noise * r.standard_normal((n, d)) + 0.3) for _ in range(4)]


def run(script, *arguments):
    """Runs a script in this process, which has imported PyTorch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        importlib.import_module(f"benchmarks.{script}").main()


class TestPublishedForm:
    @pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['m']}x{case['d']}")
    def test_golden_values(self, case):
        z1, z2, p1, p2 = branches(case["m"], case["d"], noise=case["noise"], seed=case["seed"])
        z1.requires_grad_(), z2.requires_grad_()
        settings = {"ridge": case["mu"], "uniformity_weight": case["lam"], "order": case["order"]}
        terms = [published.order_terms(p, z, **settings) for p, z in ((p2, z1), (p1, z2))]
        uniformity, alignment = (sum(pair).item() / 2 for pair in zip(*terms, strict=True))
        loss = published.loss(z1, z2, p1, p2, alignment_weight=case["gamma"], **settings)
        loss.backward()
        found = [loss.item(), uniformity, alignment, z1.grad.norm().item(), z2.grad.norm().item()]
        names = ("total", "uniformity", "alignment", "grad_z1_norm", "grad_z2_norm")
        np.testing.assert_allclose(found, [case[name] for name in names], rtol=1e-9)
        np.testing.assert_allclose(z1.grad.flatten()[:4], case["grad_z1_first"], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("order", [1, 2, 4, 7])
    @pytest.mark.parametrize(("n", "d"), [(5, 12), (12, 5), (8, 8)])
    def test_taylor_has_its_value_and_gradient(self, n, d, order):
        found = []
        settings = {"ridge": 0.5, "uniformity_weight": 0.7, "alignment_weight": 1.3, "order": order}
        for loss, options in ((published.loss, {}), (matrix_ssl_loss, {"logarithm": "taylor"})):
            z1, z2, p1, p2 = branches(n, d)
            z1.requires_grad_(), z2.requires_grad_()
            value = loss(z1, z2, p1, p2, **settings, **options)
            found.append([value.item(), *torch.autograd.grad(value, (z1, z2))])
        for ours, theirs in zip(*found, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(("n", "d"), [(24, 40), (40, 24)])
    def test_count_of_products(self, n, d):
        """docs/taylor.md: 22 of d x d x d, 6 of n x d x d, 4 of n x n x d."""
        p, z = loss_variants.case_inputs(n, d)
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(published.order_loss(p, z, ridge=0.1, uniformity_weight=0.1), z)
        assert counter.get_total_flops() == 2 * (22 * d**3 + 6 * n * d * d + 4 * n * n * d)

    @pytest.mark.parametrize(
        ("variant", "kept"),
        [
            ("published", {"dxd": 8, "nxd": 4, "nxn": 1}),
            *((name, {"dxd": 0, "nxd": 1, "nxn": 0}) for name in ("exact, auto", "exact, eigh", "taylor")),
        ],
    )
    @pytest.mark.parametrize(("n", "d"), [(24, 40), (40, 24)])
    def test_what_is_kept_for_the_backward_pass(self, n, d, variant, kept):
        """docs/taylor.md: one n x d tensor, or eight d x d, four n x d and one n x n; vectors are not counted."""
        p, z = loss_variants.case_inputs(n, d)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            loss_variants.losses(p, z, 0.1)[variant]()
        storages = [memory.nbytes() for memory in {x.data_ptr(): x.untyped_storage() for x in saved}.values()]
        sizes = {"dxd": 4 * d * d, "nxd": 4 * n * d, "nxn": 4 * n * n}
        assert {name: storages.count(size) for name, size in sizes.items()} == kept


def forked_group(out, count):
    """What ``processes.group`` measures in small, by forked processes."""
    code = f"from pathlib import Path; from benchmarks.speed import processes; processes.member(Path({str(out)!r}), "
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}((16, 4), (8, 12)), 2); raise SystemExit(0)"
    for command in start_processes(out.parent, [], count=count, before=code):
        ended = command.wait()
        assert ended.code == 0, ended.err
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of the quick runs, beside those of the views and of trained networks of the last full run."""
    folder = tmp_path_factory.mktemp("results")
    run("speed.losses", "--quick", "--out", folder / "losses.json")
    run("experiments.taylor_gradients", "--quick", "--out", folder / "taylor_gradients.json")
    run("speed.entropies", "--quick", "--out", folder / "entropies.json")
    run("speed.matrix_entropy", "--quick", "--out", folder / "matrix_entropy.json")
    with pytest.MonkeyPatch.context() as patch:  # forked, where the script starts programs with torchrun
        patch.setattr(processes, "group", lambda count, quick: forked_group(folder / "rows.json", count))
        run("speed.processes", "--quick", "--out", folder / "processes.json")
    shutil.copy(RESULTS / "method_losses.json", folder)  # the script needs lightly: see its own test
    for name in ("views", *pages.TRAINED):
        shutil.copy(RESULTS / f"{name}.json", folder)
    return folder


class TestScripts:
    def test_method_losses(self, tmp_path):
        pytest.importorskip("lightly")
        run("speed.method_losses", "--quick", "--out", tmp_path / "found.json")
        rows = json.loads((tmp_path / "found.json").read_text())["rows"]
        alone = ["cor_info_max", "kernel_infonce"]  # lightly has none
        assert [row["method"] for row in rows] == ["sigreg", "emp_ssl", "mmcr", "w_mse", "swav", "dino", *alone]
        for row in rows:
            names = {"ours"} if row["method"] in alone else {"ours", "lightly"}
            assert set(row["seconds"]) == set(row["mib"]) == names and (row["ratio"] is None) == (len(names) == 1)
        section = pages.method_section(json.loads((tmp_path / "found.json").read_text()))
        assert "| sigreg | 8, 16 |" in section
        assert re.search(r"\| cor_info_max \| 8, 16 \| [\d.]+ \| – \| – \| [\d.]+ \| – \|", section)

    def test_methods_and_lightly_are_timed_with_the_same_loss(self):
        pytest.importorskip("lightly")
        for method in ("emp_ssl", "mmcr", "swav", "dino"):
            ours, lightly = (call() for call in method_losses.pair(method, 24, 6).values())
            torch.testing.assert_close(ours, lightly, rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    def test_processes(self, tmp_path):
        """The other tests fork them."""
        run("speed.processes", "--quick", "--out", tmp_path / "found.json")
        rows = json.loads((tmp_path / "found.json").read_text())["rows"]
        assert {(row["processes"], row["n"], row["d"]) for row in rows} == {
            (count, n, d) for count in (1, 2) for n, d in ((16, 4), (8, 12))
        }

    def test_publish(self, tmp_path):
        out = tmp_path / "comparison"
        out.mkdir()
        shutil.copy(RESULTS / "compare_digits.json", out / "compare.json")
        where = ("--results", tmp_path, "--docs", tmp_path)
        for _ in range(2):  # a page that is there is filled anew
            run("pages.publish", out, "digits", "Nine methods on handwritten digits", *where)
        assert (tmp_path / "digits.md").read_text("utf-8") == (ROOT / "docs/results/digits.md").read_text("utf-8")
        assert (tmp_path / "compare_digits.json").read_bytes() == (RESULTS / "compare_digits.json").read_bytes()
        content = json.loads((out / "compare.json").read_text())
        content["command"] += f" --data-root {tmp_path}/images"
        (out / "compare.json").write_text(json.dumps(content))
        run("pages.publish", out, "digits", "Nine methods on handwritten digits", *where)
        assert "--out runs/digits --data-root images`" in (tmp_path / "digits.md").read_text("utf-8")

    def test_publish_chain(self, tmp_path):
        bundle = json.loads((RESULTS / "chain.json").read_text())
        for name, value in bundle["files"].items():
            (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / name).write_text(json.dumps(value))
        shutil.copy(ROOT / "docs/results/chain.md", tmp_path)
        where = ("--results", tmp_path, "--docs", tmp_path)
        run("pages.publish_chain", tmp_path / "run", bundle["command"], *where)
        assert (tmp_path / "chain.md").read_text("utf-8") == (ROOT / "docs/results/chain.md").read_text("utf-8")
        assert (tmp_path / "chain.json").read_bytes() == (RESULTS / "chain.json").read_bytes()

    @pytest.mark.slow  # five benchmarks in small
    def test_losses(self, results):
        found = json.loads((results / "losses.json").read_text())
        for case in found["cases"]:
            variants = case["variants"]
            assert list(variants) == ["published", *(f"exact, {a}" for a in loss_variants.ALGORITHMS), "taylor",
                                      "products"]  # fmt: skip
            for name, row in variants.items():
                if not case["extrapolate"]:  # a difference of two tiny times may have any sign
                    assert min(row["seconds"]["least"], row["ratio"]["least"]) > 0
                if name.startswith("exact"):
                    assert max(row["error"].values()) < 1e-4
            assert variants["published"]["ratio"]["median"] == 1
            assert 0 < case["largest_eigenvalue"] < 1
            assert case["plans"]["polynomial"]["size"] > 1
            assert case["plans"]["auto"]["algorithm"] in loss_variants.ALGORITHMS
        whole, _, partial = found["cases"]
        for key in ("value", "gradient"):  # the series leaves out the same, however it is computed
            errors = [whole["variants"][name]["error"][key] for name in ("published", "taylor")]
            assert errors[0] == pytest.approx(errors[1], rel=1e-3)
            assert errors[0] > 1e-2
        row = partial["variants"]["published"]
        assert row["extrapolated"]
        assert row["seconds"]["median"] == pytest.approx(row["one_term"] + 3 * (row["two_terms"] - row["one_term"]))
        assert "error" not in row
        assert [sum(row["shares"].values()) for row in found["profile"]] == [pytest.approx(1)]
        assert [(row["n"], "published" in row["seconds"]) for row in found["curves"]["d"]] == [(32, True), (32, False)]
        assert [row["variant"] for row in found["memory"]] == ["exact, auto"]

    @pytest.mark.slow
    def test_pages(self, results, tmp_path, monkeypatch):
        docs = tmp_path / "docs"
        shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("*.svg"))
        drawn = []
        for _ in range(2):  # a page that is filled already is filled anew
            monkeypatch.setattr(sys, "argv", ["pages.py", "--results", str(results), "--docs", str(docs)])
            pages.main()
            drawn.append([path.read_bytes() for path in sorted((docs / "figures").glob("*.svg"))])
        assert drawn[0] == drawn[1]
        assert max(map(len, drawn[0])) < 100_000
        names = ("speed.md", pages.FUNCTIONS, "taylor.md")
        speed_page, functions, taylor_page = ((docs / name).read_text("utf-8") for name in names)
        assert functions.count("24, 40, flat, ridge 0.5") >= 2
        views = speed_page.partition("<!-- views:begin -->")[2].partition("<!-- views:end -->")[0]
        assert views.count("torchvision on PIL") == 1
        assert "| mutual information | features |" in functions
        assert "| 2 | 8, 12 |" in functions and "| 1 | 8, 12 |" in functions
        assert taylor_page.count("| rank one |") == 1

    def test_views(self):
        rows = speed.measure_views(16, 16, rounds=1)
        assert [row["what"] for row in rows] == ["views, ours", "views, ours by OpenCV", "views, torchvision on PIL"]
        assert rows[2]["times_ours"]["median"] == rows[2]["median"] / rows[0]["median"] > 0

    def test_markers_must_be_there(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n")
        pages.fill(page, "a", "new\n")
        assert page.read_text() == "before\n<!-- a:begin -->\nnew\n<!-- a:end -->\nafter\n"
        with pytest.raises(ValueError, match="no markers b:begin"):
            pages.fill(page, "b", "new")


class TestTiming:
    def test_variants_take_turns(self):
        calls = []
        names = "abcd"
        seconds = harness.take_turns({name: lambda name=name: calls.append(name) for name in names}, rounds=20)
        orders = [tuple(calls[i : i + 4]) for i in range(0, 84, 4)]
        assert {tuple(sorted(order)) for order in orders} == {tuple(names)}
        assert len(set(orders)) > 10  # no variant has one predecessor
        assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(names, 20)  # and one to warm up
        harness.take_turns({"c": lambda: calls.append("c")}, rounds=1, warm_up=False)
        assert calls[84:] == ["c"]

    def test_spread(self):
        found = harness.spread([5.0, 1.0, 2.0, 4.0, 3.0])
        assert found == {"least": 1, "lower_quartile": 2, "median": 3, "upper_quartile": 4, "most": 5}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm_", "products"),
        ("aten::mm", "products"),
        ("aten::_linalg_eigh", "eigh"),
        ("aten::linalg_cholesky_ex", "cholesky"),
        ("aten::cholesky_inverse", "cholesky"),
        ("aten::linalg_lu_solve", "lu, inverse"),
        ("aten::add_", "elementwise and the rest"),
    ],
)
def test_stage_of_an_operation(operation, kind):
    assert losses.stage(operation) == kind


class TestSpectra:
    @pytest.mark.parametrize("spectrum", spectra.SPECTRA)
    def test_variances_and_cosine(self, spectrum):
        p, z = (x.numpy() for x in spectra.outputs(spectrum, 4000, 12, seed=0, dtype=torch.float64))
        expected = spectra.variances(spectrum, 12).numpy()
        np.testing.assert_allclose(p.var(0), expected, rtol=0.1)
        np.testing.assert_allclose(z.var(0), expected * (1 + 0.75**2), rtol=0.1)
        uncentred = (p * z).sum() / np.sqrt((p**2).sum() * (z**2).sum())
        assert uncentred == pytest.approx(0.8, abs=0.02)

    def test_definitions(self):
        found = {name: spectra.variances(name, 9).tolist() for name in spectra.SPECTRA}
        assert found["1/k"] == [1 / k for k in range(1, 10)]
        assert found["1/k²"][2] == pytest.approx(1 / 9)
        assert found["1/√k"][3] == 0.5
        assert found["rank 8"] == [1] * 8 + [0]
        assert found["rank one"][0] / found["rank one"][8] == pytest.approx(1e4)


def reference_gradient(term, p, z, ridge, order):
    """Gradient of one term in raw z from d x d formulas; order None is the exact logarithm."""
    n, d = z.shape
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    rows, teacher = z / lengths, p / np.linalg.norm(p, axis=1, keepdims=True)
    centring = np.eye(n) - np.ones((n, n)) / n
    if term == "uniformity":
        x = teacher.T @ centring @ rows / n + (ridge - 1) * np.eye(d)
        powers = [np.linalg.matrix_power(-x, k) for k in range(order or 0)]
        slope = sum(powers) if order else np.linalg.inv(x + np.eye(d))
        by_rows = -centring @ teacher @ slope.T / n
    else:
        x = rows.T @ centring @ rows / n + (ridge - 1) * np.eye(d)
        weight = teacher.T @ centring @ teacher / n + ridge * np.eye(d)
        if order:
            block = np.block([[x, weight], [np.zeros((d, d)), x]])
            series = sum((-1) ** (k + 1) / k * np.linalg.matrix_power(block, k) for k in range(1, order + 1))
        else:
            identity = np.eye(2 * d)
            series = scipy.linalg.logm(np.block([[x, weight], [np.zeros((d, d)), x]]) + identity)
        by_rows = -2 * centring @ rows @ series[:d, d:] / n  # a function of [[X, W], [0, X]] has its derivative there
    return (by_rows - rows * (by_rows * rows).sum(1, keepdims=True)) / lengths


class TestTaylorGradients:
    def found(self, term, spectrum, ridge, order):
        (row,) = (r for r in TAYLOR["rows"] if (r["term"], r["spectrum"], r["ridge"]) == (term, spectrum, ridge))
        return row["orders"][str(order)]

    @pytest.mark.parametrize("term", ["uniformity", "alignment"])
    @pytest.mark.parametrize(
        ("spectrum", "ridge", "order"), [("1/k", 0.1, 4), ("flat", 0.5, 4), ("rank one", 1.0, 4), ("1/k", 0.25, 16)]
    )
    def test_numbers_of_the_figure(self, term, spectrum, ridge, order):
        errors, cosines = [], []
        for seed in range(TAYLOR["seeds"]):
            p, z = spectra.outputs(spectrum, TAYLOR["n"], TAYLOR["d"], seed=seed, dtype=torch.float64)
            exact, series = (reference_gradient(term, p.numpy(), z.numpy(), ridge, k) for k in (None, order))
            errors.append(np.linalg.norm(series - exact) / np.linalg.norm(exact))
            cosines.append((series * exact).sum() / np.linalg.norm(series) / np.linalg.norm(exact))
        for name, values in (("error", errors), ("cosine", cosines)):
            expected = {"mean": np.mean(values), "least": min(values), "most": max(values)}
            assert self.found(term, spectrum, ridge, order)[name] == pytest.approx(
                expected, rel=6e-4
            )  # four digits are kept

    def test_words_of_the_page(self):
        """docs/taylor.md, below the tables."""
        four = {
            (r["term"], r["spectrum"], r["ridge"]): {name: v["mean"] for name, v in r["orders"]["4"].items()}
            for r in TAYLOR["rows"]
        }
        assert len(spectra.SPECTRA) == 6
        for spectrum in spectra.SPECTRA:
            for ridge in (0.1, 0.25, 0.5, 0.75, 1.0):
                assert four["uniformity", spectrum, ridge]["cosine"] >= 0.9
            assert four["alignment", spectrum, 0.1]["error"] > 0.6
            assert four["alignment", spectrum, 0.5]["cosine"] >= 0.9
            if spectrum in ("flat", "1/√k", "1/k", "rank 8"):  # no direction dominates
                assert four["alignment", spectrum, 1.0]["error"] < four["alignment", spectrum, 0.5]["error"] / 10
        assert four["alignment", "rank one", 1.0]["cosine"] < 0.2
        assert self.found("alignment", "1/k", 0.25, 16)["error"]["mean"] < 0.05

    def test_the_series_pulls_where_nothing_is_left_to_align(self):
        """With P = Q the derivative of tr[P log Q] by Q is I, and I - (I - Q)⁴ for four terms."""
        r = np.random.default_rng(0)
        rows = r.standard_normal((30, 5))
        q = np.cov(rows.T) / 10 + 0.1 * np.eye(5)
        block = np.block([[q, q], [np.zeros((5, 5)), q]])
        series = sum((-1) ** (k + 1) / k * np.linalg.matrix_power(block - np.eye(10), k) for k in range(1, 5))
        np.testing.assert_allclose(scipy.linalg.logm(block)[:5, 5:], np.eye(5), atol=1e-12)
        np.testing.assert_allclose(series[:5, 5:], np.eye(5) - np.linalg.matrix_power(np.eye(5) - q, 4), atol=1e-12)

    def test_page_and_figure_are_of_these_results(self):
        assert pages.taylor_section(TAYLOR).strip() in (ROOT / "docs" / "taylor.md").read_text("utf-8")
        drawn = (ROOT / "docs" / "figures" / "taylor_gradients.svg").read_text("utf-8")
        assert len(drawn) < 100_000
        axes = plots.taylor_gradients(TAYLOR).axes
        assert [axis.get_title() for axis in axes[:3]] == ["error, 4 terms", "cosine, 4 terms", "error, spectrum 1/k"]
        assert all(title in drawn for title in ("error, 4 terms", "cosine, 4 terms", "error, spectrum 1/k"))


class TestSplits:
    """``splits`` packs what no subset of seed 0 has had, and nothing that differs from its record."""

    @pytest.fixture
    def root(self, tmp_path, monkeypatch):
        r = np.random.default_rng(0)
        for name, count in (("a", 30), ("b", 20)):
            sizes = r.integers(4, 9, count)
            content = r.integers(0, 256, sizes.sum(), dtype=np.uint8)
            labels = {"y": r.integers(0, 3, count), "classes": np.array(["x", "y", "z"])}
            np.savez(tmp_path / f"{name}.npz", jpeg=content, offs=np.cumsum([0, *sizes]), **labels)
        both = ("a.npz", "b.npz")
        parts = {"set/train": (both, 10, 35), "set/test": (both, 35, 45), "set/val": (("b.npz",), 0, None, False)}
        monkeypatch.setattr(splits, "PARTS", {name: splits.Part(*values) for name, values in parts.items()})
        return tmp_path

    @staticmethod
    def images(*files):
        """Bytes and label of every image."""
        shards = [read_shard(file) for file in files]
        return [
            (shard.content[start:end].numpy().tobytes(), int(label), tuple(shard.classes))
            for shard in shards
            for start, end, label in zip(shard.offsets[:-1], shard.offsets[1:], shard.labels, strict=True)
        ]

    def test_parts_are_disjoint_from_each_other_and_from_every_earlier_subset(self, root):
        out = root / "out" / "set"
        run("experiments.splits", "--data-root", root, "--out", root / "out", "--record", root / "splits.json")
        whole, train, test, val = (
            self.images(*files)
            for files in ((root / "a.npz", root / "b.npz"), *([out / f"{n}.npz"] for n in ("train", "test", "val")))
        )
        earlier = [whole[i] for i in permutation(50, 0)[:10]]
        assert len(set(whole)) == 50 and (len(train), len(test)) == (25, 10)
        assert len({*earlier, *train, *test}) == 45 and {*earlier, *train, *test} < set(whole)
        assert train == [image for image in whole if image in train] and val == whole[30:]

    def test_a_file_that_is_not_the_recorded_one_is_an_error_and_nothing_is_written(self, root):
        arguments = ("--data-root", root, "--record", root / "splits.json")
        run("experiments.splits", *arguments, "--out", root / "out")
        run("experiments.splits", *arguments, "--out", root / "again")
        with np.load(root / "b.npz") as file:
            changed = dict(file)
        changed["y"][0] = (changed["y"][0] + 1) % 3
        np.savez(root / "b.npz", **changed)
        with pytest.raises(DataError, match=r"splits\.json: set/train, set/test, set/val differs; use the files that"):
            run("experiments.splits", *arguments, "--out", root / "third")
        assert (root / "again" / "set" / "test.npz").exists() and not (root / "third").exists()

    def test_the_record_is_of_the_rule(self):
        record = json.loads((RESULTS / "splits.json").read_text())
        assert record["rule"] == splits.RULE and record["parts"].keys() == splits.PARTS.keys()
        for name, part in splits.PARTS.items():
            count = 50_000 if name.startswith("cifar10") else 9_469 if part.shuffled else 3_925
            chosen = splits.places(part, count)
            assert record["parts"][name]["images"] == sum(record["parts"][name]["of_each_class"]) == len(chosen)
            assert record["parts"][name]["places_sha256"] == hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()


def test_pages_of_speed_are_of_the_results():
    if not (RESULTS / "losses.json").exists():
        pytest.skip("the losses have not been measured")
    text = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("speed.md", pages.FUNCTIONS))
    measured, views = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("losses", "views"))
    assert not measured["quick"]
    assert pages.loss_section(measured).strip() in text
    assert pages.view_section(views).strip() in text
    sections = {
        "entropies": pages.entropy_section, "processes": pages.process_section, "method_losses": pages.method_section,
        "matrix_entropy": pages.matrix_entropy_section,
    }  # fmt: skip
    for name, section in sections.items():
        assert section(json.loads((RESULTS / f"{name}.json").read_text())).strip() in text


class TestPlantedAnswers:
    def test_pairs_are_scored_by_precision_and_recall(self):
        scored = np.array([[0, 1], [0, 2], [1, 3], [2, 4]]), np.array([0.9, 0.8, 0.7, 0.6])
        planted = {"cropped": {(0, 1), (2, 4)}, "mirrored": {(1, 3)}}
        result = find.score(scored, planted, 0.7)
        assert (result["precision"], result["recall"], result["pairs"]) == (2 / 3, 2 / 3, 3)
        assert result["recall_by_kind"] == {"cropped": 0.5, "mirrored": 1.0}
        assert find.score(scored, planted, 0.7, 10.0)["precision"] == 2 / 12
        assert find.best(scored, planted, [0.6, 0.7, 0.85, 0.95], 1.0) == 0.6
        assert find.best(scored, planted, [0.6, 0.7, 0.85, 0.95], 10.0) == 0.85

    def test_copies_are_what_they_are_called(self, tmp_path):
        train = open_source("digits", split="train", data_root=None)
        files, planted = find.plant(train, np.arange(20), 8, tmp_path / "images")
        assert len(files) == 28 and {kind: len(pairs) for kind, pairs in planted.items()} == dict.fromkeys(
            find.KINDS, 2
        )
        assert find.plant(train, np.arange(20), 8, tmp_path / "images") == (files, planted)
        ((original, copy), *_) = planted["mirrored"]
        first, second = (read_image(files[i]).float() for i in (original, copy))
        assert (first - second.flip(2)).abs().mean() < 10 < (first - second).abs().mean()
        assert read_image(files[next(iter(planted["resized"]))[1]]).shape == (3, 5, 5)

    @pytest.mark.slow
    def test_the_quick_run(self, tmp_path):
        pytest.importorskip("imagehash")
        words = ["--image-size", "16", "--work", tmp_path / "work", "--out", tmp_path / "find.json"]
        run("experiments.find", "--quick", *words)
        result = json.loads((tmp_path / "find.json").read_text())
        assert result["subsets"].keys() == {"random", "k-centre", "facility-location", "log-determinant"}
        assert len(result["mislabels"]) == 5 and result["duplicates"]["perceptual_hash"]["pairs"] >= 0

    @pytest.mark.slow
    def test_the_service_gives_the_same_features_in_batches_and_by_onnx(self, tmp_path):
        run("speed.serve", "--quick", "--encoder", "tiny_resnet", "--out", tmp_path / "serve.json")
        result = json.loads((tmp_path / "serve.json").read_text())
        variants = {(one["runtime"], one["batches"], one["clients"]) for one in result["results"]}
        assert variants == {(a, b, c) for a in ("torch", "onnx") for b in ("batched", "single") for c in (1, 4)}
        differences = result["relative_differences"]
        assert differences.pop("onnx from torch") < 1e-4
        assert len(differences) == 4 and max(differences.values()) < 1e-5

    def test_search_is_exact(self, tmp_path):
        run("speed.search", "--quick", "--widths", "8", "32", "--out", tmp_path / "search.json")
        for one in json.loads((tmp_path / "search.json").read_text())["searches"]:
            assert one["equal_answers"] == one["queries"] == 3 and one["index_bytes"] == 6 * 5000 * one["width"]

    def test_passes_over_an_index_read_all_of_its_bytes(self, tmp_path):
        run("speed.search_passes", "--quick", "--out", tmp_path / "passes.json")
        passes = json.loads((tmp_path / "passes.json").read_text())["passes"]
        assert {name: one["bytes"] // (2000 * 512) for name, one in passes.items()} == {
            "reading": 2, "half": 2, "bfloat16": 2, "int8, torch._int_mm": 1, "int8, torch._weight_int8pack_mm": 1,
        }  # fmt: skip
