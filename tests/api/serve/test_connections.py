"""Connections behind a real socket that wait, or are too many."""

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn")
from matrix_ssl.api.serve import server
from matrix_ssl.errors import ConfigError

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(autouse=True)
def here() -> None:
    """Instead of the folder of runs, which these tests do not need."""


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers nothing but the status."""
    if scope["type"] == "lifespan":
        for _ in range(2):  # the start and the end
            await send({"type": (await receive())["type"] + ".complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("host", ["nohost.invalid", "a..b", "192.0.2.1"])
def test_a_host_that_is_not_of_this_machine(host: str) -> None:
    for port in (0, 8765):
        with pytest.raises(ConfigError, match=rf"--host {host} --port {port} cannot be bound \(.+\): name an address"):
            server.bind(host, port)


def serve(client: Callable[[int], None], *, seconds: float) -> None:
    """Runs the client, in a thread, beside a service on a port, and demands that neither fails."""
    bound = server.bind("127.0.0.1", 0)
    failures: list[BaseException] = []

    def ready() -> None:
        threading.Thread(target=ask).start()

    def ask() -> None:
        try:
            client(bound.getsockname()[1])
        except BaseException as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(server.Stopped):
        server.run(answering, bound, seconds=seconds, ready=ready, say=print)
    assert not failures, failures


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        yield client


def is_closed(client: socket.socket) -> bool:
    """Whether the service closes a connection, which is waited for."""
    try:
        return client.recv(99) == b""
    except ConnectionError:
        return True


def test_heads_that_do_not_arrive_are_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    def client(port: int) -> None:
        with connected(port) as silent, connected(port) as slow, connected(port) as usual, connected(port) as endless:
            start = time.monotonic()
            usual.sendall(HEAD + b"\r\n")
            assert usual.recv(99).startswith(b"HTTP/1.1 200")
            endless.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 9)
            assert endless.recv(99).startswith(b"HTTP/1.1 200")
            slow.sendall(HEAD)
            for one in (silent, slow, endless):
                assert is_closed(one)
            assert time.monotonic() - start >= 0.5
            with connected(port) as another:
                another.sendall(HEAD + b"\r\n")
                assert another.recv(99).startswith(b"HTTP/1.1 200")

    serve(client, seconds=0.5)
    assert capsys.readouterr().out == ""


def test_connections_are_fewer_than_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(server, "_FILES_BESIDE", before[0] - 2)

    def client(port: int) -> None:
        clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(2 + server._REFUSALS)]
        with connected(port) as further:
            assert is_closed(further)
        clients[0].sendall(HEAD + b"\r\n")
        assert clients[0].recv(99).startswith(b"HTTP/1.1 503")  # there are too many
        for one in clients:
            one.close()

    serve(client, seconds=60)
