"""The command serve: a process behind a real socket, its signals, and mistakes in its words."""

import json
import signal
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest

from tests.support import runs
from tests.support.served import encoded, pixels, write_onnx

# connections to elsewhere are noted and refused
ATTEMPTS = """
import socket
def refuse(*place, **_):
    print(f"attempt: {place}", flush=True)
    raise OSError(101, "Network is unreachable")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.gethostbyname = refuse
"""


@pytest.fixture
def model(tmp_path):
    write_onnx(tmp_path / "m.onnx")
    features = np.random.default_rng(0).random((4, 5), dtype=np.float32)
    np.savez(tmp_path / "f.npz", features=features, where=np.array(["a", "b\x1b[31m", "c", "d"]))
    return tmp_path


def started(folder, *words):
    """A service and its address."""
    command = runs.start(folder, ["serve", "m.onnx", "--port", "0", *words], before=ATTEMPTS)
    end = time.monotonic() + runs.PATIENCE
    while "\n" not in command.out() and time.monotonic() < end:
        time.sleep(0.02)
    assert command.out().startswith("address http://127.0.0.1:"), (command.out(), command.err())
    return command, command.out().split()[1]


def ask(address, path, content=None):
    with urllib.request.urlopen(urllib.request.Request(address + path, data=content), timeout=60) as answer:
        return json.load(answer)


def test_serves_until_a_signal(model):
    command, address = started(model, "--index", "f.npz")
    assert ask(address, "/health") == {"status": "ok", "waiting": 0}
    assert len(ask(address, "/embed", encoded(pixels(0)))["features"][0]) == 5
    assert len(ask(address, "/search?k=2", encoded(pixels(0)))["neighbours"][0]) == 2
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"\x1b[31m no http \xff\r\n\r\n")
        assert client.recv(99).startswith(b"HTTP/1.1 400")
    command.send(signal.SIGTERM)
    ended = command.wait()
    assert ended.code == 128 + signal.SIGTERM, ended
    assert ended.err.splitlines()[-1] == "error: Stopped by SIGTERM, after the last answer."
    assert ended.out == f"address {address}\n"  # and no attempt
    assert "\x1b" not in ended.err and "Traceback" not in ended.err


@pytest.mark.slow
def test_answers_what_it_has_accepted_before_it_stops(model):
    # a batch that never fills: its first image waits for a second
    command, address = started(model, "--set", "wait=1000")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(address, "/embed", encoded(pixels(0)))))
    thread.start()
    while not ask(address, "/health")["waiting"]:
        pass
    command.send(signal.SIGINT)
    ended = command.wait()
    thread.join()
    assert (ended.code, len(answers)) == (130, 1), ended
    assert ended.err.splitlines()[-1] == "error: Stopped by SIGINT, after the last answer."


def test_says_what_it_is_without_serving(model):
    info = json.loads(runs.succeed(model, ["serve", "m.onnx", "--index", "f.npz", "--check"]).out)
    assert (info["encoder"], info["width"], info["index"]) == ("small", 5, {"name": "f.npz", "images": 4})


def test_a_mistake_is_one_sentence(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, reason in (
            (["--port", port], f"--port {port} cannot be bound (Address already in use): choose a different port"),
            (["--host", "300.0.0.1"], "--host 300.0.0.1"),
            (["--index", "f.npz", "--data", "."], "both say what to search in"),
            (["--set", "batch=0"], "batch=0"),
            (["--set", "batches=3"], "Did you mean 'batch'?"),
        ):
            before = ATTEMPTS if "--host" in words else ""
            assert reason in runs.fail(model, ["serve", "m.onnx", *words], before=before)
