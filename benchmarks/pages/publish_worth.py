"""Takes the results of ``matrix-ssl worth`` into the repository: their numbers and the page of docs/results.

    python -m benchmarks.pages.publish_worth runs/worth-images_small-cifar10 cifar10

Writes ``benchmarks/results/worth_NAME.json``, that is ``worth.json`` with seven digits, and fills the section NAME of
``docs/results/worth.md``: command, sentence, accuracies, differences, costs and hardware. What stands around the
markers of the page stays.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import page_command_line
from benchmarks.pages.publish import rounded
from benchmarks.pages.tables import fill, table
from matrix_ssl.report.records import parse
from matrix_ssl.report.worth.data import RESULTS as WORTH
from matrix_ssl.report.worth.data import Results
from matrix_ssl.report.worth.page import Row, accuracies, cost_note, costs, differences, sizes
from matrix_ssl.report.worth.words import notes, sentence
from matrix_ssl.runs.files import read_json, write_json


def main() -> None:
    parser = page_command_line(__doc__, docs="docs/results")
    parser.add_argument("folder", type=Path, help="the folder of the results")
    parser.add_argument("name", help="of the section")
    arguments = parser.parse_args()
    values: dict[str, Any] = rounded(without_folder(read_json(arguments.folder / WORTH)))
    path = arguments.results / f"worth_{arguments.name}.json"
    write_json(path, values)
    fill(arguments.docs / "worth.md", arguments.name, section(parse(Results, values, path, remedy="publish it again")))


def without_folder(values: dict[str, Any]) -> dict[str, Any]:
    """The results with the public encoder's file by its name: where it lies on this machine tells a reader nothing."""
    started = values.get("adapted_settings", {}).get("start", {}).get("reference", "")  # absolute, however it was given
    for reference in (values["public"]["reference"], started):
        folder, separator, _ = reference.rpartition("/")
        if Path(reference).is_absolute():
            values = json.loads(json.dumps(values).replace(json.dumps(folder + separator)[1:-1], ""))
    return values


def section(r: Results) -> str:
    """Everything that a reader needs to judge the results."""
    environment, settings, adapted = r.environment, dict(r.settings), dict(r.adapted_settings)
    setup = (
        f"{r.data.train:,} training images, {r.data.test:,} test images and {r.data.classes} classes of {r.data.name}, "
        f"{r.seeds} seeds; pre-training for {r.epochs:g} epoch{'s' * (r.epochs != 1)} with batch "
        f"size {settings['batch_size']} at {r.image_size} pixels, learning rate "
        f"{settings['optimizer']['learning_rate']:g} from scratch and "
        f"{adapted['optimizer']['learning_rate']:g} for the adaptation; training with labels for at least "
        f"{r.tuning['steps']} steps with batch size {r.tuning['batch_size']}. {sizes(r)}"
    )
    machine = (
        f"Measured on an {environment['processor']}, {environment['device']}, {environment['threads']} thread, on a "
        f"shared machine, Python {environment['python']}, PyTorch {environment['torch']}, commit "
        f"{environment['commit']}."
    )
    parts = [f"```\n{r.command}\n```", setup, machine, f"**{sentence(r)}**", *notes(r)]
    for title, rows in (
        ("Accuracy in %, with the 95 % interval", accuracies(r)),
        ("Differences in points, with the 95 % interval; bold if it excludes 0", differences(r)),
        ("Costs in minutes", costs(r)),
    ):
        parts.append(f"### {title}\n\n{markdown(rows)}")
    return "\n\n".join([*parts, cost_note(r)])


def markdown(rows: list[Row]) -> str:
    """Rows of cells as a table."""
    if not rows:
        return "Nothing has been measured yet.\n"
    cells = [[name, *(written(cell.value, cell.spread, cell.best) for cell in row)] for name, _, row in rows]
    return table(["", *(cell.heading for cell in rows[0][2])], cells)


def written(value: str, spread: tuple[str, ...], best: bool) -> str:
    """A cell, the best of a column or a supported difference bold."""
    return " ".join([f"**{value}**" if best else value, *spread])


if __name__ == "__main__":
    main()
