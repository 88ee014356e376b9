"""A whole study by three raters at once in a real browser, over a server that is killed in the middle."""

import asyncio
import json
import subprocess
import sys

import pytest
from helpers.browsers import DESKTOP, PHONE, browser, page_of, require_browser
from helpers.servers import ROOT, RunningServer
from small_study import METHODS, write_small_study

from hybrid_tokenizer.apps.user_study.study import VOTES_NAME
from hybrid_tokenizer.apps.user_study.votes import Votes

require_browser()
pytestmark = pytest.mark.browser

SCRIPT = ROOT / "scripts" / "user_study.py"
TASTES = (  # places of the methods, by rater
    {"hybrid": 1, "lavit": 2, "seed": 3},
    {"hybrid": 1, "lavit": 1, "seed": 3},
    {"hybrid": 2, "lavit": 1, "seed": 3},
)
SCORES = {"hybrid": (3 + 3 + 2) / 3, "lavit": (2 + 3 + 3) / 3, "seed": 1.0}
NUM_SETS = 5


class Rater:
    """Knows the method of each picture, which people do not, and votes by taste: by mouse, keyboard or touch."""

    def __init__(self, page, study, taste, way):
        self.page, self.taste, self.way = page, taste, way
        self.methods = {name: method for one in study.sets for method, name in one.candidates.items()}
        self.set_of = {one.original: one.id for one in study.sets}
        self.confirmed, self.seen = {}, []

    async def enter(self, link):
        await self.page.goto(link)
        await self.page.get_by_role("button", name="Start").click()
        await self.page.locator("#vote").wait_for()
        self.code = await self.page.locator("#mine").inner_text()

    async def pictures(self):
        sources = await self.page.locator("#cards img").evaluate_all("images => images.map(image => image.src)")
        return [source.rsplit("/", 1)[1] for source in sources]

    async def vote_on_one(self):
        original, *candidates = await self.pictures()
        self.seen.append((original, candidates))
        places = {name: self.taste[self.methods[name]] for name in candidates}
        for index, name in enumerate(candidates):
            if self.way == "keyboard":
                await self.page.keyboard.press("abc"[index])
                await self.page.keyboard.press(str(places[name]))
            else:
                button = (
                    self.page.locator(".card:not(.original)").nth(index).locator(".places button").nth(places[name] - 1)
                )
                await (button.tap() if self.way == "finger" else button.click())
        if self.way == "keyboard":
            await self.page.keyboard.press("Enter")
        else:
            await self.page.locator("#save").click()
        await self.page.get_by_text(f"Saved: {len(self.confirmed) + 1} of {NUM_SETS}").wait_for()
        self.confirmed[self.set_of[original]] = places

    async def vote_on_all(self):
        while len(self.confirmed) < NUM_SETS:
            await self.vote_on_one()
        await self.page.locator("#done").wait_for()

    async def reload(self):
        """The same set in the same order, and the count goes on."""
        before = await self.pictures()
        await self.page.reload()
        await self.page.locator("#vote").wait_for()
        assert await self.pictures() == before
        assert (await self.page.locator("#count").inner_text()).startswith(f"Set {len(self.confirmed) + 1} of")
        assert await self.page.locator("#mine").inner_text() == self.code


def stored_votes(folder, study):
    votes = Votes(folder / VOTES_NAME, study.id)
    try:
        return {(vote.code, vote.set_id): vote.places for vote in votes.all()}, len(votes.all())
    finally:
        votes.close()


