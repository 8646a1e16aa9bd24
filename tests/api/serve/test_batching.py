"""Batches of the service: who goes together, and what becomes of errors, cancelled callers and the end."""

import threading

import numpy as np
import pytest

from matrix_ssl.api.serve.batching import Batcher


class Doubling:
    """Doubles numbers, one batch each time it is let."""

    def __init__(self):
        self.sizes, self.may_go, self.is_busy = [], threading.Semaphore(0), threading.Event()

    def __call__(self, numbers):
        self.is_busy.set()
        assert self.may_go.acquire(timeout=30)
        self.sizes.append(len(numbers))
        if (numbers < 0).any():
            raise ValueError("negative")
        return 2 * numbers


def test_what_comes_while_a_batch_is_computed_goes_together_up_to_the_limit():
    double = Doubling()
    batcher = Batcher(double, most=3, wait=0.0)
    first = batcher.submit(np.array([1.0]))
    assert double.is_busy.wait(30)
    rest = [batcher.submit(np.array([float(n)])) for n in range(2, 7)]
    for _ in range(3):
        double.may_go.release()
    assert [float(one.result(30)[0]) for one in (first, *rest)] == [2, 4, 6, 8, 10, 12]
    assert double.sizes == [1, 3, 2]
    batcher.close()


def test_the_first_waits_for_others():
    double = Doubling()
    double.may_go = threading.Semaphore(9)
    batcher = Batcher(double, most=2, wait=30.0)
    both = [batcher.submit(np.array([float(n)])) for n in (1, 2)]
    assert [float(one.result(20)[0]) for one in both] == [2, 4]  # as soon as the batch is full
    assert double.sizes == [2]
    last = batcher.submit(np.array([3.0]))
    batcher.close()  # what was submitted is computed, without waiting
    assert float(last.result(0)[0]) == 6
    again = batcher.submit(np.array([4.0]))
    batcher.close()
    assert float(again.result(0)[0]) == 8


def test_an_error_reaches_all_of_its_batch_and_nobody_else():
    double = Doubling()
    batcher = Batcher(double, most=2, wait=0.0)
    first = batcher.submit(np.array([1.0]))
    assert double.is_busy.wait(30)
    bad = [batcher.submit(np.array([n])) for n in (-1.0, 2.0)]
    gone = batcher.submit(np.array([5.0]))
    last = batcher.submit(np.array([3.0]))
    assert gone.cancel()
    for _ in range(3):
        double.may_go.release()
    assert float(first.result(30)[0]) == 2
    for one in bad:
        with pytest.raises(ValueError, match="negative"):
            one.result(30)
    assert float(last.result(30)[0]) == 6
    assert double.sizes == [1, 2, 1]  # the cancelled one was not computed
    batcher.close()
