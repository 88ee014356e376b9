"""The demo's server over HTTP: an image to ids and back, and harmful uploads."""

import base64
import io
import struct
import threading
import time
import zlib

import pytest
import torch
from fastapi.testclient import TestClient
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.apps.demo import app as demo
from hybrid_tokenizer.apps.demo.pictures import SEARCH_STEPS, DemoTokenizer
from hybrid_tokenizer.apps.demo.uploads import MAX_BYTES
from hybrid_tokenizer.apps.demo.writing import DemoWriter
from hybrid_tokenizer.apps.web.guard import Access
from hybrid_tokenizer.apps.web.limits import Rate
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import LanguageModelConfig
from hybrid_tokenizer.language.model import LanguageModel, build_model, train_text_tokenizer
from hybrid_tokenizer.language.vocabulary import add_image_tokens
from hybrid_tokenizer.tokens import HybridVocabulary

FREE = demo.LIMITS._replace(calls=Rate(1e4, 10_000))
OPTIONS = {"part": "hybrid", "strength": 0.4, "steps": 4, "guidance": 1.0}


@pytest.fixture(scope="module")
def tokenizer():
    return DemoTokenizer(small_hybrid(nested=True), text_vocab_size=1000)


@pytest.fixture(scope="module")
def client(tokenizer):
    return TestClient(demo.demo_app(tokenizer, Access(), FREE), base_url="http://127.0.0.1")


def png(width=50, height=40, color=(200, 30, 90)):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def upload(client, data, name="picture"):
    return client.post("/api/encode", files={"file": (name, data)})


def picture(answer):
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["picture"])))


def test_an_upload_becomes_ids_and_each_prefix_a_picture(client):
    facts = client.get("/api/tokenizer").json()
    assert facts["sequence_lengths"] == [35, 39, 55] and facts["first_id"] == 1000
    encoded = upload(client, png()).json()
    ids = encoded["ids"]
    assert (ids[0], ids[-1], len(ids)) == (1000, 1001, 55)
    made = {}
    for length in facts["sequence_lengths"]:
        prefix = [*ids[: length - 1], ids[-1]]
        for part in ("guide", "semantic", "hybrid"):
            answer = client.post("/api/decode", json={**OPTIONS, "ids": prefix, "part": part})
            assert picture(answer).size == (32, 32)
            made[length, part] = answer.json()["picture"]
    assert len({made[length, "hybrid"] for length in facts["sequence_lengths"]}) == 3
    assert len({made[length, "semantic"] for length in facts["sequence_lengths"]}) == 1
    again = client.post("/api/decode", json={**OPTIONS, "ids": ids})
    assert again.json()["picture"] == made[55, "hybrid"]


def test_the_seed_changes_what_diffusion_draws_and_nothing_else(client):
    ids = upload(client, png()).json()["ids"]

    def decoded(part, **options):
        return client.post("/api/decode", json={**OPTIONS, "ids": ids, "part": part} | options).json()["picture"]

    assert decoded("semantic") == decoded("semantic", seed=0) != decoded("semantic", seed=1)
    assert decoded("guide") == decoded("guide", seed=1)
    for seed in (-1, 2**32, 1.5, "1"):
        assert client.post("/api/decode", json={**OPTIONS, "ids": ids, "seed": seed}).status_code == 422


def test_the_search_is_asked_for(client):
    assert client.get("/api/tokenizer").json()["search_steps"] == 0  # a decoder that draws noise
    without_noise = DemoTokenizer(small_hybrid(nested=True, start="ddim_inversion"))
    client = TestClient(demo.demo_app(without_noise, Access(), FREE), base_url="http://127.0.0.1")
    assert client.get("/api/tokenizer").json()["search_steps"] == SEARCH_STEPS
    once, searched = (client.post(f"/api/encode/cat{search}").json() for search in ("", "?search=true"))
    assert len(once["ids"]) == len(searched["ids"]) and once["picture"] == searched["picture"]
    assert once["ids"] != searched["ids"] and once["seconds"] < searched["seconds"]


@pytest.fixture(scope="module")
def writing(tokenizer):
    """The page with a language model of random weights."""
    captions = train_text_tokenizer(["a dog on the grass"], 300)
    vocabulary = add_image_tokens(captions, tokenizer.tokenizer.vocabulary())
    config = LanguageModelConfig(width=16, layers=1, heads=2, mlp_width=16, row_start="statistics")
    model = build_model(config, captions, vocabulary, None, torch.Generator().manual_seed(0))
    writer = DemoWriter(LanguageModel(model.eval(), captions, vocabulary), tokenizer.vocabulary)
    return TestClient(demo.demo_app(tokenizer, Access(), FREE, writer=writer), base_url="http://127.0.0.1")


