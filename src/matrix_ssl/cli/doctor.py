"""The command ``matrix-ssl doctor``."""

import json
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from matrix_ssl import __version__
from matrix_ssl.cli import options
from matrix_ssl.errors import install_command, some

EVERY = "every command"
# the extra that a part of a command needs, by command; "": the whole command
NEEDS = {
    EVERY: {
        "--data hf:NAME": "datasets",
        "encoders timm/NAME": "timm",
        "encoders hf:NAME": "huggingface",
        "--data with TIFF files of many bands": "tiff",
        "--data with DICOM files": "dicom",
        "--data with HEIC images": "heic",
        "faster decoding of JPEG files": "jpeg",
        "--set data.view_backend=opencv": "opencv",
    },
    "chain": {"--coco": "detection"},
    "detect": {"": "detection"},
    "explore": {"--map umap": "umap"},
    "export": {"--format timm": "timm", "--format huggingface": "huggingface", "--format onnx": "onnx"},
    "llm": {"": "llm", "finetune --load-in-4bit": "qlora"},
    "pretrain": {f"--logger {name}": name for name in ("tensorboard", "wandb", "mlflow")},
    "search": {"--approximate": "search"},
    "serve": {"": "serve"},
}
Row = tuple[str, ...]

_FEW_FILES = 1024  # a common limit; every worker process needs several dozen
_LITTLE_SHARED_MEMORY = 2**30  # bytes; the batches prefetched by eight workers may take as much
_MOST_WEIGHTS = 6  # names of weights per cache in the table; --json has all


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, sizes in bytes.")
def doctor(as_json: bool) -> None:
    """Show devices, limits, packages, extras and caches, and what is missing for each command. Works offline.

    The exit code is 1 where a package that every command needs is missing or too old.
    """
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        for table in tables(report):
            options.stdout.print(table)
    if not all(package["fits"] for package in report["packages"]):
        raise SystemExit(1)


def examine() -> dict[str, Any]:
    """The information that the command shows, as plain values; sizes in bytes."""
    from matrix_ssl.runs import caches, machine, packages

    extras = packages.describe_extras()
    missing = {name for name, members in extras.items() if not all(package["fits"] for package in members)}
    return {
        "version": __version__,
        "machine": machine.describe_machine(),
        "devices": machine.describe_devices(),
        "packages": packages.describe_packages(),
        "extras": extras,
        "caches": caches.describe_caches(),
        "lacks": {
            command: {part: extra for part, extra in parts.items() if extra in missing}
            for command, parts in NEEDS.items()
        },
    }


def tables(report: dict[str, Any]) -> list[Table]:
    """The results of ``examine``, for a terminal."""
    rows = [*_machine_rows(report), *_device_rows(report["devices"]), _package_row(report["packages"])]
    return [
        _table(f"matrix-ssl {report['version']}", ("", ""), rows),
        _table("Extras", ("extra", "state", "to install"), _extra_rows(report["extras"])),
        _table("Caches", ("cache", "size", "free on disk", "weights", "folder"), _cache_rows(report["caches"])),
        _table("Commands", ("command", "part", "lacks the extra"), _command_rows(report["lacks"])),
    ]


def _table(title: str, columns: tuple[str, ...], rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: the names of extras are in brackets
    return table


def _machine_rows(report: dict[str, Any]) -> list[Row]:
    machine, limit, shared = report["machine"], report["machine"]["open_files"], report["machine"]["shared_memory"]
    memory = machine["memory"]
    rows: list[Row] = [
        ("system", machine["system"]),
        ("Python", machine["python"]),
        ("PyTorch", machine["torch"]),
        ("memory", f"{_size(memory['free'])} of {_size(memory['total'])} free"),
        ("disk", f"{_size(machine['folder']['free'])} free in {machine['folder']['path']}"),
    ]
    if limit is not None:
        advice = "" if limit >= _FEW_FILES else f" (low: raise it with ulimit -n {_FEW_FILES})"
        rows.append(("open files", f"{limit} at most{advice}"))
    if shared is not None:
        advice = "" if shared["total"] >= _LITTLE_SHARED_MEMORY else " (low: start the container with --shm-size 8g)"
        rows.append(("shared memory", f"{_size(shared['free'])} of {_size(shared['total'])} free{advice}"))
    return rows


def _device_rows(devices: list[dict[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    for device in devices:
        words = [device["name"]]
        words += [f"{device['cores']} cores"] if "cores" in device else []
        words += [device["instructions"]] if "instructions" in device else []
        words += [_size(device["memory"])] if "memory" in device else []
        words += [f"compute capability {device['capability']}"] if "capability" in device else []
        if device.get("bfloat16") is not None:
            by = f" ({device['bfloat16_instructions']})" if device.get("bfloat16_instructions") else ""
            words.append(f"precision=auto is bfloat16{by}" if device["bfloat16"] else "precision=auto is float32")
        rows.append((device["device"], ", ".join(words)))
    return rows


def _package_row(packages: list[dict[str, Any]]) -> tuple[str, str]:
    bad = [_problem(package) for package in packages if not package["fits"]]
    fine = f"all {len(packages)} that every command needs"
    return "packages", f"{'; '.join(bad)}: run {install_command()}" if bad else fine


def _problem(package: dict[str, Any]) -> str:
    """What is wrong with a package that is missing or does not fit."""
    if package["version"] is None:
        return f"{package['name']} is missing"
    return f"{package['name']} is {package['version']}, needed is {package['required']}"


def _extra_rows(extras: dict[str, list[dict[str, Any]]]) -> list[Row]:
    rows: list[Row] = []
    for name, packages in extras.items():
        bad = [_problem(package) for package in packages if not package["fits"]]
        rows.append((name, "; ".join(bad) or "installed", install_command(name) if bad else ""))
    return rows


def _cache_rows(caches: dict[str, dict[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    for name, cache in caches.items():
        size = _size(cache["size"]) if cache["complete"] else f"over {_size(cache['size'])}"
        weights = cache["weights"]
        listed = some(weights, most=_MOST_WEIGHTS)
        rows.append((name, size if cache["exists"] else "none", _size(cache["free"]), listed or "none", cache["path"]))
    return rows


def _command_rows(lacks: dict[str, dict[str, str]]) -> list[Row]:
    rows: list[Row] = [
        (command, part or "all", extra) for command, parts in lacks.items() for part, extra in parts.items()
    ]
    return rows or [(EVERY, "all", "nothing")]


def _size(count: int) -> str:
    """Bytes in a unit in which the number has at most four digits."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.3g} {units[0]}"
