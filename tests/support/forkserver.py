"""Runs the command line in forked children of a process that has imported PyTorch once; see ``runs.py``.

Requests and answers are JSON lines on standard input and output. A child may first execute Python code given with the
request, for example to give up a permission or to die inside a system call.
"""

import codecs
import functools
import gc
import importlib
import json
import os
import sys
import time
import traceback

import jinja2  # noqa: F401, this and some of the next the commands import when they need it
import numpy as np
import scipy.optimize
import sklearn.datasets
import sklearn.manifold
import torch

import matrix_ssl.cli.main
import matrix_ssl.compare.comparison
import matrix_ssl.data
import matrix_ssl.encoder
import matrix_ssl.evaluate.protocols
import matrix_ssl.methods.matrix_ssl
import matrix_ssl.report
import matrix_ssl.training.setup
from matrix_ssl.report.svg import drawing, inline_svg, new_figure


def child(request: dict) -> int:
    """What the forked process does. Returns its exit code."""
    os.setpgid(0, 0)
    os.chdir(request["folder"])
    for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.update(request["environment"])
    sys.argv = ["matrix-ssl", *request["arguments"]]
    try:
        exec(request["before"], {})
        matrix_ssl.cli.main.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(request: dict, ended: dict[int, int]) -> object:
    """Starts a child, or waits for one."""
    if "arguments" in request:
        sys.stdout.flush()
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
    """Draws a figure and steps an optimizer: what every child would otherwise import and look up again."""
    with drawing():
        figure = new_figure(100)
        figure.add_subplot().plot([0, 1], label="line")
        inline_svg(figure, "first", title="", description="")
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    scipy.optimize.minimize(lambda x: (x @ x, 2 * x), np.ones(2), jac=True, method="L-BFGS-B")


def main() -> None:
    """Serves until standard input closes."""
    torch.set_num_threads(1)
    sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)  # parsed for all children at once
    sklearn.datasets.load_digits()  # this and the next import what children without permissions could not
    codecs.lookup("unicode-escape")
    draw()
    for name in os.environ.get("PRELOAD", "").split():
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would write to, and so copy, all that it shares
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ended: dict[int, int] = {}
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), ended)), file=replies, flush=True)


if __name__ == "__main__":
    main()
