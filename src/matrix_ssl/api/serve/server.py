"""Runs the application behind a socket until a signal arrives, then answers the requests already accepted."""

import errno
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from matrix_ssl.api.serve.connections import make_protocol
from matrix_ssl.config.system import open_file_limit
from matrix_ssl.errors import ConfigError, MatrixSSLError, import_extra
from matrix_ssl.runs.signals import collected

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_CONNECTIONS = 1000
_REFUSALS = 16  # connections beyond the limit that are kept open just to be refused
_FILES_BESIDE = 64 + _REFUSALS  # open files besides those of the connections
_IDLE_SECONDS = 5  # time that a connection stays open for a next request
_POLL_SECONDS = 0.1


def check_packages() -> None:
    """Raises MissingExtra if a package of the extra ``serve`` is not installed, before an index is computed."""
    for package in ("fastapi", "python_multipart", "uvicorn"):
        import_extra(package, extra="serve")


class Stopped(MatrixSSLError):
    """A signal stopped the service; the exit code is 128 plus its number."""

    def __init__(self, number: int):
        super().__init__(f"Stopped by {signal.Signals(number).name}, after the last answer.")
        self.exit_code = 128 + number


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address and a port (0 for a free one); ConfigError if that is impossible."""
    try:
        if host == "localhost":
            host = LOOPBACK[0]
        try:
            family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        except ValueError:
            family, host = _look_up(host)
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        if port == 0 or isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            remedy = f"name an address of this machine, such as {LOOPBACK[0]}"
        else:
            remedy = "choose a different port, or --port 0 for a free one"
        raise ConfigError(f"--host {host} --port {port} cannot be bound ({error.strerror}): {remedy}.") from None
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether the socket can be reached only from this machine."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def address(bound: socket.socket) -> str:
    """The URL of a bound socket, for a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(
    app: Any, bound: socket.socket, *, seconds: float, ready: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Serves until a signal arrives, and then until all accepted requests are answered.

    Args:
        app: the application.
        bound: the socket.
        seconds: time limit for the head and for the body of a request, each; it also holds after the signal.
        ready: called once the service accepts requests.
        say: called with the server's messages: requests that are not HTTP, and bugs with their traceback.

    Raises:
        Stopped: after a signal. A second SIGINT raises KeyboardInterrupt at once.
        MissingExtra: uvicorn is not installed.
    """
    uvicorn = import_extra("uvicorn", extra="serve")
    limit = open_file_limit()
    most = _MOST_CONNECTIONS if limit is None else max(1, min(_MOST_CONNECTIONS, limit - _FILES_BESIDE))
    config = uvicorn.Config(
        app, loop="asyncio", http=make_protocol(seconds=seconds, most=most + _REFUSALS), ws="none", lifespan="on",
        log_config=None, access_log=False, server_header=False, limit_concurrency=most,
        timeout_keep_alive=_IDLE_SECONDS, timeout_graceful_shutdown=int(seconds) + 1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    handlers = {"uvicorn": _Saying(say), "python_multipart": logging.NullHandler()}  # the latter quotes requests
    for name, handler in handlers.items():
        logging.getLogger(name).addHandler(handler)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="server", daemon=True)
    try:
        with collected() as received:
            thread.start()
            while thread.is_alive() and not server.started and not received:
                thread.join(_POLL_SECONDS)
            if server.started and not received:
                ready()
            while thread.is_alive() and not received:
                thread.join(_POLL_SECONDS)
            server.should_exit = True
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
    finally:
        for name, handler in handlers.items():
            logging.getLogger(name).removeHandler(handler)
        bound.close()
    if not received:
        raise MatrixSSLError("The service could not start; what it said before is why.")
    raise Stopped(received[0])


class _Saying(logging.Handler):
    def __init__(self, say: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(self.format(record))


def _look_up(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        family, *_, place = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except UnicodeError:  # a label between dots is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    return family, str(place[0])
