"""The demo page in a real browser: upload, budget, copy, paste, and the same picture again."""

import asyncio
import re

import numpy as np
import pytest
import torch
from helpers.browsers import DESKTOP, PHONE, browser, page_of, require_browser
from helpers.servers import ROOT, RunningServer
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.language.config import LanguageModelConfig
from hybrid_tokenizer.language.model import build_model, train_text_tokenizer
from hybrid_tokenizer.language.vocabulary import add_image_tokens, save_vocabulary

require_browser()
pytestmark = pytest.mark.browser

PARTS = ("guide", "semantic", "hybrid")


async def pictures(page):
    await page.get_by_text("Ready").wait_for()
    return {part: await page.evaluate("id => document.getElementById(id).toDataURL()", part) for part in PARTS}


async def change(page, slider, value):
    """The page is no longer ready at once; its pictures follow."""
    await page.locator(f"#{slider}").fill(str(value))
    assert "Ready" not in await page.locator("#status").inner_text()


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_upload_budget_copy_paste(tmp_path, device):
    small_hybrid(nested=True).save_pretrained(tmp_path / "model")
    photo = tmp_path / "photo of somebody.png"
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((70, 50)).save(photo)
    (tmp_path / "no picture.png").write_bytes(b"x" * 1000)

    async def visit():
        with RunningServer(ROOT / "scripts" / "demo.py", "--model", tmp_path / "model") as server:
            async with browser() as started, page_of(started, **device) as page:
                await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
                await page.goto(server.link)
                await page.locator("#samples button").first.wait_for()
                await page.locator("#steps").fill("2")
                await page.locator("#file").set_input_files(photo)
                whole = await pictures(page)
                assert await page.locator("#count").inner_text() == "55 ids"

                await change(page, "budget", 1)
                short = await pictures(page)
                assert await page.locator("#count").inner_text() == "35 ids"
                assert short["semantic"] == whole["semantic"]
                assert short["guide"] != whole["guide"] and short["hybrid"] != whole["hybrid"]
                await change(page, "strength", 0.9)
                assert (await pictures(page))["hybrid"] != short["hybrid"]
                await change(page, "strength", 0.4)
                await change(page, "budget", 3)
                assert await pictures(page) == whole

                await page.get_by_role("button", name="Copy ids").click()
                await page.get_by_text("Copied 55 ids").wait_for()
                copied = await page.evaluate("navigator.clipboard.readText()")
                assert len(copied.split()) == 55

                await page.reload()
                await page.locator("#samples button").first.wait_for()
                await page.locator("#steps").fill("2")
                await page.locator("#ids").fill(copied)
                await page.get_by_role("button", name="Decode these ids").click()
                assert await pictures(page) == whole
                assert "pasted" in await page.locator("#original-note").inner_text()
                await page.locator("#ids").fill(copied.replace(" ", ", ", 5).replace(copied.split()[20], "999999"))
                await page.get_by_role("button", name="Decode these ids").click()
                await page.get_by_text("is not").wait_for()
                await page.locator("#ids").fill("1 2 three")
                await page.get_by_role("button", name="Decode these ids").click()
                await page.get_by_text("is not a token id").wait_for()

                await page.locator("#file").set_input_files(tmp_path / "no picture.png")
                await page.get_by_text("not an image of a supported format").wait_for()
                await page.locator("#samples button").nth(1).click()
                assert len(set((await pictures(page)).values()) & set(whole.values())) == 0
                assert await page.evaluate("document.documentElement.scrollWidth") <= device["viewport"]["width"]
                said = "\n".join(page.log)
                assert "somebody" not in said  # a file's name stays on its machine
                assert not [text for text in page.complaints if "status of 4" not in text]
                hosts = {line.split("/")[2].split(":")[0] for line in page.log if line.startswith("http")}
                assert hosts == {"127.0.0.1"}

    asyncio.run(visit())


async def until_ids(page, accepted):
    """The page's policy allows no script of a test to wait inside it."""
    async with asyncio.timeout(60):
        while not accepted((await page.locator("#ids").input_value()).split()):
            await asyncio.sleep(0.1)


