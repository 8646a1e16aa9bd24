"""Gathers the inputs of single requests into batches, which one thread computes."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_Job = tuple[Array, "Future[Array]"]


class Batcher:
    """Computes a batched function for callers that each have a single array.

    A batch is computed as soon as it is full, or when its first array has waited long enough. While one batch is being
    computed the next one fills, so a busy service has full batches without waiting.

    Args:
        compute: maps arrays (n, ...) to results (n, ...); called in one thread.
        most: maximum number of arrays in a batch.
        wait: seconds that the first array of a batch waits for others.
    """

    def __init__(self, compute: Callable[[Array], Array], *, most: int, wait: float):
        self._compute, self._most, self._wait = compute, most, wait
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, array: Array) -> "Future[Array]":
        """A future for the result of one array; if it is cancelled in time, the result is not computed."""
        future: Future[Array] = Future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
                self._thread.start()
            self._jobs.put((array, future))
        return future

    def close(self) -> None:
        """Computes everything submitted so far and ends the thread; another ``submit`` starts a new one."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._jobs.put(None)
                thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs, is_last = self._gather(job)
            jobs = [one for one in jobs if one[1].set_running_or_notify_cancel()]
            if jobs:
                self._answer(jobs)
            if is_last:
                return

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        """A batch that begins with the given job, and whether it is the last one."""
        jobs, deadline = [first], time.monotonic() + self._wait
        while len(jobs) < self._most:
            try:
                job = self._jobs.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _answer(self, jobs: list[_Job]) -> None:
        try:
            results = self._compute(np.stack([array for array, _ in jobs]))
        except BaseException as error:
            for _, future in jobs:
                future.set_exception(error)
            return
        for (_, future), result in zip(jobs, results, strict=True):
            future.set_result(result)