def test_a_text_is_drawn_and_a_picture_captioned(writing, client):
    assert writing.get("/api/tokenizer").json()["writes"] and not client.get("/api/tokenizer").json()["writes"]
    one, same, other = (
        writing.post("/api/draw", json={"text": "a dog", "seed": seed}).json()["ids"] for seed in (1, 1, 2)
    )
    assert one == same != other and (one[0], one[-1], len(one)) == (1000, 1001, 55)
    assert picture(writing.post("/api/decode", json={**OPTIONS, "ids": one})).size == (32, 32)
    for length in (35, 55):  # any budget can be described
        said = writing.post("/api/caption", json={"ids": [*one[: length - 1], 1001]})
        assert said.status_code == 200 and isinstance(said.json()["caption"], str)
    for wrong in ({"text": ""}, {"text": "x" * 301}, {"text": "a", "seed": -1}, {"text": "a", "more": 1}, {}):
        assert writing.post("/api/draw", json=wrong).status_code == 422
    assert writing.post("/api/caption", json={"ids": one[:-1]}).status_code == 400
    for path, asked in (("draw", {"text": "a dog"}), ("caption", {"ids": one})):
        answer = client.post(f"/api/{path}", json=asked)
        assert answer.status_code == 404 and "start it with --language-model" in answer.json()["error"]


def test_a_language_model_of_other_grids_is_refused(tokenizer):
    lm = LanguageModel(None, None, HybridVocabulary(20, 50, ((2, 2),), (32, 32), text_vocab_size=9))
    with pytest.raises(HybridTokenizerError, match="use the model that was trained at this image size"):
        DemoWriter(lm, tokenizer.vocabulary)


def test_samples(client):
    names = client.get("/api/tokenizer").json()["samples"]
    assert "cat" in names
    assert Image.open(io.BytesIO(client.get("/samples/cat").content)).size == (160, 160)
    assert len(client.post("/api/encode/cat").json()["ids"]) == 55
    assert client.post("/api/encode/..%2fcat").status_code == 404
    assert client.get("/samples/none").status_code == 404


def test_wrong_ids_are_refused(client):
    ids = upload(client, png()).json()["ids"]
    for wrong, said in (
        (ids[:-1], "expected 35 or 39 or 55"),
        ([*ids[:-1], 5], "is not </img>"),
        ([ids[0], 10**9, *ids[2:]], "position 1"),
        ([ids[0], -(10**30), *ids[2:]], "not in this vocabulary"),
    ):
        answer = client.post("/api/decode", json={**OPTIONS, "ids": wrong})
        assert answer.status_code == 400 and said in answer.json()["error"]
    for options in ({"ids": []}, {"ids": [1] * 20_001}, {"ids": ["1"]}, {"steps": 101}, {"strength": 1.5},
                    {"guidance": 1e9}, {"part": "all"}, {"more": 1}):  # fmt: skip
        answer = client.post("/api/decode", json={**OPTIONS, "ids": ids} | options)
        assert answer.status_code == 422 and "\n" not in answer.json()["error"]


def bomb(width=60_000, height=60_000):
    """A PNG whose header claims 3.6 gigapixels of zeroes in a few kilobytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (bomb(), 413, "pixels"),
        (bomb(9000, 9000), 413, "9000x9000 pixels"),
        (bomb(4000, 4000), 415, "cannot be read"),  # within the limit, and truncated
        (b"x" * 1000, 415, "not an image of a supported format"),
        (b"", 415, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", 415, "not an image"),  # Pillow would call Ghostscript
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not an image"),
        (png()[:100], 415, "cannot be read"),
        (png(4, 4), 415, "at least 16"),
        (b"x" * (MAX_BYTES + 1), 413, "limit"),
        (b"x" * (MAX_BYTES + 100_000), 413, "limit"),
    ],
)
def test_uploads_that_are_refused(client, data, status, said):
    started = time.perf_counter()
    answer = upload(client, data)
    assert answer.status_code == status and said in answer.json()["error"]
    assert "\n" not in answer.json()["error"] and time.perf_counter() - started < 2
    assert client.get("/").status_code == 200


def test_the_name_of_a_file_is_ignored(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("../../etc/passwd", "/tmp/x.png", "a\x00b.png", "..\\..\\x", "x" * 500):
        assert upload(client, png(), name).status_code == 200
    assert upload(client, png(), "x" * 100_000).status_code == 400
    assert list(tmp_path.iterdir()) == []
    assert client.post("/api/encode", data={"file": "a string"}).status_code == 415
    assert (
        client.post("/api/encode", content=b"--x", headers={"content-type": "multipart/form-data"}).status_code == 400
    )


def test_the_page_answers_during_a_computation_and_a_full_queue_refuses(tokenizer):
    busy, release = threading.Event(), threading.Event()

    class SlowTokenizer(DemoTokenizer):
        def encode(self, image, search=False):
            busy.set()
            release.wait(20)
            return super().encode(image, search)

    client = TestClient(
        demo.demo_app(SlowTokenizer(tokenizer.tokenizer), Access(), FREE, max_waiting=0), base_url="http://127.0.0.1"
    )
    first = []
    thread = threading.Thread(target=lambda: first.append(client.post("/api/encode/cat").status_code))
    thread.start()
    assert busy.wait(20)
    answer = client.post("/api/encode/cat")
    assert answer.status_code == 503 and "busy" in answer.json()["error"]
    assert client.get("/").status_code == client.get("/samples/cat").status_code == 200
    release.set()
    thread.join()
    assert first == [200] and client.post("/api/encode/cat").status_code == 200
