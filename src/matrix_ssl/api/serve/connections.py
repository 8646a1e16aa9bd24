"""Limits on the service's connections: their number, and how long each may wait for a request."""

import asyncio
from typing import Any


def make_protocol(*, seconds: float, most: int) -> type:
    """uvicorn's protocol for HTTP/1.1 with limits for connections on which no request is being answered.

    On its own, uvicorn waits indefinitely for the head of a request from clients that send nothing, or one byte at a
    time, or more requests than have been answered.

    Args:
        seconds: time from the start of a connection, or from its last response, until the head of the next request has
            arrived; after that it is closed.
        most: maximum number of connections; further ones are closed at once.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._await_head()

        def data_received(self, data: bytes) -> None:
            answered = self.cycle
            super().data_received(data)
            if self.cycle is not answered:
                self._stop()

        def on_response_complete(self) -> None:
            answered = self.cycle
            super().on_response_complete()
            if self.cycle is answered:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._stop()
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()

    return Protocol
