"""The service in one process: answers, limits, hostile uploads, many clients at once."""

import asyncio
import io
import json
import re
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from matrix_ssl.api.run import Run
from matrix_ssl.api.serve import ServeSettings, create_app, open_index, open_served
from matrix_ssl.api.serve.service import Service
from matrix_ssl.api.serve.uploads import Refused
from matrix_ssl.data.kinds.folder import open_folder
from matrix_ssl.data.objects import as_data
from matrix_ssl.errors import ConfigError, DataError
from matrix_ssl.evaluate.explore.neighbours import nearest
from tests.support.encoder_runs import make_run
from tests.support.served import SETTINGS, Means, encoded, pixels

NPY = {"Accept": "application/x-npy"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run ``r``, images of two classes in ``photos``, and their features by ``embed`` in ``f.npz``."""
    folder = tmp_path_factory.mktemp("serve")
    make_run(folder / "r", *SETTINGS)
    for seed in range(8):
        path = folder / "photos" / "ab"[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels(seed, 20 + seed, 24)))
    embedding = Run(folder / "r").embed(
        as_data(open_folder(folder / "photos", name="photos")), device="cpu", quiet=True
    )
    embedding.save(folder / "f.npz")
    embedding.save(folder / "f.csv")
    return folder, embedding


@pytest.fixture(scope="module")
def encoder(place):
    return open_served(place[0] / "r", device="cpu")


@pytest.fixture(scope="module")
def client(place, encoder):
    with TestClient(create_app(encoder, index=open_index(encoder, place[0] / "f.npz"))) as client:
        yield client


def contents(embedding):
    return [Path(path).read_bytes() for path in embedding.paths]


def means(**settings):
    """A client of a service that gives the mean of every channel, and its encoder."""
    encoder = Means()
    app = create_app(encoder, settings=ServeSettings(**settings))
    return TestClient(app, raise_server_exceptions=False), encoder


class TestAnswers:
    def test_are_the_features_of_embed(self, place, client):
        _, embedding = place
        files = contents(embedding)
        one = client.post("/embed", content=files[0])
        assert (one.status_code, one.headers["content-type"]) == (200, "application/json")
        assert one.json()["width"] == embedding.features.shape[1]
        many = client.post("/embed", files=[("image", (f"{n}.png", file)) for n, file in enumerate(files)])
        stored = client.post(
            "/embed", files=[("image", (f"{n}.png", file)) for n, file in enumerate(files)], headers=NPY
        )
        array = np.load(io.BytesIO(stored.content), allow_pickle=False)
        np.testing.assert_array_equal(np.array(many.json()["features"], dtype=np.float32), array)
        scale = np.abs(embedding.features).max()
        np.testing.assert_allclose(array, embedding.features, rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(one.json()["features"], embedding.features[:1], rtol=0, atol=1e-6 * scale)

    def test_of_a_search_are_the_nearest_neighbours_with_places_and_labels(self, place, client):
        _, embedding = place
        files = contents(embedding)[2:4]
        answer = client.post("/search?k=5", files=[("a", ("x", file)) for file in files]).json()["neighbours"]
        expected = nearest(embedding.features, embedding.features[2:4], k=5)
        for rows, indices, similarities in zip(answer, *expected, strict=True):
            assert [row["path"] for row in rows] == [embedding.paths[i] for i in indices]
            assert [row["label"] for row in rows] == [embedding.classes[embedding.labels[i]] for i in indices]
            assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
            np.testing.assert_allclose([row["similarity"] for row in rows], similarities, atol=2e-6)

    def test_say_what_the_service_is(self, place, client, encoder):
        info = client.get("/info").json()
        assert (info["encoder"], info["width"], info["image_size"]) == ("tiny_resnet", encoder.width, 16)
        assert (info["mean"], info["crop_fraction"], info["index"]["images"]) == ([0.5, 0.4, 0.3], 0.875, 8)
        assert re.fullmatch("[0-9a-f]{64}", info["sha256"])
        assert str(place[0]) not in json.dumps(info)
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}
        paths = client.get("/openapi.json").json()["paths"]
        assert set(paths) == {"/embed", "/search", "/health", "/info"}

    @pytest.mark.parametrize("path", ["/", "/docs"])
    def test_include_a_page_without_scripts_and_addresses_elsewhere(self, client, path):
        page = client.get(path)
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "<script" not in page.text and "POST /search" in page.text
        assert set(re.findall(r"(?:src|href|action)=\"([^\"]*)\"", page.text)) == {"openapi.json", "embed", "search"}
        assert set(re.findall(r"https?://([^/\s]+)", page.text)) == {"ADDRESS"}

    def test_of_addresses_that_do_not_exist_are_sentences(self, client):
        assert client.get("/nope").json() == {"error": "There is no such address."}
        assert client.get("/embed").status_code == 405
        wrong = client.post("/search?k=many", content=b"x")
        assert (wrong.status_code, wrong.json()["error"][:3]) == (422, "k: ")
        assert client.post("/search?k=9", content=b"x").json() == {"error": "k=9: expected 1 to 8."}


class TestIndex:
    def test_of_folders_is_that_of_embed(self, place, encoder, capsys):
        folder, embedding = place
        (folder / "more").mkdir()
        for name, file in zip("cab", contents(embedding), strict=False):
            (folder / "more" / f"{name}.png").write_bytes(file)
        (folder / "more" / "bad\x1b.png").write_bytes(b"no")
        index = open_index(encoder, data=str(folder / "more"), quiet=False)
        assert [path[-5:] for path in index.paths] == ["a.png", "b.png", "c.png"]
        units = embedding.features[:3] / np.linalg.norm(embedding.features[:3], axis=1, keepdims=True)
        np.testing.assert_allclose(index.units[[2, 0, 1]], units, rtol=0, atol=1e-5)
        assert "Skipped" in (err := capsys.readouterr().err) and "\x1b" not in err

    def test_is_read_from_other_files(self, place, encoder):
        index = open_index(encoder, place[0] / "f.csv")
        assert (len(index), index.labels[:2]) == (8, ["a", "a"])

    def test_of_a_different_encoder_is_refused(self, place, encoder):
        folder, embedding = place
        arrays = dict(np.load(folder / "f.npz"))
        np.savez(folder / "g.npz", **{**arrays, "encoder_digest": np.array("other")})
        np.savez(folder / "h.npz", **{**arrays, "features": embedding.features[:, :5]})
        np.savez(folder / "i.npz", **{**arrays, "where": arrays["where"][:3]})
        np.savez(folder / "j.npz", features=np.array([["a", "b"]]))
        np.savez(folder / "k.npz", **{**arrays, "labels": arrays["labels"] - 1})
        for name, reason in (("g", "different encoder"), ("h", "5 features an image"), ("i", "different numbers"),
                             ("j", "cannot be read as features"), ("k", "a label is below zero")):  # fmt: skip
            with pytest.raises(DataError, match=reason):
                open_index(encoder, folder / f"{name}.npz")
        with pytest.raises(DataError, match=r"absent\.npz cannot be read"):
            open_index(encoder, folder / "absent.npz")
        with pytest.raises(ConfigError, match=r"--data .*f\.npz is not a folder"):
            open_index(encoder, data=str(folder / "f.npz"))

    def test_is_needed_for_a_search(self):
        client, _ = means()
        answer = client.post("/search", content=b"x")
        assert (answer.status_code, "--index" in answer.json()["error"]) == (404, True)

    def test_an_encoder_of_grey_images_is_refused(self, tmp_path):
        make_run(tmp_path / "r", "network.encoder=tiny_resnet", "network.width=8", "data.image_size=8",
                 "data.mean=0.5", "data.std=0.5")  # fmt: skip
        with pytest.raises(ConfigError, match="takes images of 1 channel, and files are read in 3 colours"):
            open_served(tmp_path / "r", device="cpu")


class TestLimits:
    def test_of_bytes(self):
        client, encoder = means(request_bytes=100)
        assert client.post("/embed", content=bytes(101)).json() == {"error": "The request is larger than 100 bytes."}
        pieces = client.post("/embed", content=iter([bytes(60), bytes(60)]))  # says no length
        assert pieces.status_code == 413
        assert client.post("/embed", files=[("image", ("a", bytes(90)))]).status_code == 413
        assert client.post("/embed", content=bytes(100)).status_code == 422
        assert encoder.batches == []

    def test_of_bytes_of_all_requests(self):
        client, _ = means(held_bytes=50)
        answer = client.post("/embed", content=bytes(51))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.post("/embed", content=bytes(50)).status_code == 422  # what was held is given back

    def test_of_pixels_and_images(self):
        client, _ = means(pixels=100, images=2)
        small, large = encoded(pixels(0, 10, 10)), encoded(pixels(0, 10, 11))
        assert client.post("/embed", content=small).status_code == 200
        answer = client.post("/embed", content=large)
        assert (answer.status_code, "larger than 100 pixels" in answer.json()["error"]) == (413, True)
        three = client.post("/embed", files=[("image", (name, small)) for name in "abc"])
        assert three.json() == {"error": "The request holds more than 2 images."} and three.status_code == 413

    def test_of_images_that_wait_and_of_time(self):
        client, encoder = means(queue=2, seconds=0.3)
        encoder.may_go.clear()
        file = encoded(pixels(0))
        with client, ThreadPoolExecutor(1) as pool:
            late = pool.submit(client.post, "/embed", files=[("image", (name, file)) for name in "ab"])
            while client.get("/health").json()["waiting"] < 2:
                pass
            busy = client.post("/embed", content=file)
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
            assert busy.json() == {"error": "The service is busy: 2 images wait already. Try again later."}
            assert "longer than 0.3 s" in late.result(60).json()["error"] and late.result().status_code == 503
            assert client.get("/health").json()["waiting"] == 0
            encoder.may_go.set()
            assert client.post("/embed", content=file).status_code == 200

    def test_of_a_request_that_arrives_slowly(self):
        async def stream():
            yield b"x"
            await asyncio.sleep(30)

        service = Service(Means(), None, ServeSettings(seconds=0.05))
        with pytest.raises(Refused, match=r"did not arrive within 0\.05 s") as refused:
            asyncio.run(service.embed(SimpleNamespace(headers={}, stream=stream)))
        assert refused.value.status == 408
        assert service._held.used == 0


def png(width, height, *, kind=2, data=b""):
    """A PNG file that says how large it is, whatever its data."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


HOSTILE = {
    "nothing": (b"\0", 422), "text": (b"<svg onload=alert(1)>", 422), "zip": (b"PK\x03\x04" + bytes(30), 422),
    "cut": (encoded(pixels(0, 90, 90), "JPEG")[:900], 422), "bomb": (png(50_000, 50_000), 413),
    "no pixels": (png(0, 9), 422), "no data": (png(9, 9), 422), "pickle": (b"\x93NUMPY\x01\x00" + bytes(99), 422),
    "gigantic tiff": (b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 60, 422),
}  # fmt: skip


class TestUploads:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_that_are_hostile_get_one_sentence(self, client, name):
        content, status = HOSTILE[name]
        evil = "\x1b[31m\u202e" + name
        for answer in (client.post("/embed", content=content), client.post("/search", files={"i": (evil, content)})):
            assert answer.status_code == status
            assert set(answer.json()) == {"error"} and answer.json()["error"].startswith("image 1")
            assert answer.text.isascii() and answer.text.isprintable()
            assert answer.json()["error"].isprintable()
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F", "YCbCr"])
    def test_of_all_modes_are_what_embed_reads(self, client, encoder, mode):
        image = Image.fromarray(pixels(3)[..., 0]) if mode in ("I;16", "F") else Image.fromarray(pixels(3))
        file = encoded(image.convert(mode), "TIFF" if mode in ("CMYK", "F", "YCbCr") else "PNG")
        answer = client.post("/embed", content=file, headers=NPY)
        expected = encoder.features(encoder.square(file, "x")[None])
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected, rtol=0, atol=1e-5)

    def test_in_forms_that_are_damaged_are_refused(self, client):
        part = b"--b\r\nContent-Disposition: form-data%s\r\n\r\nx\r\n--b--\r\n"
        form = "multipart/form-data; boundary=b"
        for kind, body in (
            ("multipart/form-data", b"x"), (form, b"x"), ("image/png", b""), (form, part % b""),
            (form, part % b'; name="a"'),
        ):  # fmt: skip
            answer = client.post("/embed", content=body, headers={"content-type": kind})
            assert answer.status_code == 400 and answer.json()["error"].endswith("."), answer.text

    def test_an_encoder_that_fails_is_no_end(self):
        for features in (lambda squares: 1 / 0, lambda squares: np.full((1, 3), np.nan)):
            encoder = Means()
            encoder.features = features
            client = TestClient(create_app(encoder), raise_server_exceptions=False)
            for _ in range(2):
                answer = client.post("/embed", content=encoded(pixels(0)))
                assert (answer.status_code, list(answer.json())) == (500, ["error"])


