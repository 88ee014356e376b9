"""The voting app over HTTP: blind, in each rater's own order, each vote stored once, and false votes refused."""

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import httpx2
import pytest
from fastapi.testclient import TestClient
from helpers.servers import ROOT, RunningServer
from small_study import METHODS, write_small_study

from hybrid_tokenizer.apps.user_study.app import LIMITS, voting_app
from hybrid_tokenizer.apps.user_study.study import CONSENT, CONSENT_NAME, VOTES_NAME, read_study
from hybrid_tokenizer.apps.user_study.votes import Vote, Votes, VoteStands
from hybrid_tokenizer.apps.web.guard import Access
from hybrid_tokenizer.apps.web.limits import Rate
from hybrid_tokenizer.errors import HybridTokenizerError

FREE = LIMITS._replace(calls=Rate(1e4, 10_000), known=Rate(1e4, 10_000), requests=Rate(1e4, 10_000))


class Table:
    """A study being served in this process."""

    def __init__(self, folder, limits=FREE, **options):
        self.folder = folder
        self.study = write_small_study(folder, **options)
        self.votes = Votes(folder / VOTES_NAME, self.study.id)
        app = voting_app(
            folder, self.study, self.votes, Access(is_known=self.votes.is_known), limits, max_participants=40
        )
        self.client = TestClient(app, base_url="http://127.0.0.1")

    def join(self):
        return self.client.post("/api/join").json()["code"]

    def sheet(self, code):
        return self.client.get("/api/sheet", headers={"x-participant": code})

    def vote(self, code, one, places, study=None):
        ballot = {"study": study or self.study.id, "set": one["id"], "places": places}
        return self.client.post("/api/vote", headers={"x-participant": code}, json=ballot)


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "study")


def in_order(one):
    return {name: place for place, name in enumerate(one["candidates"], 1)}


def test_orders_are_random_by_participant_and_stay(table):
    sheets = [table.sheet(table.join()).json()["sets"] for _ in range(30)]
    assert len({tuple(one["id"] for one in sets) for sets in sheets}) > 3
    first_positions = [one["candidates"][0] for sets in sheets for one in sets if one["id"] == "0000"]
    assert len(set(first_positions)) == len(METHODS)  # every method is seen at the left by somebody
    code = table.join()
    assert table.sheet(code).json() == table.sheet(code).json()


def test_nothing_that_leaves_the_server_names_a_method(table):
    code = table.join()
    sets = table.sheet(code).json()["sets"]
    names = [name for one in sets for name in (one["original"], *one["candidates"])]
    files = ["/", "/static/study.js", "/static/study.css", "/static/base.css", *(f"/images/{name}" for name in names)]
    answers = [table.sheet(code), table.vote(code, sets[0], in_order(sets[0])), *map(table.client.get, files)]
    for answer in answers:
        assert answer.status_code == 200
        said = (str(answer.url) + str(answer.headers) + answer.content.decode("latin-1")).lower()
        assert not [method for method in METHODS if method in said]
        assert "last-modified" not in answer.headers and "etag" not in answer.headers
    assert len(set(names)) == len(names)
    assert table.client.get("/images/0.jpg").status_code == 404
    for path in ("/images/..%2fstudy.json", "/images/%2e%2e/study.json", "/study.json", "/images/"):
        assert table.client.get(path).status_code == 404


def test_a_vote_is_stored_once_and_stands(table):
    code = table.join()
    one, other, _ = table.sheet(code).json()["sets"]
    places = in_order(one)
    first, again = table.vote(code, one, places), table.vote(code, one, places)
    assert (first.json()["new"], again.json()["new"]) == (True, False)
    assert first.json()["votes"] == again.json()["votes"] == 1
    changed = table.vote(code, one, dict.fromkeys(places, 1))
    assert changed.status_code == 409 and "cannot be changed" in changed.json()["error"]
    assert table.vote(code, other, dict.fromkeys(other["candidates"], 1)).json()["votes"] == 2  # ties are fine
    saved = {one["id"]: one["places"] for one in table.sheet(code).json()["sets"]}
    assert saved[one["id"]] == places and list(saved.values()).count(None) == 1
    rows = sqlite3.connect(table.folder / VOTES_NAME).execute("SELECT count(*) FROM votes").fetchone()
    assert rows == (2,)


