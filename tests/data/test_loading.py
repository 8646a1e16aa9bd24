"""Batches: the same samples and views for any number of processes and workers, and every kind of trouble on the way."""

import dataclasses
import os
import signal
import threading
import time
from typing import get_args

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from matrix_ssl.config import DataConfig, RunConfig, ViewConfig
from matrix_ssl.config.reading import CropMode
from matrix_ssl.data import workers
from matrix_ssl.data.files.images import read_or_replace
from matrix_ssl.data.loading import TrainingBatches, evaluation_batches, largest_batch
from matrix_ssl.errors import ConfigError, DataError, TrainingError, UnreadableImage
from tests.support.unreadable import PartlyUnreadable

CPU = torch.device("cpu")
SIDE = 16
VIEW = ViewConfig(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.8, brightness=0.4, hue=0.1, blur=0.5, noise=0.02)
CONFIG = RunConfig(data=DataConfig(image_size=SIDE, workers=0), views=(VIEW, VIEW), batch_size=8, seed=3)
CROPS_ONLY = ViewConfig(crop_scale=(0.3, 1.0))


def images(n, side=24):
    r = np.random.default_rng(0)
    coarse = torch.from_numpy(r.random((n, 3, 4, 4), dtype=np.float32))
    return (torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear") * 255).to(torch.uint8)


class Set(PartlyUnreadable):
    def __init__(self, n=24, *, bad=(), in_memory=False):
        super().__init__("set", images(n), bad=bad)
        if in_memory:
            self.images = self.pixels


class Lethal(Set):
    """Kills the worker that reads one of the images, after a while."""

    def __init__(self, n=24, *, deadly=5, after=0.0):
        super().__init__(n)
        self.deadly, self.after = deadly, after

    def read(self, index):
        if index == self.deadly and get_worker_info() is not None:
            time.sleep(self.after)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


class LostOnArrival(workers.Reader):
    """Opening its batches fails in the main process, as where a worker dies that is not yet known to be dead."""

    def __init__(self, kind):
        super().__init__(Set())
        self.kind = kind

    def batch(self, key):
        return Lost(self.kind)


class Lost:
    def __init__(self, kind):
        self.kind = kind

    def __setstate__(self, state):
        raise state["kind"]("reset by peer")


class Defective(Set):
    def __init__(self, kind=RuntimeError):
        super().__init__()
        self.kind = kind

    def read(self, index):
        raise self.kind("a defect of this source")


def batches(source, config=CONFIG, *, rank=0, world_size=1, dtype=torch.float32):
    return TrainingBatches(
        source, config.data, config.views, batch_size=config.batch_size, seed=config.seed,
        rank=rank, world_size=world_size, device=CPU, dtype=dtype,
    )  # fmt: skip


def configured(*, workers=0, view=VIEW, **changes):
    data = dataclasses.replace(CONFIG.data, workers=workers, **changes)
    return dataclasses.replace(CONFIG, data=data, views=(view, view))


def assert_same(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.step == y.step
        assert x.unreadable == y.unreadable
        assert np.array_equal(x.indices, y.indices)
        assert all(torch.equal(u, v) for u, v in zip(x.views, y.views, strict=True))


class TestOrder:
    def test_an_epoch_sees_every_image_once(self):
        order = batches(Set(24))
        epochs = [np.concatenate([order.samples(step)[1] for step in range(3 * e, 3 * e + 3)]) for e in range(3)]
        assert order.steps_per_epoch == 3
        assert [order.samples(step)[0] for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
        assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 3

    def test_the_rest_of_an_epoch_is_left_out(self):
        order = batches(Set(23))
        assert order.steps_per_epoch == 2
        assert len(set(np.concatenate([order.samples(step)[1] for step in range(2)]))) == 16

    def test_depends_on_the_seed_and_on_nothing_that_was_asked_before(self):
        order = batches(Set(24))
        forward = [order.samples(step)[1].tolist() for step in range(9)]
        assert [order.samples(step)[1].tolist() for step in reversed(range(9))] == forward[::-1]
        other = batches(Set(24), dataclasses.replace(CONFIG, seed=4))
        assert other.samples(0)[1].tolist() != forward[0]

    @pytest.mark.parametrize("processes", [2, 4, 8])
    def test_is_the_same_for_any_number_of_processes(self, processes):
        whole = batches(Set(24))
        parts = [batches(Set(24), rank=rank, world_size=processes) for rank in range(processes)]
        for step in range(7):
            together = np.concatenate([part.samples(step)[1] for part in parts])
            np.testing.assert_array_equal(together, whole.samples(step)[1])

    def test_of_a_million_images_costs_nothing_within_an_epoch(self):
        class Many(Set):
            def __len__(self):
                return 1_000_000

        order = batches(Many(1))
        order.samples(0)
        started = time.perf_counter()
        for step in range(100):
            order.samples(step)
        assert time.perf_counter() - started < 0.1


class TestViews:
    @pytest.mark.parametrize("in_memory", [False, True])
    @pytest.mark.parametrize("processes", [1, 2])
    def test_are_the_same_for_any_number_of_processes(self, in_memory, processes):
        whole = list(batches(Set(in_memory=in_memory)).iterate(0, 4))
        parts = [
            list(batches(Set(in_memory=in_memory), rank=r, world_size=processes).iterate(0, 4))
            for r in range(processes)
        ]
        for step in range(4):
            for view in (0, 1):
                together = torch.cat([part[step].views[view] for part in parts])
                assert torch.equal(together, whole[step].views[view])

    def test_are_the_same_for_any_number_of_workers(self):
        few = list(batches(Set(bad=[3])).iterate(0, 7))
        many = list(batches(Set(bad=[3]), configured(workers=2)).iterate(0, 7))
        assert_same(few, many)

    @pytest.mark.parametrize(("cores", "processes", "expected"), [(16, 1, 16), (16, 4, 4), (64, 1, 32), (1, 2, 0)])
    def test_are_read_by_a_worker_a_core(self, cores, processes, expected, monkeypatch):
        monkeypatch.setattr(workers.system, "cores", lambda: cores)
        monkeypatch.setattr(workers.system, "local_processes", lambda: processes)
        assert workers._worker_count(-1) == expected and workers._worker_count(40) == 40

    def test_are_the_same_however_many_images_a_worker_holds(self, monkeypatch):
        whole = list(batches(Set(bad=[3])).iterate(0, 3))
        monkeypatch.setattr(workers, "_WAITING_BYTES", 3 * 24 * 24 * 3)  # three of eight images
        assert_same(list(batches(Set(bad=[3])).iterate(0, 3)), whole)

    @pytest.mark.parametrize("in_memory", [False, True])
    def test_go_on_from_any_step(self, in_memory):
        source = Set(in_memory=in_memory)
        assert_same(list(batches(source).iterate(4, 7)), list(batches(source).iterate(0, 7))[4:])

    def test_of_files_and_of_memory_agree_to_a_grey_level(self):
        config = configured(view=CROPS_ONLY, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        from_memory = list(batches(Set(in_memory=True), config).iterate(0, 4))
        from_files = list(batches(Set(), config).iterate(0, 4))
        for a, b in zip(from_memory, from_files, strict=True):
            for x, y in zip(a.views, b.views, strict=True):
                assert (x - y).abs().max() <= 1.001 / 255

    def test_are_two_different_normalised_views_of_the_same_images(self):
        config = configured(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.5))
        (batch,) = batches(Set(in_memory=True), config).iterate(0, 1)
        one, two = batch.views
        assert one.shape == two.shape == (8, 3, SIDE, SIDE)
        assert ((one - two).abs().amax((1, 2, 3)) > 0.1).all()
        low, high = one.amin((0, 2, 3)), one.amax((0, 2, 3))
        mean, std = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.5])
        assert (low >= -mean / std - 1e-6).all()
        assert (high <= (1 - mean) / std + 1e-6).all()

    @pytest.mark.parametrize("in_memory", [False, True])
    @pytest.mark.parametrize("count", [1, 3])
    def test_of_any_number(self, in_memory, count):
        settings = {"batch_size": 8, "seed": 3, "rank": 0, "world_size": 1, "device": CPU, "dtype": torch.float32}
        source = Set(in_memory=in_memory)
        others = list(batches(source).iterate(0, 4))
        for found, pair in zip(
            TrainingBatches(source, CONFIG.data, (VIEW,) * count, **settings).iterate(0, 4), others, strict=True
        ):
            assert len(found.views) == count
            assert all(torch.equal(one, other) for one, other in zip(found.views, pair.views, strict=False))
            np.testing.assert_array_equal(found.indices, batches(source).samples(found.step)[1])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_several_sizes(self, workers):
        """Two as always, then three small ones: the first two do not change, and files are cut as memory is."""
        two = configured(workers=workers, view=CROPS_ONLY, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        local = dataclasses.replace(CROPS_ONLY, count=3, image_size=5)
        config = dataclasses.replace(two, views=(*two.views, local))
        of_files, pairs = (list(batches(Set(), settings).iterate(1, 4)) for settings in (config, two))
        of_memory = list(batches(Set(in_memory=True), config).iterate(1, 4))
        for found, pair, held in zip(of_files, pairs, of_memory, strict=True):
            assert [x.shape[-1] for x in found.views] == [x.shape[-1] for x in held.views] == [SIDE, SIDE, 5, 5, 5]
            assert all(torch.equal(x, y) for x, y in zip(found.views, pair.views, strict=False))
            assert all((x - y).abs().max() <= 1.001 / 255 for x, y in zip(found.views, held.views, strict=True))
            assert not torch.equal(found.views[2], found.views[3])

    def test_of_several_sizes_over_processes(self):
        config = dataclasses.replace(CONFIG, views=(dataclasses.replace(VIEW, count=2), ViewConfig(image_size=4)))
        for in_memory in (False, True):
            source = Set(in_memory=in_memory)
            (whole,) = batches(source, config).iterate(2, 3)
            parts = [next(iter(batches(source, config, rank=rank, world_size=2).iterate(2, 3))) for rank in range(2)]
            for number, view in enumerate(whole.views):
                assert torch.equal(torch.cat([part.views[number] for part in parts]), view)

    @pytest.mark.parametrize("in_memory", [False, True])
    def test_dtype_and_layout(self, in_memory):
        (batch,) = batches(Set(in_memory=in_memory), dtype=torch.float64).iterate(0, 1)
        assert batch.views[0].dtype == torch.float64
        assert batch.views[0].is_contiguous(memory_format=torch.channels_last)


class TestUnreadable:
    BAD = (2, 3, 11, 23)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_replaced_by_the_next_one_and_reported(self, workers):
        config = configured(workers=workers, view=ViewConfig(crop_ratio=(1.0, 1.0)))
        order = batches(Set(bad=self.BAD), config)
        readable = batches(Set(), config)
        substitutes = {2: 4, 3: 4, 11: 12, 23: 0}
        seen = dict(enumerate(order.iterate(0, 3)))
        plain = torch.cat([batch.views[0] for batch in readable.iterate(0, 3)])
        samples = np.concatenate([order.samples(step)[1] for step in range(3)])
        place = {int(sample): i for i, sample in enumerate(samples)}
        found = torch.cat([seen[step].views[0] for step in range(3)])
        indices = np.concatenate([seen[step].indices for step in range(3)])
        for sample in range(24):
            assert torch.equal(found[place[sample]], plain[place[substitutes.get(sample, sample)]])
            assert indices[place[sample]] == substitutes.get(sample, sample)
        reported = sorted({pair for batch in seen.values() for pair in batch.unreadable})
        assert reported == sorted((f"set/{i}", "cut short") for i in self.BAD)

    def test_without_a_readable_neighbour_is_an_error(self):
        with pytest.raises(
            DataError, match=r"24 images tried in a row cannot be read, the last one set/\d+: cut short; fix or"
        ):
            list(batches(Set(bad=range(24))).iterate(0, 1))

    def test_many_in_a_row_are_left_behind_in_ever_longer_strides(self):
        tried: list[int] = []

        def read(index: int) -> int:
            tried.append(index)
            if 50 <= index < 5_000:
                raise UnreadableImage(f"set/{index}", "cut short")
            return -index

        pixels, substitute, unreadable = read_or_replace(read, 60, 10_000)
        assert (pixels, substitute) == (-6_460, 6_460)
        assert tried == [*range(60, 160), *(60 + 100 * 2**k for k in range(7))]
        assert [where for where, _ in unreadable] == [f"set/{index}" for index in tried[:-1]]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_is_left_out_of_an_evaluation_and_listed(self, workers):
        data = configured(workers=workers).data
        parts = list(evaluation_batches(Set(bad=[0, 1, 2, 3, 9]), data, device=CPU, batch_size=4))
        indices = np.concatenate([part[0] for part in parts])
        assert indices.tolist() == [i for i in range(24) if i not in (0, 1, 2, 3, 9)]
        assert [p for part in parts for p in part[2]] == [(f"set/{i}", "cut short") for i in (0, 1, 2, 3, 9)]
        assert sum(len(part[1]) for part in parts) == 19


class TestEvaluation:
    @pytest.mark.parametrize("mode", get_args(CropMode))
    def test_of_files_and_of_memory_agree_to_a_grey_level(self, mode):
        data = dataclasses.replace(CONFIG.data, crop_fraction=0.875, crop_mode=mode)
        wide = Set()
        wide.pixels = wide.pixels[:, :, 4:20]
        files = list(evaluation_batches(wide, data, device=CPU, batch_size=10))
        wide.images = wide.pixels
        memory = list(evaluation_batches(wide, data, device=CPU, batch_size=10))
        assert [len(part[0]) for part in memory] == [len(part[0]) for part in files] == [10, 10, 4]
        for (i, x, _), (j, y, _) in zip(memory, files, strict=True):
            np.testing.assert_array_equal(i, j)
            assert x.shape == (len(i), 3, SIDE, SIDE)
            assert x.min() >= 0 and x.max() <= 1
            assert (x - y).abs().max() <= 1.001 / 255

    def test_at_its_own_size_gives_the_pixels(self):
        data = DataConfig(image_size=24, crop_fraction=1.0, workers=0)
        for in_memory in (True, False):
            source = Set(in_memory=in_memory)
            found = torch.cat([pixels for _, pixels, _ in evaluation_batches(source, data, device=CPU)])
            torch.testing.assert_close(found, source.pixels / 255, rtol=0, atol=1e-7)


class TestWorkers:
    sentence = r"A data-loading worker died.*data\.workers=1"

    def test_a_worker_killed_during_a_training_step_is_a_sentence_after_it(self):
        config = configured(workers=2)
        deadly = int(batches(Set(), config).samples(1)[1][0])  # of the second batch, while the first one is in use
        steps, started = [], time.monotonic()
        with pytest.raises(TrainingError, match=self.sentence):
            for batch in batches(Lethal(deadly=deadly, after=0.5), config).iterate(0, 60):
                end = time.monotonic() + 1.0
                while time.monotonic() < end:
                    time.sleep(0.01)
                steps.append(batch.step)
        assert steps == [0]
        assert time.monotonic() - started < 30

    def test_a_killed_worker_of_an_evaluation_is_a_sentence(self):
        with pytest.raises(TrainingError, match="A data-loading worker died"):
            list(evaluation_batches(Lethal(), configured(workers=2).data, device=CPU, batch_size=4))

    @pytest.mark.parametrize("kind", [ConnectionResetError, EOFError, FileNotFoundError])
    def test_a_worker_killed_between_message_and_memory_is_a_sentence(self, kind):
        with pytest.raises(TrainingError, match=self.sentence):
            list(workers.read_batches(LostOnArrival(kind), range(3), workers=1))

    @pytest.mark.parametrize("kind", [RuntimeError, FileNotFoundError, ConnectionResetError, EOFError])
    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_defect_in_a_source_keeps_its_name(self, workers, kind):
        with pytest.raises(kind, match="a defect of this source"):
            list(batches(Defective(kind), configured(workers=workers)).iterate(0, 1))

    def test_leave_the_signal_handlers_of_the_process(self):
        list(batches(Set(), configured(workers=1)).iterate(0, 1))
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL

    def test_work_in_another_thread(self):
        found = []
        thread = threading.Thread(target=lambda: found.extend(batches(Set(), configured(workers=1)).iterate(0, 1)))
        thread.start()
        thread.join()
        assert_same(found, list(batches(Set()).iterate(0, 1)))

    @pytest.mark.parametrize("processes", ["1", "3", "1000"])
    def test_default_number_shares_the_cores(self, monkeypatch, processes):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert_same(list(batches(Set(), configured(workers=-1)).iterate(0, 2)), list(batches(Set()).iterate(0, 2)))


class TestMistakes:
    def test_a_batch_larger_than_the_set(self):
        with pytest.raises(
            ConfigError, match=r"batch_size=8 is larger than the 7 images of 'set': use --set batch_size=4 or"
        ):
            batches(Set(7))
        batches(Set(8))

    def test_a_batch_that_does_not_divide(self):
        with pytest.raises(ConfigError, match="batch_size=8 must be a multiple of the 3 processes"):
            batches(Set(), world_size=3)

    @pytest.mark.parametrize(("images", "largest"), [(1, 1), (2, 2), (3, 2), (255, 128), (256, 256)])
    def test_largest_batch(self, images, largest):
        assert largest_batch(images) == largest