def test_three_raters_and_a_killed_server(tmp_path):
    folder = tmp_path / "study"
    study = write_small_study(folder, num_sets=NUM_SETS)

    async def study_day():
        first = RunningServer(SCRIPT, "serve", folder)

        async def kill_and_restart(raters):
            while sum(len(rater.confirmed) for rater in raters) < 5:
                await asyncio.sleep(0.01)
            first.kill()  # votes are on their way just now
            confirmed = {(rater.code, one): places for rater in raters for one, places in rater.confirmed.items()}
            stored, _ = stored_votes(folder, study)
            assert confirmed.items() <= stored.items()
            return await asyncio.to_thread(RunningServer, SCRIPT, "serve", folder, port=first.port)

        async with (
            browser() as started,
            page_of(started, **DESKTOP) as one, page_of(started, **DESKTOP) as two, page_of(started, **PHONE) as three,
        ):  # fmt: skip
            ways = zip((one, two, three), TASTES, ("mouse", "keyboard", "finger"), strict=True)
            raters = [Rater(page, study, taste, way) for page, taste, way in ways]
            await asyncio.gather(*(rater.enter(first.link) for rater in raters))
            await raters[0].vote_on_one()
            await raters[0].reload()
            second, *_ = await asyncio.gather(kill_and_restart(raters), *(rater.vote_on_all() for rater in raters))
            await one.reload()
            await one.get_by_text("You have finished").wait_for()
            contents = [await page.content() for page in (one, two, three)]
            with second:
                pass
            return raters, contents

    raters, contents = asyncio.run(study_day())

    # every vote once, as it was given
    stored, count = stored_votes(folder, study)
    assert count == len(stored) == 3 * NUM_SETS
    assert stored == {(rater.code, one): places for rater in raters for one, places in rater.confirmed.items()}

    # blind and in an order of one's own
    # the orders of the sets alone are 120, and two of three raters would share one in a run of forty
    orders = {tuple((original, *candidates) for original, candidates in rater.seen) for rater in raters}
    lefts = {rater.methods[candidates[0]] for rater in raters for _, candidates in rater.seen}
    assert len(orders) == 3 and lefts == set(METHODS)
    assert len({rater.code for rater in raters}) == 3
    for rater, content in zip(raters, contents, strict=True):
        said = "\n".join([*rater.page.log, content]).lower()
        assert rater.code in said and not [method for method in METHODS if method in said]
        hosts = {line.split("/")[2] for line in rater.page.log if line.startswith("http")}
        assert {host.split(":")[0] for host in hosts} == {"127.0.0.1"}
        assert not [text for text in rater.page.complaints if "ERR_" not in text]  # ERR_: the killed server

    # the command's scores are those by hand
    command = [sys.executable, str(SCRIPT), "results", str(folder), "--output", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    report = json.loads((tmp_path / "out" / "user_study.json").read_text())
    assert {row["method"]: row["score"] for row in report["rows"]} == pytest.approx(SCORES)
    assert (report["votes"], report["participants"], report["complete"]) == (3 * NUM_SETS, 3, 3)


def test_zoom_and_coming_back_with_the_code(tmp_path):
    folder = tmp_path / "study"
    study = write_small_study(folder, num_sets=NUM_SETS)

    async def visit():
        with RunningServer(SCRIPT, "serve", folder) as server:
            async with browser() as started:
                async with page_of(started, **DESKTOP) as page:
                    rater = Rater(page, study, TASTES[0], "mouse")
                    await rater.enter(server.link)
                    await rater.vote_on_one()
                    shown = await rater.pictures()
                    await page.locator(".card.original .picture").click()
                    large = page.locator("#large")
                    for key, expected in (("o", shown[0]), ("a", shown[1]), ("c", shown[3])):
                        await page.keyboard.press(key)
                        assert (await large.get_attribute("src")).endswith(expected)
                    width = (await large.bounding_box())["width"]
                    await page.keyboard.press("+")
                    assert (await large.bounding_box())["width"] == pytest.approx(2 * width, abs=2)
                    await page.keyboard.press("Escape")
                    await large.wait_for(state="hidden")
                    assert not page.complaints
                async with page_of(started, **PHONE) as page:  # another device
                    await page.goto(server.link)
                    await page.locator("#code").fill("nobody2345")
                    await page.get_by_role("button", name="Continue").tap()
                    await page.get_by_text("is unknown").wait_for()
                    await page.locator("#code").fill(f" {rater.code.upper()} ")
                    await page.get_by_role("button", name="Continue").tap()
                    await page.locator("#vote").wait_for()
                    rater.page = page
                    assert await rater.pictures() == shown
                    wide = await page.evaluate("document.documentElement.scrollWidth")
                    assert wide <= 390

    asyncio.run(visit())


def test_consent_trial_and_the_owners_results(tmp_path):
    study = write_small_study(tmp_path / "study", num_sets=1, trial=True)
    (tmp_path / "study" / "consent.txt").write_text("First part.\n\nSecond <b>part</b>.")

    async def visit():
        with RunningServer(SCRIPT, "serve", tmp_path / "study") as server:
            async with browser() as started, page_of(started, **DESKTOP) as page:
                await page.goto(server.link)
                assert await page.locator("#consent p").all_inner_texts() == ["First part.", "Second <b>part</b>."]
                await page.get_by_role("button", name="Start").click()
                await page.get_by_text("Trial: this set does not count").wait_for()
                for _ in range(2):  # the trial, then the only set
                    for key in ("a", "1", "b", "2", "c", "3", "Enter"):
                        await page.keyboard.press(key)
                await page.locator("#done").wait_for()
                await page.reload()
                await page.locator("#done").wait_for()
                await page.goto(f"{server.link}results#{study.owner_token}")
                await page.get_by_text("1 votes on 1 sets; 1 participant joined, 1 voted, 1 on every set.").wait_for()
                assert await page.locator("#scores tbody tr").count() == len(METHODS)
                await page.goto(f"{server.link}results#wrong")
                await page.reload()
                await page.get_by_text("not the owner's link").wait_for()
                assert not [text for text in page.complaints if "status of 4" not in text]

    asyncio.run(visit())
