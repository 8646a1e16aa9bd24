"""The images of a request, read in chunks and within limits, and the refusals sent to a client."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matrix_ssl.api.serve.settings import ServeSettings
from matrix_ssl.runs.terminal import printable

if TYPE_CHECKING:
    from starlette.requests import Request

_LONGEST_NAME = 200  # characters of a file name quoted in a message
_FIELDS = 16  # fields of a form other than its images, which are ignored


class Refused(Exception):
    """A request that is refused: the HTTP status, and one sentence that says why."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Upload:
    """The bytes of an image file, and its name in messages."""

    content: bytes
    where: str


class Allowance:
    """An amount of something that all requests share; for use in one thread.

    Args:
        most: the amount.
        sentence: the reason given to a request that needs more than is left.
    """

    def __init__(self, most: int, sentence: str):
        self.used = 0
        self._most, self._sentence = most, sentence

    def take(self, count: int) -> None:
        """Takes an amount; raises Refused if there is not enough left."""
        if self.used + count > self._most:
            raise Refused(503, self._sentence)
        self.used += count

    def give(self, count: int) -> None:
        """Gives an amount back."""
        self.used -= count

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """A block that holds an amount and gives it back at the end."""
        self.take(count)
        try:
            yield
        finally:
            self.give(count)


class Body:
    """The body of a request, within its own limit and that of all requests together; release it with ``close``."""

    def __init__(self, request: "Request", settings: ServeSettings, held: Allowance):
        self._request, self._most, self._held = request, settings.request_bytes, held
        self._size = 0
        length = request.headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > self._most:
            raise self._too_large()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The bytes as they arrive; raises Refused if there are too many."""
        async for piece in self._request.stream():
            if self._size + len(piece) > self._most:
                raise self._too_large()
            self._held.take(len(piece))
            self._size += len(piece)
            yield piece

    def close(self) -> None:
        """Gives back what the body has taken from the shared limit."""
        self._held.give(self._size)
        self._size = 0

    def _too_large(self) -> Refused:
        return Refused(413, f"The request is larger than {self._most:,} bytes.")


async def read_uploads(request: "Request", body: Body, settings: ServeSettings) -> list[Upload]:
    """Reads the images of a request: the files of a form (multipart/form-data), or the whole body as one image.

    Raises:
        Refused: there is no image, there are too many, or the form is damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        content = b"".join([piece async for piece in body.pieces()])
        uploads = [Upload(content, "image 1")] if content else []
    else:
        uploads = await _read_form(request, body, settings)
    if not uploads:
        raise Refused(400, "The request holds no image: send one as the body, or files as multipart/form-data.")
    return uploads


async def _read_form(request: "Request", body: Body, settings: ServeSettings) -> list[Upload]:
    from starlette.formparsers import MultiPartException, MultiPartParser

    parser = MultiPartParser(request.headers, body.pieces(), max_files=settings.images, max_fields=_FIELDS)
    parser.spool_max_size = settings.request_bytes  # kept in memory, which the request's limit bounds
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Refused(413, f"The request holds more than {settings.images} images.") from None
        raise Refused(400, f"The form cannot be read: {printable(error.message).rstrip('.')}.") from None
    except KeyError:  # no boundary
        raise Refused(400, "The form cannot be read: its content type names no boundary.") from None
    try:
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        return [Upload(await file.read(), _where(number, file.filename or "")) for number, file in enumerate(files, 1)]
    finally:
        await form.close()


def _where(number: int, name: str) -> str:
    shown = printable(name[:_LONGEST_NAME]).replace("\n", "\\n").replace("\t", "\\t")
    return f"image {number}" + (f" ({shown})" if shown else "")
