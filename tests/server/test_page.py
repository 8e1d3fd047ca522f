"""The web page in a real browser against the real server."""

from __future__ import annotations

import re
import shutil
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect

from msf_scheduler.jobs import Preview, Progress
from msf_server.api_keys import digest, new_key
from msf_server.settings import ServerSettings
from tests.server.conftest import listening, until
from tests.server.fake_worker import FASHION, LABELS, FakeWorker, draw

CHROMIUM = shutil.which("chromium")

expect.set_options(timeout=20_000)
pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]  # the loop of the one browser


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def worker(redis_url: str) -> AsyncIterator[FakeWorker]:
    async with FakeWorker(redis_url) as worker:
        yield worker


@pytest_asyncio.fixture(loop_scope="session")
async def live_url(settings: ServerSettings, worker: FakeWorker) -> AsyncIterator[str]:
    async with listening(settings) as url:
        yield url


@asynccontextmanager
async def browsing(browser: Browser, url: str) -> AsyncIterator[Page]:
    """Open the page in its own context; check that it requests nothing from elsewhere and raises no error."""
    async with await browser.new_context() as context:
        page = await context.new_page()
        requests: list[str] = []
        errors: list[str] = []
        messages: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: messages.append(message.text))
        await page.goto(url)
        yield page
    assert [request for request in requests if not request.startswith((url, "data:"))] == []
    assert errors == []
    assert [message for message in messages if "Content Security Policy" in message] == []


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, live_url: str) -> AsyncIterator[Page]:
    async with browsing(browser, live_url) as page:
        yield page


async def test_generate_shows_images_and_timings(page: Page, worker: FakeWorker) -> None:
    await expect(page).to_have_title("msf-serve")
    await expect(page.get_by_role("status")).to_have_text("ready")
    await expect(page.get_by_role("group", name="Class").get_by_role("radio")).to_have_count(len(LABELS))

    worker.holding = True
    await page.get_by_role("radio", name="Sneaker").check(force=True)
    await page.get_by_label("Number of images").fill("3")
    await page.get_by_label("Seed", exact=True).fill("7")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("button", name="Generating…")).to_be_disabled()
    worker.holding = False

    images = page.get_by_role("img", name="Sneaker, image")
    await expect(images).to_have_count(3)
    await expect(page.get_by_role("link", name="Sneaker, image 1")).to_have_attribute("download", "Sneaker-seed7-0.png")
    assert await images.first.evaluate("image => image.complete && image.naturalWidth") == 32
    await expect(page.get_by_role("img", name="queue 4.0 ms, base 30 ms, residual 23 ms")).to_be_visible()
    await expect(page.get_by_text("3 × Sneaker, seed 7")).to_be_visible()
    await expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    assert worker.claimed[0].job.spec.seed == 7


async def test_progress_and_previews_are_shown_while_a_job_runs(page: Page, worker: FakeWorker) -> None:
    worker.claiming = False
    await page.get_by_label("Number of images").fill("2")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.locator("#stage")).to_have_text("next in the queue")
    worker.holding = worker.claiming = True
    await until(lambda: len(worker.claimed), 1)
    claim = worker.claimed[0]
    assert claim.job.terms.num_previews == 2
    progress = Progress(stage="residual", steps_done=20, num_steps=26, samples_done=0)
    await worker.leases.publish_progress(claim, progress)
    await expect(page.locator("#stage")).to_have_text("residual, step 20 of 26")
    await expect(page.get_by_role("progressbar")).to_have_attribute("value", str(20 / 26))
    for sequence, (index, number) in enumerate([(1, 0), (0, 0), (1, 1)], start=1):
        await worker.leases.publish_preview(
            claim, sequence, Preview(index=index, number=number), draw(claim.job.spec)[0]
        )
    await expect(page.get_by_role("img", name="Preview 1 of image 1")).to_be_visible()
    await expect(page.get_by_role("img", name="Preview 2 of image 2")).to_be_visible()
    await expect(page.get_by_role("link")).to_have_count(2)  # in the header
    worker.holding = False
    await expect(page.get_by_role("img", name="T-shirt, image")).to_have_count(2)
    await expect(page.get_by_role("progressbar")).to_be_hidden()