class TestClients:
    def test_at_once_get_the_features_of_their_own_images(self):
        client, encoder = means(batch=8, wait=5.0)
        flat = {n: encoded(np.full((9, 9, 3), (n, 2 * n, 255 - n), np.uint8)) for n in range(1, 41)}
        start = threading.Barrier(8)

        def ask(numbers):
            start.wait()
            return [client.post("/embed", content=flat[n]).json()["features"][0] for n in numbers]

        with client, ThreadPoolExecutor(8) as pool:
            parts = [range(first, 41, 8) for first in range(1, 9)]
            for numbers, answers in zip(parts, pool.map(ask, parts), strict=True):
                np.testing.assert_allclose(answers, [(n, 2 * n, 255 - n) for n in numbers], atol=1e-3)
        assert sum(encoder.batches) == 40
        assert 1 < max(encoder.batches) <= 8

    @pytest.mark.parametrize(
        ("host", "status"),
        [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:80", 200), ("[::1]", 200), ("evil.example:8000", 421),
         ("127.0.0.1.evil.example", 421), ("", 421)],
    )  # fmt: skip
    def test_reach_a_local_service_under_its_own_names_alone(self, host, status):
        app = create_app(Means(), hosts=("127.0.0.1", "localhost", "::1"))
        assert TestClient(app).get("/health", headers={"Host": host}).status_code == status
