"""The limits of the service, and how it gathers images into batches."""

from typing import Annotated

from annotated_types import Ge, Gt, Le

from matrix_ssl.config.untrusted import MIB
from matrix_ssl.config.validation import settings


@settings
class ServeSettings:
    """What a service accepts, how long it waits, and how large its batches are."""

    batch: Annotated[int, Ge(1), Le(4096)] = 32  # maximum number of images in a batch; 1: no batching
    wait: Annotated[float, Ge(0.0), Le(1000.0)] = 2.0  # milliseconds that the first image of a batch waits for others
    request_bytes: Annotated[int, Ge(1)] = 64 * MIB  # maximum size of a request's body
    pixels: Annotated[int, Ge(1)] = 50_000_000  # maximum per image
    images: Annotated[int, Ge(1)] = 64  # maximum per request
    queue: Annotated[int, Ge(1)] = 256  # maximum number of images waiting at a time, over all requests
    held_bytes: Annotated[int, Ge(1)] = 256 * MIB  # maximum size of the bodies of all requests together
    seconds: Annotated[float, Gt(0.0)] = 60.0  # time limit for a request's head, its body and its response, each
    decoders: Annotated[int, Ge(1), Le(64)] = 4  # threads that decode images
    neighbours: Annotated[int, Ge(1)] = 1000  # maximum that a search may ask for