async def test_an_opened_png_is_reproduced(page: Page, live_url: str, worker: FakeWorker, tmp_path: Path) -> None:
    async with httpx.AsyncClient() as client:
        body = {"prompt": "dress", "n": 3, "seed": 11, "num_steps": 9}
        answer = (await client.post(f"{live_url}/v1/images/generations", json=body)).json()
    file = tmp_path / "third.png"
    file.write_bytes(b64decode(answer["data"][2]["b64_json"]))
    await page.get_by_label("Open a PNG").set_input_files(file)
    await expect(page.get_by_text("11, image 2")).to_be_visible()
    await page.get_by_role("button", name="Reproduce").click()
    await expect(page.get_by_text("Identical, byte for byte.")).to_be_visible()
    spec = worker.claimed[-1].job.spec
    assert (spec.label, spec.seed, spec.first_index, spec.num_samples, spec.num_steps) == (3, 11, 2, 1, 9)
    foreign = tmp_path / "foreign.png"
    Image.new("L", (8, 8)).save(foreign)
    await page.get_by_label("Open a PNG").set_input_files(foreign)
    await expect(page.get_by_role("alert")).to_contain_text("foreign.png is not a PNG generated by this service")


async def test_code_example_and_service_statistics_are_shown(page: Page, worker: FakeWorker) -> None:
    await expect(page.locator("#code")).to_contain_text("curl http://")
    await page.get_by_role("radio", name="Python").check(force=True)
    code = await page.locator("#code").inner_text()
    compile(code, "page", "exec")
    assert "from openai import OpenAI" in code
    await expect(page.locator("#strip")).to_contain_text("slots in use")


async def test_an_invalid_field_is_marked_and_explained(page: Page) -> None:
    await page.get_by_label("Steps").fill("1000")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("alert")).to_contain_text("Invalid num_steps: 1000. Allowed: 2 to 100.")
    await expect(page.get_by_label("Steps")).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_role("button", name="Generate")).to_be_enabled()


async def test_cancel_ends_the_job(page: Page, worker: FakeWorker) -> None:
    worker.holding = True
    await page.get_by_role("button", name="Generate").click()
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_text("Cancelled.")).to_be_visible()
    await expect(page.get_by_role("button", name="Generate")).to_be_enabled()

    async def num_samples() -> int:
        return (await worker.queue.depth(FASHION.name, FASHION.version)).num_samples

    await until(num_samples, 0)


async def test_page_fits_a_phone_and_works_with_the_keyboard(page: Page) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.get_by_role("radio", name="T-shirt").focus()
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("img", name="Trouser, image")).to_have_count(4)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360


async def test_models_are_selectable_and_many_classes_searchable(
    browser: Browser, redis_url: str, settings: ServerSettings
) -> None:
    animals = FASHION.model_copy(
        update={"name": "animals", "labels": tuple(f"animal {i}" for i in range(1000)), "default_num_steps": 20}
    )
    async with FakeWorker(redis_url, [FASHION, animals]) as worker, listening(settings) as url:
        async with browsing(browser, url) as page:
            await page.get_by_label("Model").select_option("animals:1")
            await expect(page.get_by_label("Steps")).to_have_value("20")
            search = page.get_by_label("Class, by name or id")
            await expect(search).to_have_value(re.compile(r"animal \d+"))
            await search.fill("animal 321")
            await page.get_by_role("button", name="Generate").click()
            await expect(page.get_by_role("img", name="animal 321, image")).to_have_count(4)
        assert (worker.claimed[0].job.spec.model, worker.claimed[0].job.spec.label) == ("animals", 321)


async def test_api_key_is_requested_and_kept_in_the_tab(
    browser: Browser, settings: ServerSettings, worker: FakeWorker, tmp_path: Path
) -> None:
    key, file = new_key(), tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "ada"\nsha256 = "{digest(key)}"\n')
    async with listening(settings.model_copy(update={"api_keys_file": file})) as url, browsing(browser, url) as page:
        field = page.get_by_label("API key")
        await expect(field).to_be_hidden()
        await page.get_by_role("button", name="Generate").click()
        await expect(page.get_by_role("alert")).to_contain_text("Missing API key.")
        await expect(field).to_be_focused()
        await field.fill(key)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("img", name="T-shirt, image")).to_have_count(4)
        await expect(page.locator("#code")).to_contain_text("Bearer $MSF_API_KEY")
        assert key not in await page.inner_text("body")
        await page.reload()
        await expect(field).to_have_value(key)
    assert worker.claimed[0].job.terms.tenant == "ada"


async def test_api_documentation_renders_under_its_content_security_policy(browser: Browser, live_url: str) -> None:
    async with browsing(browser, live_url) as page:
        await page.goto(f"{live_url}/docs")
        await expect(page.get_by_role("button", name="Authorize")).to_be_visible()
        await expect(page.locator(".opblock")).not_to_have_count(0)


async def test_page_and_its_assets_are_served(live_url: str) -> None:
    async with httpx.AsyncClient(base_url=live_url) as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert (await client.head("/")).status_code == 200
        for name, content_type in {"app.js": "javascript", "style.css": "css", "icon.svg": "svg"}.items():
            asset = await client.get(f"/page/{name}")
            assert content_type in asset.headers["content-type"]
