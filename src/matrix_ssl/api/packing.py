"""Packs a dataset into a folder of a few files that hold all images, resumably and with checksums."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matrix_ssl.config.reading import Reading
from matrix_ssl.config.untrusted import file_sha256
from matrix_ssl.data.base import Source
from matrix_ssl.data.kinds.packed import FILES, PLAN
from matrix_ssl.data.packing import PackSettings, Shard, shards
from matrix_ssl.data.sources import Data, check_outside, describe, find_splits, read_as
from matrix_ssl.errors import DataError
from matrix_ssl.report.records import Text, parse
from matrix_ssl.runs.files import read_json, write_atomically, write_json
from matrix_ssl.runs.folder import claim, held
from matrix_ssl.training.engine import check_unreadable

Progress = Callable[[str, int, int], None]  # split, images done, number of images


@dataclass(frozen=True)
class Packed:
    """One packed file: the images of the split that it holds, and its expected size and checksum."""

    name: Text
    split: Text
    start: int  # index of the first image in the split
    stop: int  # one past the last
    images: int
    size: int  # bytes
    sha256: str
    unreadable: list[list[Text]]  # path and reason of the images that were left out


def pack(
    data: Data,
    out: Path,
    *,
    settings: PackSettings | None = None,
    workers: int = -1,
    max_unreadable: float = 0.01,
    fresh: bool = False,
    data_root: Path | None = None,
    download: bool = False,
    say: Callable[[str], None] = lambda text: None,
    on_progress: Progress = lambda split, done, total: None,
) -> list[Packed]:
    """Packs the splits of a dataset into ``SPLIT_NUMBER.npz`` files in a folder, which can then be used as ``data``.

    After an interruption, the same call continues with the first file that is missing or has the wrong checksum; the
    bytes written depend neither on that nor on the number of workers.

    Args:
        data, data_root, download: as for ``data.open_source``; colour images, or any with ``settings.channels``.
        out: a new folder, or the folder of an earlier call with the same settings and images.
        settings: sizes and quality; None: the defaults.
        workers: processes that read and encode; 0: this process; negative: one per core, at most 32.
        max_unreadable: fraction of a split's images, in [0, 1], that may be unreadable; ten always may.
        fresh: keep the contents of the folder under another name and start over.
        say: called with messages for the user.
        on_progress: called with (split, images done, number of images).

    Raises:
        DataError: there is no dataset, its images are grey, or too many cannot be read.
        RunFolderError: the folder is used for something else or cannot be written.
    """
    how = settings or PackSettings()
    check_outside(out, data, data_root=data_root)
    splits = find_splits(data, data_root=data_root, download=download)
    reading = Reading(channels=how.channels, pages=how.pages)
    sources = {"train": read_as(splits.train(), reading)}
    sources |= {} if splits.test is None else {"test": read_as(splits.test(), sources["train"].reading)}
    for split, source in sources.items():
        if source.channels != 3 and not source.reading.channels:
            raise DataError(f"The images of {source.name!r} are grey, and packed files hold colour images.")
        for remark in source.remarks:
            say(f"{split}: {remark}")
    with held(out, fresh=fresh, say=say, first=PLAN):
        claim(out, _plan(data, sources, how), first=PLAN)
        files = _done(out)
        for split, source in sources.items():
            files += _pack_split(out, split, source, how, files, workers=workers, on_progress=on_progress)
            unreadable = [image for one in files if one.split == split for image in one.unreadable]
            where = f"All are in {out / FILES}"
            check_unreadable(unreadable, len(source), where, part=max_unreadable, option="--max-unreadable ")
    return files


def _plan(data: Data, sources: dict[str, Source], how: PackSettings) -> dict[str, Any]:
    images = {split: {"images": len(source), "digest": source.digest} for split, source in sources.items()}
    settings, reading = dataclasses.asdict(how), Reading(channels=how.channels, pages=how.pages)
    kept = {name: settings.pop(name) for name in ("channels", "pages")}
    reads = {} if reading == Reading() else {"reading": kept}  # plans of earlier versions do not have it
    return {"places": {"data": describe(data)}, "settings": settings, **reads, **images}


def _done(out: Path) -> list[Packed]:
    """The files of an earlier call, up to the first that is missing or no longer as it was written."""
    if not (out / FILES).exists():
        return []
    files = parse(list[Packed], read_json(out / FILES), out / FILES, remedy="use --fresh to start over")
    for number, one in enumerate(files):
        path = out / Path(one.name).name
        if not path.is_file() or path.stat().st_size != one.size or file_sha256(path) != one.sha256:
            return files[:number]
    return files


def _pack_split(
    out: Path, split: str, source: Source, how: PackSettings, done: list[Packed], *, workers: int, on_progress: Progress
) -> list[Packed]:
    """Packs the missing part of a split and returns the new files."""
    before = [one for one in done if one.split == split]
    start, new = max((one.stop for one in before), default=0), list[Packed]()
    on_progress(split, start, len(source))
    for shard in shards(source, how, start=start, workers=workers) if start < len(source) else ():
        name = f"{split}_{len(before) + len(new):05d}.npz"
        new.append(_write(out / name, split, shard, source))
        write_json(out / FILES, [dataclasses.asdict(one) for one in done + new])
        on_progress(split, shard.stop, len(source))
    return new


def _write(path: Path, split: str, shard: Shard, source: Source) -> Packed:
    write_atomically(path, partial(shard.write, source=source))
    unreadable = [list(one) for one in shard.unreadable]
    size, images = path.stat().st_size, len(shard.images)
    return Packed(path.name, split, shard.start, shard.stop, images, size, file_sha256(path), unreadable)
