"""Rows of ``counts`` about files: damaged, malicious and odd ones, and what must not be in them."""

import contextlib
import io
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from matrix_ssl.data.files.images import read_image
from matrix_ssl.encoder.reading import read_tensors
from matrix_ssl.errors import CheckpointError, MatrixSSLError, UnreadableImage
from matrix_ssl.evaluate.detection.files import ImageFiles
from matrix_ssl.runs.checkpoint import load_newest, save_checkpoint
from matrix_ssl.runs.terminal import redact, redact_values, redact_words
from tests.encoder.test_reading import Command
from tests.faults.counts import count
from tests.runs.test_checkpoint import assert_equal, make_checkpoint
from tests.support import runs
from tests.support.runs import BARE, tiny


def damage(whole: bytes, other: bytes, draw: random.Random) -> bytes | None:
    """A checkpoint as it must not be; None: deleted."""
    start, stop = sorted(draw.sample(range(1, len(whole)), 2))
    changed = bytearray(whole)
    changed[start] ^= 1 << draw.randrange(8)
    return draw.choice([whole[:start], bytes(changed), whole[:start] + bytes(stop - start) + whole[stop:], None, other])


def test_damaged_checkpoints_are_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    draw = random.Random(4)
    before, newest, foreign = make_checkpoint(3), make_checkpoint(6), make_checkpoint(5)
    (tmp_path / "r").mkdir()
    (tmp_path / "f").mkdir()
    save_checkpoint(tmp_path / "r", before)
    path = save_checkpoint(tmp_path / "r", newest)
    whole, other = path.read_bytes(), save_checkpoint(tmp_path / "f", foreign).read_bytes()
    for _ in range(count(4)):
        content = damage(whole, other, draw)
        if content == whole:  # zeros in the place of zeros
            continue
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        found, problems = load_newest(tmp_path / "r")
        assert found is not None
        assert_equal(found, before)
        assert len(problems) == (content is not None) and all(str(path) in problem for problem in problems)


def odd_image(draw: np.random.Generator) -> tuple[str, bytes]:
    """A file of any kind that a folder of images may hold."""
    side = int(draw.integers(1, 40))
    rgb = draw.integers(0, 256, (side, int(draw.integers(1, 40)), 3), dtype=np.uint8)
    mode = ("RGB", "L", "CMYK", "1", "P", "RGBA", "LA", "I;16")[draw.integers(0, 8)]
    kind = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")[draw.integers(0, 6)]
    image = (
        Image.fromarray(rgb[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(rgb).convert(mode)
    )
    file = io.BytesIO()
    try:
        image.save(file, kind)
    except (OSError, ValueError):  # the format has no such images
        image.convert("RGB").save(file, kind)
    content = file.getvalue()
    fault = draw.integers(0, 6)
    if fault == 0:
        content = content[: int(draw.integers(0, len(content)))]
    elif fault == 1:
        place = int(draw.integers(0, len(content)))
        content = content[:place] + draw.bytes(4) + content[place + 4 :]
    elif fault == 2:
        content = (b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"GIF89a", bytes(100))[draw.integers(0, 5)]
    return (".jpg", ".png", ".tif", ".gif", ".bmp")[draw.integers(0, 5)], content


def test_odd_images_are_read_or_refused_the_same_way_each_time(tmp_path: Path) -> None:
    draw = np.random.default_rng(11)
    refused = 0
    for number in range(count(11)):
        ending, content = odd_image(draw)
        path = tmp_path / f"{number}{ending}"
        path.write_bytes(content)
        answers = []
        for _ in range(2):
            try:
                pixels = read_image(path)
                assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.numel()
                answers.append(pixels.numpy().tobytes())
            except UnreadableImage as error:
                assert str(path) in str(error) and "\n" not in str(error)
                answers.append(str(error).encode())
        assert answers[0] == answers[1]
        refused += answers[0].startswith(str(path).encode())
    assert 0 < refused < count(11)


CALLS: tuple[Callable[[Path], object], ...] = (
    lambda mark: Command(os.system, f"touch {mark}"),
    lambda mark: Command(eval, f"open({str(mark)!r}, 'w')"),
    lambda mark: Command(exec, f"open({str(mark)!r}, 'w')"),
    lambda mark: Command(Path.touch, mark),
    lambda mark: Command(open, str(mark), "w"),
    lambda mark: Command(os.mkdir, str(mark)),
    lambda mark: Command(subprocess.check_call, ["touch", str(mark)]),
    lambda mark: Command(np.save, str(mark), 1),
    lambda mark: Command(torch.save, 1, str(mark)),
    lambda mark: Command(getattr(os, "makedirs"), str(mark)),  # noqa: B009
)
NAMES = ("/tmp/outside.png", "../outside.png", "a/../../outside.png", "", "a\0b.png")


def test_malicious_pickles_and_archives(tmp_path: Path) -> None:
    draw = random.Random(12)
    for number in range(count(12)):
        mark, path = tmp_path / f"executed {number}", tmp_path / f"{number}.pth"
        evil = CALLS[number % len(CALLS)](mark)
        value = draw.choice([evil, {"state_dict": {"a": torch.zeros(1)}, "epoch": evil}, [evil]])
        torch.save(value, path, _use_new_zipfile_serialization=bool(number % 2))
        with pytest.raises(CheckpointError, match="nothing was executed"):
            read_tensors(path)
        assert not mark.exists()
        archive = tmp_path / f"{number}.tar"
        name = NAMES[number % len(NAMES)]
        with tarfile.open(archive, "w") as file:
            for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE):
                member = tarfile.TarInfo(name or "x")
                member.type, member.linkname = kind, "/etc/passwd"
                file.addfile(member)
        before = sorted(tmp_path.rglob("*"))
        with contextlib.suppress(MatrixSSLError):  # a name that leads out may be read, from the archive alone
            ImageFiles(archive).check([name])
        assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent / "outside.png").exists()


def test_planted_secrets_are_in_no_file_and_no_message(tmp_path: Path) -> None:
    draw = random.Random(13)
    secrets = ["".join(draw.choices("abcdefghjkmnpqrstuvwxyz23456789", k=24)) for _ in range(count(13))]
    names = ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
    environment = {}
    for number, secret in enumerate(secrets):
        texts = (
            f"https://user:{secret}@host/x",
            f"hub_token={secret}",
            f'"password": "{secret}"',
            f"api_key: {secret}",
        )
        assert secret not in redact(texts[number % len(texts)])
        assert secret not in str(redact_values({"access_token": secret, "a": [texts[0]]}))
        assert secret not in " ".join(redact_words(["--token", secret, "--set", f"secret={secret}"]))
        environment[f"{names[number % len(names)]}{'' if number < len(names) else f'_{number}_TOKEN'}"] = secret
    words = [*tiny("data.subset=128", "log_every=1"), "--logger", "csv"]
    ended = runs.run(tmp_path, words, before=BARE, environment=environment)
    assert ended.code == 0, ended.err
    shown = runs.run(tmp_path, ["pretrain", "--data", f"https://user:{secrets[0]}@host/x", "--out", "q"], before=BARE,
                     environment=environment)  # fmt: skip
    assert shown.code != 0
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    texts = [ended.out, ended.err, shown.out, shown.err]
    for secret in secrets:
        assert not any(secret.encode() in content for content in contents)
        assert not any(secret in text for text in texts)
