"""Runs the command line in forked children of a process that is itself forked from pytest, which has imported all that
the tests need; see ``runs.py``.

Requests and answers are JSON lines through two pipes. A child may first execute Python code that comes with the
request, for example to give up a permission or to die inside a system call.
"""

import codecs
import faulthandler
import functools
import gc
import importlib
import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

import jinja2  # noqa: F401, this and some of the next the commands import when they need it
import numpy as np
import scipy.optimize
import sklearn.datasets
import sklearn.manifold
import sklearn.model_selection
import threadpoolctl
import torch

import matrix_ssl.cli.main
import matrix_ssl.compare.comparison
import matrix_ssl.data
import matrix_ssl.encoder
import matrix_ssl.evaluate.map
import matrix_ssl.evaluate.protocols
import matrix_ssl.methods.matrix_ssl
import matrix_ssl.report
import matrix_ssl.training.setup
from matrix_ssl.report.svg import drawing, inline_svg, new_figure
from matrix_ssl.report.template import templates
from matrix_ssl.runs import processes

SEED = 67280421310721  # PyTorch's own, of a program that has not chosen one
FEW_CORES = "This DataLoader will create"  # of PyTorch, where a test has more workers than the machine has cores
MAP_STEPS, MAP_IMAGES = 250, 100  # of a t-SNE map, which most of a small evaluation would go into


def redirect(number: int, path: str) -> None:
    """Opens a file under a number of a descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    os.dup2(descriptor, number)
    os.close(descriptor)


def open_streams() -> None:
    """Puts new streams over the descriptors 0, 1 and 2."""
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = open(number, mode, encoding="utf-8", closefd=False, buffering=1 if name == "stderr" else -1)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def child(request: dict) -> int:
    """What the forked process does. Returns its exit code."""
    os.setpgid(0, 0)
    os.chdir(request["folder"])
    for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        redirect(number, path)
    os.environ.update(request["environment"])
    sys.argv = ["matrix-ssl", *request["arguments"]]
    try:
        exec(request["before"], {})
        open_streams()  # of what the descriptors are now
        importlib.import_module("matrix_ssl.cli.main").main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(request: dict, ended: dict[int, int]) -> object:
    """Starts a child, or waits for one."""
    if "arguments" in request:
        pid = os.fork()
        if pid == 0:
            code = child(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return pid
    deadline = time.monotonic() + request["seconds"]
    while request["wait"] not in ended and time.monotonic() < deadline:
        pid, status = os.waitpid(request["wait"], os.WNOHANG)
        if pid:
            ended[pid] = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.005)
    return ended.get(request["wait"])


def draw() -> None:
    """Draws a figure, splits rows and steps an optimizer: what every child would otherwise import and look up again."""
    with drawing():
        figure = new_figure(100)
        figure.add_subplot().plot([0, 1], label="line")
        inline_svg(figure, "first", title="", description="")
    for page in ("run.html", "comparison.html"):
        templates().get_template(page)
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    scipy.optimize.minimize(lambda x: (x @ x, 2 * x), np.ones(2), jac=True, method="L-BFGS-B")
    sklearn.model_selection.train_test_split(np.arange(4), stratify=[0, 0, 1, 1], test_size=2)


def save_time() -> None:
    """What children look up again and again stays known, and the map beside an evaluation is a small one."""
    importlib.metadata.version = functools.cache(importlib.metadata.version)
    sklearn.manifold.TSNE = functools.partial(sklearn.manifold.TSNE, max_iter=MAP_STEPS)
    matrix_ssl.evaluate.map.embedding_map.__kwdefaults__["most"] = MAP_IMAGES


def forget_pytest(requests: int, replies: int) -> None:
    """Gives the process the signals, streams and warnings of a program that was executed; its pipes become 0 and 3."""
    faulthandler.disable()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(requests, 0)
    os.dup2(os.dup(replies), 3)  # a copy, since the number may be the 3 that is replaced
    os.dup2(2, 1)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # channels to other processes of pytest among them
    open_streams()
    sys.excepthook, sys.unraisablehook, threading.excepthook = (
        sys.__excepthook__, sys.__unraisablehook__, threading.__excepthook__
    )  # fmt: skip
    logging.root.handlers.clear()
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", FEW_CORES, UserWarning)
    sys.warnoptions[:] = ["error", f"ignore:{FEW_CORES}"]  # for processes that the children start
    processes.subprocess = subprocess  # instead of what forked_jobs puts there
    for name in [name for name in os.environ if name == "MATRIX_SSL_DATA" or name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTORCH_NVML_BASED_CUDA_CHECK="1")
    sys.path.insert(0, str(Path(__file__).parent))


def serve(requests: int, replies: int) -> None:
    """Answers requests until the pipe that they come from closes."""
    forget_pytest(requests, replies)
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)  # what OMP_NUM_THREADS says to libraries that are still to be loaded
    if not hasattr(sklearn.datasets.load_digits, "cache_info"):  # parsed for all children at once
        sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
    sklearn.datasets.load_digits()  # this and the next import what children without permissions could not
    codecs.lookup("unicode-escape")
    draw()
    save_time()
    torch.manual_seed(SEED)
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, all that it shares
    ended: dict[int, int] = {}
    with os.fdopen(3, "w") as stream:
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line), ended)), file=stream, flush=True)


def fork_server() -> tuple[int, int, int]:
    """Forks a process that serves; returns its number and the pipes for requests to it and replies from it."""
    requests, ask = os.pipe()
    hear, replies = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            serve(requests, replies)
        except KeyboardInterrupt:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(requests)
    os.close(replies)
    return pid, ask, hear