def test_compare_seed_mix_search_cancel_reset_download(tmp_path):
    small_hybrid(nested=True, start="ddim_inversion").save_pretrained(tmp_path / "model")

    async def split(page):
        return await page.evaluate("document.getElementById('split').toDataURL()")

    async def visit():
        with RunningServer(ROOT / "scripts" / "demo.py", "--model", tmp_path / "model") as server:
            async with browser() as started, page_of(started, **DESKTOP) as page:
                await page.goto(server.link)
                await page.locator("#samples button").first.wait_for()
                await page.locator("#steps").fill("2")
                assert not await page.locator("#compare").is_visible()
                await page.get_by_title("cat").click()
                first = await pictures(page)
                for part in PARTS:
                    assert re.search(
                        r"\d+ tokens, \d+ bytes, -?\d+\.\d dB", await page.locator(f"#{part}-note").inner_text()
                    )

                await page.locator("#divider").fill("0")
                assert await split(page) != await page.evaluate("document.getElementById('original').toDataURL()")
                left = await split(page)
                await page.locator("#divider").fill("100")
                assert await split(page) != left
                async with page.expect_download() as downloading:
                    await page.get_by_role("button", name="Download").click()
                saved = Image.open(await (await downloading.value).path())
                assert saved.size == (32, 32)

                await change(page, "seed", 5)
                seeded = await pictures(page)
                assert seeded["semantic"] != first["semantic"] and seeded["guide"] == first["guide"]

                cat = (await page.locator("#ids").input_value()).split()
                await page.locator("#other").select_option("coffee")
                await until_ids(page, lambda ids: ids != cat)
                await page.get_by_text("Ready").wait_for()
                mixed = (await page.locator("#ids").input_value()).split()
                assert mixed[33:] == cat[33:] and mixed[1:33] != cat[1:33]

                await page.get_by_role("button", name="Reset").click()
                await until_ids(page, lambda ids: ids == cat)
                await page.get_by_text("Ready").wait_for()
                assert await page.locator("#seed").input_value() == "0"

                await page.route("**/api/encode/*", lambda route: asyncio.sleep(3))
                await page.locator("#search").check()
                await page.get_by_text("Searching").wait_for()
                assert await page.locator("#progress").is_visible()
                await page.get_by_role("button", name="Cancel").click()
                await page.get_by_text("Cancelled").wait_for()
                assert not await page.locator("#progress").is_visible()
                await page.unroute("**/api/encode/*")
                await page.get_by_title("coffee").click()
                await page.get_by_text("Ready").wait_for()
                assert (await page.locator("#ids").input_value()).split() != cat
                await page.locator("#other").select_option("before")
                await until_ids(page, lambda ids: ids[1:33] == cat[1:33])
                await page.get_by_text("Ready").wait_for()
                assert not page.complaints

    asyncio.run(visit())


def test_a_text_is_drawn_and_a_picture_gets_a_caption(tmp_path):
    hybrid = small_hybrid(nested=True)
    hybrid.save_pretrained(tmp_path / "model")
    captions = train_text_tokenizer(["a dog on the grass"], 300)
    vocabulary = add_image_tokens(captions, hybrid.vocabulary())
    config = LanguageModelConfig(width=16, layers=1, heads=2, mlp_width=16, row_start="statistics")
    lm = build_model(config, captions, vocabulary, None, torch.Generator().manual_seed(0))
    lm.save_pretrained(tmp_path / "lm")
    save_vocabulary(tmp_path / "lm", captions, vocabulary)

    async def visit():
        options = ("--model", tmp_path / "model", "--language-model", tmp_path / "lm")
        with RunningServer(ROOT / "scripts" / "demo.py", *options) as server:
            async with browser() as started, page_of(started, **DESKTOP) as page:
                await page.goto(server.link)
                await page.locator("#samples button").first.wait_for()
                await page.locator("#steps").fill("2")
                await page.get_by_role("button", name="Draw", exact=True).click()
                await page.get_by_text("There is nothing to draw").wait_for()
                await page.locator("#text").fill("a dog")
                await page.locator("#text").press("Enter")
                drawn = await pictures(page)
                assert await page.locator("#count").inner_text() == "55 ids"
                assert "drawn from your text" in await page.locator("#original-note").inner_text()
                await page.get_by_title("cat").click()
                assert await pictures(page) != drawn
                await page.locator("#caption").filter(has_text=re.compile(".")).wait_for()
                assert not [text for text in page.complaints if "status of 4" not in text]

    asyncio.run(visit())
