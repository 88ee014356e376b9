"""A Chromium for tests that drive a page; they are skipped with the reason where there is none."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PATIENCE_MS = 60_000  # machines that test are busy machines


def require_browser() -> None:
    """Skip the module without Playwright or Chromium."""
    pytest.importorskip("playwright", reason="playwright is not installed; run make browser")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} does not exist; apt-get install chromium, or set CHROMIUM", allow_module_level=True)


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """Headless, with nothing that talks to anybody but the page's server."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        await started.close()


@asynccontextmanager
async def page_of(started: Any, **options: Any) -> AsyncIterator[Any]:
    """A page with storage of its own, whose `log` holds every address, body sent and body got, and whose console must
    stay free of errors but for a server that was killed."""
    context = await started.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    page.log, page.complaints, reads = [], [], []

    async def read(response: Any) -> None:
        try:
            page.log.append((await response.body()).decode("latin-1"))
        except Exception as error:  # noqa: BLE001 (a body that went with its page, or with the server)
            page.log.append(f"no body: {type(error).__name__}")

    page.on("request", lambda request: page.log.extend([request.url, str(request.headers), request.post_data or ""]))
    page.on("response", lambda response: reads.append(asyncio.ensure_future(read(response))))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    yield page
    await asyncio.gather(*reads)
    await context.close()
