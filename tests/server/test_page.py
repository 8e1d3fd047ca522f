"""The web page in a real browser against the real server."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
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
EMOJI_LABELS = Path(__file__).parents[2] / "model_repo/emoji/labels.json"
MAX_LAYOUT_SHIFT = 0.05
LAYOUT_SHIFT = """() => new Promise(resolve => new PerformanceObserver(list => resolve(
  list.getEntries().filter(entry => !entry.hadRecentInput).reduce((sum, entry) => sum + entry.value, 0)
)).observe({ type: "layout-shift", buffered: true }) || setTimeout(() => resolve(0), 50))"""

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
    origin = str(httpx.URL(url).join("/"))
    assert [request for request in requests if not request.startswith((origin, "data:", f"blob:{origin}"))] == []
    assert errors == []
    assert [message for message in messages if "Content Security Policy" in message] == []


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, live_url: str) -> AsyncIterator[Page]:
    async with browsing(browser, live_url) as page:
        yield page


async def test_generate_shows_images_and_timings(page: Page, worker: FakeWorker) -> None:
    await expect(page).to_have_title("msf-serve")
    await expect(page.locator("#health")).to_have_text("ready")
    await expect(page.get_by_role("group", name="Class").get_by_role("radio")).to_have_count(len(LABELS))

    worker.holding = True
    await page.get_by_role("radio", name="Sneaker").check(force=True)
    await page.get_by_label("Images", exact=True).fill("3")
    await page.get_by_label("Seed", exact=True).fill("7")
    await page.get_by_label("Away from").fill("Coat")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("button", name="Generating…")).to_be_disabled()
    worker.holding = False

    images = page.get_by_role("button", name=re.compile(r"^Sneaker, image \d$"))
    await expect(images).to_have_count(3)
    assert (
        await images.first.locator("img").last.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    )
    await expect(page.get_by_role("img", name="queue 4.0 ms, base 30 ms, residual 23 ms")).to_be_visible()
    await expect(page.get_by_text("3 images, seed 7, 12 steps, guidance 2, away from Coat")).to_be_visible()
    await expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    spec = worker.claimed[0].job.spec
    assert (spec.seed, spec.negative_label) == (7, LABELS.index("Coat"))

    async with page.expect_download() as download:
        await page.get_by_role("button", name="Download all").click()
    with zipfile.ZipFile(await (await download.value).path()) as archive:
        assert archive.testzip() is None
        assert [archive.read(name) for name in archive.namelist()[:3]] == draw(spec)
        assert json.loads(archive.read("parameters.json"))["fields"]["seed"] == 7


async def test_what_was_typed_before_the_models_arrived_is_kept(
    browser: Browser, redis_url: str, settings: ServerSettings
) -> None:
    async with listening(settings) as url, browsing(browser, url) as page:
        await page.get_by_label("Steps", exact=True).fill("9")
        await page.get_by_role("combobox", name="Class").fill("Coat")
        await expect(page.locator("#notice")).to_contain_text("No worker is running; it is probably restarting.")
        async with FakeWorker(redis_url) as worker:
            await page.get_by_role("button", name="Generate").click()
            await expect(page.get_by_role("button", name="Coat, image")).to_have_count(8)
            await expect(page.locator("#notice")).to_be_hidden()
            spec = worker.claimed[0].job.spec
    assert (spec.num_steps, spec.guidance_scale) == (9, FASHION.default_guidance_scale)


async def test_progress_and_frames_are_shown_and_kept_on_cancel(page: Page, worker: FakeWorker) -> None:
    worker.claiming = False
    await page.get_by_label("Images", exact=True).fill("2")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.locator("#stage-text")).to_have_text("next in the queue")
    worker.holding = worker.claiming = True
    await until(lambda: len(worker.claimed), 1)
    claim = worker.claimed[0]
    assert claim.job.terms.num_previews == 2
    progress = Progress(stage="residual", steps_done=20, num_steps=26, samples_done=0)
    await worker.leases.publish_progress(claim, progress)
    await expect(page.locator("#stage-text")).to_have_text("residual, step 20 of 26")
    await expect(page.get_by_role("progressbar")).to_have_attribute("value", str(20 / 26))
    for sequence, (index, number) in enumerate([(1, 0), (1, 1)], start=1):
        await worker.leases.publish_preview(
            claim, sequence, Preview(index=index, number=number), draw(claim.job.spec)[0]
        )
    await expect(page.get_by_role("button", name="T-shirt, image 1, unfinished").locator("img")).to_have_count(2)
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#stage-text")).to_have_text("Cancelled: 1 of 2 images kept.")
    await expect(page.locator("#columns .tile")).to_have_count(1)

    async def num_samples() -> int:
        return (await worker.queue.depth(FASHION.name, FASHION.version)).num_samples

    await until(num_samples, 0)


async def test_many_images_are_made_in_parts_and_a_finished_part_is_kept(page: Page, worker: FakeWorker) -> None:
    worker.holding = True
    await page.get_by_label("Images", exact=True).fill("20")
    await page.get_by_role("button", name="Generate").click()
    await until(lambda: len(worker.claimed), 3)
    last = max(worker.claimed, key=lambda claim: claim.job.spec.first_index)
    assert (last.job.spec.first_index, last.job.spec.num_samples) == (16, 4)
    await worker._finish(last)
    await expect(page.get_by_role("button", name=re.compile(r"image \d+$"))).to_have_count(4)
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#stage-text")).to_have_text("Cancelled: 4 of 20 images kept.")
    await expect(page.get_by_role("button", name="T-shirt, image 19")).to_be_visible()


async def test_the_lightbox_develops_an_image_and_reuses_its_noise(page: Page, worker: FakeWorker) -> None:
    await page.get_by_role("button", name="Generate").click()
    await page.get_by_role("button", name="T-shirt, image 2").click()
    lightbox = page.get_by_role("dialog")
    await page.keyboard.press("ArrowRight")
    await expect(lightbox.get_by_role("img", name="T-shirt, image 3")).to_be_visible()
    await lightbox.get_by_role("button", name="Vary").click()
    await expect(page.get_by_text("the same noise, other settings")).to_be_visible()
    await until(lambda: len(worker.claimed), 9)
    original, *variations = (claim.job.spec for claim in worker.claimed)
    assert {(spec.seed, spec.first_index, spec.num_samples) for spec in variations} == {(original.seed, 3, 1)}
    assert len({(spec.num_steps, spec.guidance_scale) for spec in variations}) == 8
    await page.get_by_role("button", name="T-shirt, image 3, 3 steps").click()
    await lightbox.get_by_role("button", name="Use this seed").click()
    await expect(page.get_by_label("First image")).to_have_value("3")
    await expect(page.get_by_label("Steps", exact=True)).to_have_value("3")
    await expect(page.get_by_label("New seed each time")).not_to_be_checked()


async def test_two_settings_are_compared_and_the_link_restores_them(page: Page, worker: FakeWorker) -> None:
    await page.get_by_label("Images", exact=True).fill("2")
    await page.get_by_label("Compare with a second setting").check()
    await page.get_by_label("Steps B").fill("4")
    await page.get_by_role("button", name="Compare", exact=True).click()
    second = page.get_by_role("region", name="Setting B")
    await expect(second).to_contain_text(re.compile(r"4 steps, guidance 2.*76 ms, \d\.\d kB an image: 1\.0 × as fast"))
    assert [claim.job.spec.num_steps for claim in worker.claimed] == [12, 4]
    assert worker.claimed[0].job.spec.seed == worker.claimed[1].job.spec.seed
    await expect(page.locator("#history li")).to_have_count(1)
    url = page.url
    await page.reload()
    await expect(second).to_contain_text("1.0 × as fast")
    await expect(page.get_by_label("Steps B")).to_have_value("4")
    assert len(worker.claimed) == 2  # shown from the history
    await page.get_by_role("button", name="Forget all").click()
    await page.goto(url)
    await expect(second).to_contain_text("1.0 × as fast")
    assert len(worker.claimed) == 4


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
    await expect(page.locator("#strip")).to_contain_text("workers")


async def test_errors_are_explained_in_the_words_of_the_page(page: Page) -> None:
    await page.get_by_label("Steps", exact=True).fill("1000")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("alert")).to_have_text("Steps cannot be 1000. Allowed: 2 to 100.")
    await expect(page.get_by_label("Steps", exact=True)).to_have_attribute("aria-invalid", "true")
    await page.get_by_role("combobox", name="Class").fill("ankel boot")
    await page.get_by_label("Steps", exact=True).fill("10")
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("alert")).to_contain_text('The model knows no class "ankel boot".')
    await page.get_by_role("alert").get_by_role("button", name="Ankle boot").click()
    await page.get_by_role("button", name="Generate").click()
    await expect(page.get_by_role("button", name="Ankle boot, image")).to_have_count(8)


async def test_page_fits_a_phone_and_works_with_the_keyboard(page: Page) -> None:
    await page.set_viewport_size({"width": 320, "height": 640})
    await page.get_by_role("radio", name="T-shirt").focus()
    await page.keyboard.press("ArrowRight")
    await page.evaluate("scrollTo(0, 0)")
    await expect(page.get_by_role("button", name="Generate")).to_be_in_viewport(ratio=1)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Trouser, image")).to_have_count(8)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320


async def test_a_shipped_model_opens_on_pictures_and_its_classes_are_searched_in_groups(
    browser: Browser, redis_url: str, settings: ServerSettings
) -> None:
    labels = tuple(json.loads(EMOJI_LABELS.read_text()))
    emoji = FASHION.model_copy(update={"name": "emoji", "labels": labels, "image_size": 128, "default_num_steps": 20})
    async with FakeWorker(redis_url, [FASHION, emoji]) as worker, listening(settings) as url:
        async with browsing(browser, url) as page:
            await expect(page.get_by_role("button", name="face, image")).to_have_count(8)
            await expect(page.locator("#columns .tile").first.locator("img")).to_have_count(3)
            assert await page.evaluate(LAYOUT_SHIFT) <= MAX_LAYOUT_SHIFT
            assert worker.claimed == []
            await expect(page.get_by_label("Steps", exact=True)).to_have_value("20")
            field = page.get_by_role("combobox", name="Class")
            await field.fill("red panda app")
            await expect(page.get_by_role("listbox")).to_be_hidden()
            await field.fill("apple")
            options = page.get_by_role("group", name="fruit").get_by_role("option")
            await expect(options).to_contain_text(["red apple", "green apple"])
            await field.press("ArrowDown")
            await field.press("Enter")
            await expect(field).to_have_value("pineapple")
            await page.get_by_role("radio", name="Image names 1,707").check(force=True)
            await page.get_by_role("radio", name="rocket").check(force=True)
            await page.get_by_role("button", name="Generate").click()
            await expect(page.get_by_role("button", name="rocket, image")).to_have_count(8)
            await page.get_by_label("Model", exact=True).select_option("fashion:1")
            await expect(page.get_by_label("Steps", exact=True)).to_have_value("12")
        spec = worker.claimed[0].job.spec
        assert (spec.model, spec.label) == ("emoji", labels.index("rocket"))


async def test_api_key_is_requested_and_kept_in_the_tab(
    browser: Browser, settings: ServerSettings, worker: FakeWorker, tmp_path: Path
) -> None:
    key, file = new_key(), tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "ada"\nsha256 = "{digest(key)}"\n')
    async with listening(settings.model_copy(update={"api_keys_file": file})) as url, browsing(browser, url) as page:
        field = page.get_by_label("API key")
        await expect(field).to_be_hidden()
        await page.get_by_role("button", name="Generate").click()
        await expect(page.get_by_role("alert")).to_contain_text("This service wants an API key.")
        await expect(field).to_be_focused()
        await field.fill(key)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="T-shirt, image")).to_have_count(8)
        await expect(page.locator("#code")).to_contain_text("Bearer $MSF_API_KEY")
        assert key not in await page.inner_text("body")
        await page.reload()
        await expect(field).to_have_value(key)
    assert worker.claimed[0].job.terms.tenant == "ada"


async def test_api_documentation_renders_under_its_content_security_policy(browser: Browser, live_url: str) -> None:
    async with browsing(browser, live_url) as page:
        await page.goto(f"{live_url}/docs")
        await expect(page.get_by_role("heading", name="msf-serve")).to_be_visible()
        await expect(page.locator(".opblock")).not_to_have_count(0)


async def test_assets_are_compressed_and_cached_until_they_change(live_url: str) -> None:
    async with httpx.AsyncClient(base_url=live_url) as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-cache"
        assert (await client.head("/")).status_code == 200
        assert (await client.get("/", headers={"If-None-Match": page.headers["etag"]})).status_code == 304
        paths = set(re.findall(r'(?:href|src)="(/page/[^"]+)"', page.text))
        assert len(paths) > 4
        for path in paths:
            asset = await client.get(path)
            assert "immutable" in asset.headers["cache-control"]
            assert asset.headers["content-encoding"] == "gzip"
        plain = await client.get("/page/app.js", headers={"Accept-Encoding": "identity"})
        assert (plain.headers["cache-control"], "content-encoding" in plain.headers) == ("no-cache", False)
        assert "javascript" in plain.headers["content-type"]
        assert (await client.get("/page/0123456789ab/app.js")).headers["cache-control"] == "no-cache"  # another release
        sprite = await client.get("/page/gallery/emoji.kinds.webp")
        assert Image.open(io.BytesIO(sprite.content)).format == "WEBP"
