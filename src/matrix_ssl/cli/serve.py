"""The command ``matrix-ssl serve``."""

import json
from pathlib import Path
from typing import Any

import click

from matrix_ssl import config
from matrix_ssl.cli import options
from matrix_ssl.errors import ConfigError


@click.command()
@options.where
@click.option("--index", type=options.PATH, metavar="FEATURES", help="File of features written by `embed`, in which "
              "/search searches.")  # fmt: skip
@click.option("--data", type=options.PATH, metavar="FOLDER", multiple=True, help="Folder of images to search in, "
              "instead of --index; new and changed images are embedded at startup. May be repeated.")  # fmt: skip
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on; the "
              "default can only be reached from this machine.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0: a free one.")
@options.assignments("Change a limit or the size of batches")
@click.option("--check", is_flag=True, help="Open everything, embed a black image, print the answer of /info, and "
              "exit.")  # fmt: skip
@options.weights
@options.device
@options.download_weights
def serve(
    where: str, index: Path | None, data: tuple[Path, ...], host: str, port: int, assignments: tuple[str, ...],
    check: bool, weights: Any, device: str, download: bool,
) -> None:  # fmt: skip
    """Serve the encoder WHERE over HTTP: features of images, and the most similar images.

    WHERE is an .onnx file that `matrix-ssl export` wrote, which needs no PyTorch; or a run folder, a checkpoint file,
    torchvision/NAME[:WEIGHTS], timm/NAME[.TAG], hf:NAME or random/NAME. Open the address that is printed in a browser
    for a page about /embed, /search, /health and /info. Ctrl-C stops the service.
    """
    from matrix_ssl.api.serve import server
    from matrix_ssl.api.serve.opening import open_index, open_served
    from matrix_ssl.api.serve.settings import ServeSettings

    settings = config.override(ServeSettings(), assignments)
    if index is not None and data:
        raise ConfigError(f"--index {index} and --data {data[0]} both say what to search in: give one of them.")
    server.check_packages()
    bound = None if check else server.bind(host, port)  # before a large index, which may take minutes
    encoder = open_served(where, weights=weights, device=device, download=download)
    images = None
    if index is not None or data:
        images = open_index(encoder, index, data=[str(folder) for folder in data])
    from matrix_ssl.api.serve.app import create_app
    from matrix_ssl.api.serve.service import Service

    if bound is None:
        create_app(encoder, index=images, settings=settings)
        click.echo(json.dumps(Service(encoder, images, settings).info(), indent=2))
        return
    is_local = server.is_loopback(bound)
    if not is_local:
        options.say(
            f"Warning: --host {host}: every machine that reaches this one over a network can send images and read the "
            "paths of those that are searched; there is no password."
        )
    app = create_app(encoder, index=images, settings=settings, hosts=server.LOOPBACK if is_local else ())
    server.run(
        app, bound, seconds=settings.seconds, say=options.say,
        ready=lambda: options.stdout.print(f"address {server.address(bound)}"),
    )  # fmt: skip
