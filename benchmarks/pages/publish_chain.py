"""Takes the results of a chain into the repository: its numbers and the page of docs/results.

    python -m benchmarks.pages.publish_chain runs/chain "matrix-ssl chain images_small --data imagenette128 ..."

Writes ``benchmarks/results/chain.json``, which bundles the run's JSON files without places and curves, and fills
``docs/results/chain.md``. What stands around the markers of the page stays.
"""

from pathlib import Path
from typing import Any

from benchmarks.harness import page_command_line
from benchmarks.pages.publish import rounded
from benchmarks.pages.tables import fill, table
from matrix_ssl.report.formats import duration
from matrix_ssl.report.tables import read_tables
from matrix_ssl.runs.files import read_json, write_json

FILES = ("config.json", "summary.json", "environment.json", "evaluation/*/*.json", "detection/*/result.json")
LEFT_OUT = {"places", "curve", "source", "data_root"}  # where things were, and what is longer than a page


def main() -> None:
    parser = page_command_line(__doc__, docs="docs/results")
    parser.add_argument("run", type=Path, help="the run folder of the chain")
    parser.add_argument("command", help="as it was typed, with places replaced by names")
    arguments = parser.parse_args()
    paths = [path for pattern in FILES for path in sorted(arguments.run.glob(pattern))]
    files = {str(path.relative_to(arguments.run)): rounded(shortened(read_json(path))) for path in paths}
    write_json(arguments.results / "chain.json", {"command": arguments.command, "files": files})
    fill(arguments.docs / "chain.md", "chain", section(arguments.run, arguments.command, files))


def shortened(value: Any) -> Any:
    """Without what ``LEFT_OUT`` names."""
    if isinstance(value, dict):
        return {key: shortened(member) for key, member in value.items() if key not in LEFT_OUT}
    return [shortened(member) for member in value] if isinstance(value, list) else value


def section(run: Path, command: str, files: dict[str, Any]) -> str:
    """Command, machine, pre-training, and a table for each set and for detection."""
    parts = [f"```\n{command}\n```\n", made_on(files), pre_training(files)]
    for found in read_tables(run):
        parts.append(f"## {found.title}\n\n{found.note}\n\n{found.markdown()}\n")
    if detections := {name: value for name, value in files.items() if name.startswith("detection/")}:
        parts.append(detection(detections))
    return "\n".join(parts)


def made_on(files: dict[str, Any]) -> str:
    """The sentence on the machine."""
    environment = files["environment.json"]
    commits = sorted({value["environment"]["commit"] for value in files.values() if "environment" in value})
    return (
        f"Measured on an {environment['processor']}, {environment['device']}, {environment['threads']} thread, on a "
        f"shared machine, Python {environment['python']}, PyTorch {environment['torch']}, torchvision "
        f"{environment['torchvision']}; commit {environment['commit']} (pre-training) and {', '.join(commits)}.\n"
    )


def pre_training(files: dict[str, Any]) -> str:
    """The sentence on the encoder."""
    config, summary = files["config.json"], files["summary.json"]
    return (
        f"Pre-training with {config['method']['name']}: {config['network']['encoder']}, {summary['parameters']:,} "
        f"parameters, {summary['data']['images']:,} images of {summary['data']['name']} at "
        f"{config['data']['image_size']} pixels, {summary['epochs']} epochs with batch size {config['batch_size']}, "
        f"{summary['steps']} steps, seed {config['seed']}, {duration(summary['seconds_training'])}.\n"
    )


def detection(results: dict[str, Any]) -> str:
    """What the average precisions come from."""
    rows = []
    for name, value in results.items():
        rows.append([
            name.split("/")[1], f"{value['counts']['train']['images']:,}", f"{value['counts']['val']['images']:,}",
            f"{value['iterations']:,} of {value['settings']['batch_size']}", f"{value['images_per_second']:.2f}",
            duration(value["seconds_training"]), interval(value, "box"), interval(value, "mask"),
        ])  # fmt: skip
    heads = ["", "trained on", "scored on", "iterations", "images/s", "training", "box AP, 95 %", "mask AP, 95 %"]
    return table(heads, rows)


def interval(value: dict[str, Any], kind: str) -> str:
    """The interval of the average precision in percent; a dash if its resamples agree."""
    bounds = value["interval_95"][kind]["AP"]
    return "–" if bounds is None else " to ".join(f"{100 * bound:.1f}" for bound in bounds)


if __name__ == "__main__":
    main()