def test_invalid_votes_are_refused(table):
    code = table.join()
    one, other, _ = table.sheet(code).json()["sets"]
    good = in_order(one)
    names = list(good)
    refused = [
        (table.vote("forged", one, good), 403),
        (table.vote("x" * 50, one, good), 422),
        (table.vote("' OR 1=1 --", one, good), 403),
        (table.vote(code, one, good, study="another"), 409),
        (table.vote(code, {"id": "none"}, good), 404),
        (table.vote(code, one, in_order(other)), 422),  # pictures of another set
        (table.vote(code, one, dict(list(good.items())[:2])), 422),
        (table.vote(code, one, {**good, names[0]: 4}), 422),
        (table.vote(code, one, {**good, names[0]: 0}), 422),
        (table.vote(code, one, dict.fromkeys(names, 2)), 422),  # nobody first
        (table.vote(code, one, {**good, names[0]: True}), 422),
        (table.vote(code, one, {**good, names[0]: 1.0}), 422),
        (table.vote(code, one, {f"{i}": 1 for i in range(100)}), 422),
        (table.client.post("/api/vote", headers={"x-participant": code}, content=b"{"), 422),
        (table.client.post("/api/vote", headers={"x-participant": code}, content=b"x" * 20_000), 413),
        (table.sheet("forged"), 403),
        (table.sheet(""), 403),
        (table.client.get("/api/vote"), 405),
    ]
    for answer, status in refused:
        assert answer.status_code == status, answer.text
        assert "\n" not in answer.json()["error"]
    assert table.votes.all() == []
    assert table.vote(code, one, good).status_code == 200


def test_participants_are_limited(tmp_path):
    table = Table(tmp_path / "open")
    answers = [table.client.post("/api/join").status_code for _ in range(41)]
    assert answers == [201] * 40 + [403]
    closed = Table(tmp_path / "closed", open_to_all=False)
    assert closed.client.post("/api/join").status_code == 403
    code = closed.votes.join()  # as `prepare --participants` makes it
    assert closed.sheet(code).status_code == 200


def test_made_up_codes_do_not_starve_a_participant(tmp_path):
    table = Table(tmp_path / "study", LIMITS._replace(calls=Rate(0.001, 5), known=Rate(0.001, 5)))
    code = table.join()
    flood = [table.sheet(f"forged{number}").status_code for number in range(50)]
    assert flood.count(429) >= 45
    one, *_ = table.sheet(code).json()["sets"]
    assert table.vote(code, one, in_order(one)).json()["new"]
    assert table.client.get("/").status_code == 200


def test_votes_of_a_file_belong_to_one_study(tmp_path):
    votes = Votes(tmp_path / "votes.sqlite", "one")
    code = votes.join()
    vote = Vote(code, "set", {"a": 1, "b": 2}, ["b", "a"])
    assert votes.save(vote) and not votes.save(vote)
    with pytest.raises(VoteStands):
        votes.save(vote._replace(places={"a": 2, "b": 1}))
    with pytest.raises(sqlite3.IntegrityError):
        votes.save(vote._replace(code="forged"))
    votes.close()
    with pytest.raises(HybridTokenizerError, match="another study"):
        Votes(tmp_path / "votes.sqlite", "two")
    again = Votes(tmp_path / "votes.sqlite", "one")
    assert again.all() == [vote] and again.is_known(code) and again.codes() == [code]


def test_a_killed_server_lost_no_vote_that_it_reported_as_saved(tmp_path):
    folder = tmp_path / "study"
    write_small_study(folder, num_sets=20)
    saved = {}
    with RunningServer(ROOT / "scripts" / "user_study.py", "serve", folder) as server:
        client = httpx2.Client(base_url=server.link)
        code = client.post("/api/join").json()["code"]
        headers = {"x-participant": code}
        sheet = client.get("/api/sheet", headers=headers).json()
        for number, one in enumerate(sheet["sets"]):
            ballot = {"study": sheet["study"], "set": one["id"], "places": in_order(one)}
            assert client.post("/api/vote", headers=headers, json=ballot).json()["new"]
            saved[one["id"]] = in_order(one)
            if number == 12:
                server.kill()
                break
    votes = Votes(folder / VOTES_NAME, read_study(folder).id)
    assert votes.votes_of(code) == saved and len(saved) == 13


