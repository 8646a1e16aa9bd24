"""From the bytes of a request to features: the resources that all requests share, and the steps of each request.

A request is read within its limits, its images are decoded by a few threads, their squares wait in one queue with those
of other requests, and the encoder processes them in batches.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from matrix_ssl import __version__
from matrix_ssl.api.serve.batching import Batcher
from matrix_ssl.api.serve.index import Index
from matrix_ssl.api.serve.served import ServedEncoder
from matrix_ssl.api.serve.settings import ServeSettings
from matrix_ssl.api.serve.uploads import Allowance, Body, Refused, Upload, read_uploads
from matrix_ssl.data.files.opening import TooManyPixels, at_most
from matrix_ssl.errors import OpenFilesError, UnreadableImage
from matrix_ssl.runs.terminal import printable

if TYPE_CHECKING:
    from starlette.requests import Request

_BUSY = "The service is busy: {} Try again later."
_NEIGHBOURS = 10  # unless the request says otherwise
Result = TypeVar("Result")


class Service:
    """An encoder with an index, for concurrent requests; all methods must be called from one event loop.

    Args:
        encoder: computes the features.
        index: the images to search; None: there are none.
        settings: limits and batch sizes.

    Raises:
        DataError: the index is of a different encoder.
    """

    def __init__(self, encoder: ServedEncoder, index: Index | None, settings: ServeSettings):
        if index is not None:
            index.check(encoder)
        self.encoder, self.index, self.settings = encoder, index, settings
        self._batcher = Batcher(encoder.features, most=settings.batch, wait=settings.wait / 1000)
        self._pool: ThreadPoolExecutor | None = None
        self._line = Allowance(settings.queue, _BUSY.format(f"{settings.queue} images wait already."))
        self._held = Allowance(settings.held_bytes, _BUSY.format("it holds as many bytes of requests as it may."))

    def info(self) -> dict[str, Any]:
        """Facts about the service: encoder, preparation of images, index and limits."""
        encoder, prepared, settings = self.encoder, self.encoder.preparation, self.settings
        return {
            "version": __version__,
            "encoder": encoder.name,
            "weights": encoder.weights,
            "width": encoder.width,
            "image_size": prepared.image_size,
            "crop_fraction": prepared.crop_fraction,
            "crop_mode": prepared.crop_mode,
            "mean": list(prepared.mean),
            "std": list(prepared.std),
            "channels": len(prepared.mean),
            "runtime": encoder.runtime,
            "sha256": encoder.sha256,
            "encoder_digest": encoder.digest or None,
            "index": None if self.index is None else {"name": self.index.name, "images": len(self.index)},
            "limits": {
                "request_bytes": settings.request_bytes,
                "pixels": settings.pixels,
                "images": settings.images,
                "queue": settings.queue,
                "seconds": settings.seconds,
            },
        }

    @property
    def waiting(self) -> int:
        """Number of images waiting for their features."""
        return self._line.used

    async def embed(self, request: "Request") -> NDArray[np.float32]:
        """The features (n, k) of the images in a request.

        Raises:
            Refused: the request is too large, too slow or damaged, or the service is busy.
        """
        body = Body(request, self.settings, self._held)
        try:
            async with asyncio.timeout(self.settings.seconds):
                uploads = await read_uploads(request, body, self.settings)
        except TimeoutError:
            body.close()
            raise Refused(408, f"The request did not arrive within {self.settings.seconds:g} s.") from None
        except BaseException:
            body.close()
            raise
        try:
            return await self._in_time(self._features(uploads))
        finally:
            body.close()

    async def search(self, request: "Request", k: int | None) -> list[list[dict[str, Any]]]:
        """The k nearest images in the index to every image of a request (None: up to 10); Refused as in ``embed``."""
        index = self.index
        if index is None:
            raise Refused(404, "There is nothing to search in: start the service with --index or --data.")
        most = min(len(index), self.settings.neighbours)
        k = min(_NEIGHBOURS, most) if k is None else k
        if not 1 <= k <= most:
            raise Refused(422, f"k={k}: expected 1 to {most}.")
        queries = await self.embed(request)
        return await self._in_time(self._in_thread(partial(index.search, queries, k=k)))

    def close(self) -> None:
        """Ends the threads; another request starts new ones."""
        self._batcher.close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    async def _features(self, uploads: list[Upload]) -> NDArray[np.float32]:
        if len(uploads) > self.settings.images:
            raise Refused(413, f"The request holds more than {self.settings.images} images.")
        with self._line.taken(len(uploads)):
            squares = await asyncio.gather(*(self._in_thread(partial(self._square, one)) for one in uploads))
            answers = [asyncio.wrap_future(self._batcher.submit(square)) for square in squares]
            try:
                features = np.stack(await asyncio.gather(*answers))
            finally:
                for answer in answers:
                    answer.cancel()  # has no effect on those already computed
        if not np.isfinite(features).all():
            raise Refused(500, "The encoder gives features that are not finite.")
        return features

    def _square(self, upload: Upload) -> NDArray[Any]:
        try:
            with at_most(self.settings.pixels):
                return self.encoder.square(upload.content, upload.where)
        except TooManyPixels as error:
            raise Refused(413, _sentence(error)) from None
        except UnreadableImage as error:
            raise Refused(422, _sentence(error)) from None
        except OpenFilesError:
            raise Refused(503, _BUSY.format("too many files are open.")) from None

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.settings.decoders, thread_name_prefix="images")
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def _in_time(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self.settings.seconds):
                return await work
        except TimeoutError:
            raise Refused(
                503, f"The answer took longer than {self.settings.seconds:g} s. Send fewer images, or try again later."
            ) from None


def _sentence(error: Exception) -> str:
    return printable(f"{error}").replace("\n", " ").rstrip(".") + "."