def test_a_rater_votes_while_idle_and_half_open_connections_are_held(tmp_path):
    folder = tmp_path / "study"
    write_small_study(folder)
    with RunningServer(ROOT / "scripts" / "user_study.py", "serve", folder) as server, contextlib.ExitStack() as held:

        def hold(count, data=b""):
            for _ in range(count):
                one = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
                one.sendall(data)

        client = httpx2.Client(base_url=server.link, timeout=20)
        hold(450)
        hold(50, b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        start = time.monotonic()
        assert client.get("/").status_code == 200
        assert time.monotonic() - start < 2
        headers = {"x-participant": client.post("/api/join").json()["code"]}
        sheet = client.get("/api/sheet", headers=headers).json()
        for one in sheet["sets"]:
            hold(100)
            ballot = {"study": sheet["study"], "set": one["id"], "places": in_order(one)}
            assert client.get(f"/images/{one['original']}").status_code == 200
            assert client.post("/api/vote", headers=headers, json=ballot).json()["new"]


def test_the_trial_has_pictures_and_takes_no_vote(tmp_path):
    table = Table(tmp_path / "study", trial=True)
    assert read_study(tmp_path / "study") == table.study
    code = table.join()
    trial = table.sheet(code).json()["trial"]
    assert set(trial["candidates"]) == set(table.study.trial.candidates.values())
    assert trial["id"] not in {one["id"] for one in table.sheet(code).json()["sets"]}
    for name in (trial["original"], *trial["candidates"]):
        assert table.client.get(f"/images/{name}").status_code == 200
    assert table.vote(code, trial, in_order(trial)).status_code == 404


def test_the_consent_is_the_organisers_text(tmp_path):
    assert Table(tmp_path / "usual").client.get("/api/consent").json() == {"text": CONSENT}
    folder = tmp_path / "own"
    study = write_small_study(folder)
    (folder / CONSENT_NAME).write_text("Only <b>text</b>.")
    votes = Votes(folder / VOTES_NAME, study.id)
    app = voting_app(folder, study, votes, Access())
    assert TestClient(app, base_url="http://127.0.0.1").get("/api/consent").json() == {"text": "Only <b>text</b>."}
    for wrong, said in ((b"\xff", "save it as UTF-8"), (b" ", "expected 1 to 20000"), (b"x" * 20_001, "has 20001")):
        (folder / CONSENT_NAME).write_bytes(wrong)
        with pytest.raises(HybridTokenizerError, match=said):
            voting_app(folder, study, votes, Access())


def test_the_results_are_for_the_owner(table):
    assert table.client.get("/results").status_code == 200
    for headers in ({}, {"x-owner": "wrong"}, {"x-owner": ""}):
        answer = table.client.get("/api/results", headers=headers)
        assert answer.status_code == 403 and "not the owner's link" in answer.json()["error"]
    owner = {"x-owner": "owner-token"}
    assert "has no vote yet" in table.client.get("/api/results", headers=owner).json()["error"]
    code, _ = table.join(), table.join()
    for one in table.sheet(code).json()["sets"]:
        assert table.vote(code, one, in_order(one)).status_code == 200
    report = table.client.get("/api/results", headers=owner).json()
    assert (report["votes"], report["participants"], report["joined"], report["complete"]) == (3, 1, 2, 1)
    assert {row["method"] for row in report["rows"]} == set(METHODS)


def test_an_interrupted_server_ends_without_a_traceback(tmp_path, capfd):
    write_small_study(tmp_path / "study")
    with (
        RunningServer(ROOT / "scripts" / "user_study.py", "serve", tmp_path / "study") as server,
        socket.create_connection(("127.0.0.1", server.port)) as half_open,
    ):
        half_open.sendall(b"GET / HTTP/1.1\r\n")
        assert httpx2.get(server.link).status_code == 200
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
    assert capfd.readouterr().err == ""


def test_the_server_needs_no_torch():
    code = "import sys, hybrid_tokenizer.apps.user_study.app, hybrid_tokenizer.apps.web.serving; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
