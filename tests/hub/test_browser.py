"""The pages in a real browser: from the list to a tensor, an ancestor and a comparison; hostile names; themes; speed."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from fakes.hub_pages import EVIL, EVIL_NAME, hostile, many, pipeline
from fakes.hub_server import hub_server, raw

import casstore


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with casstore.open(folder / "store", create=True, durability="none") as store:
        pipeline(store, folder / "models")
        hostile(store, folder / "hostile")
        with hub_server(store) as served:
            yield served


def test_from_the_list_to_a_tensor_an_ancestor_and_a_comparison(app, page):
    page.goto(app.url)
    page.get_by_label("Search names, tags and ids").fill("int8")
    page.get_by_role("button", name="Search").click()
    assert page.get_by_role("row").count() == 2
    page.get_by_role("link", name="org/minilm-int8").click()
    assert page.get_by_role("heading", level=1).inner_text() == "org/minilm-int8"
    page.get_by_role("link", name="6 tensors").click()
    page.get_by_label("Search names").fill("encoder.w")
    page.get_by_role("button", name="Search").click()
    assert page.locator("tbody tr").all_inner_texts()[0].split()[:5] == [
        "encoder.weight",
        "I8",
        "512",
        "\N{MULTIPLICATION SIGN}",
        "256",
    ]
    page.get_by_role("link", name="models/org/minilm-int8").click()
    # The lineage is a drawing in which every model leads to its page.
    page.locator("svg a", has_text="org/minilm-tuned").first.click()
    assert page.url.endswith("/models/org/minilm-tuned")
    assert page.locator(".box-failed").count() == 1
    page.locator("svg a", has_text="finetune").click()
    assert page.url.endswith("/runs/tune-1")
    page.go_back()
    page.get_by_label("Compare with").fill("models/org/minilm")
    page.get_by_role("button", name="Compare").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Compare"
    text = page.inner_text("main")
    assert "encoder.weight" in text
    assert "-0.064" in text
    assert page.complaints == []
    assert all(url.startswith(app.url) for url in page.asked)


def test_lists_sort(app, page):
    page.goto(app.url)
    page.wait_for_timeout(500)
    page.reload()  # by now, sizes are measured
    page.get_by_role("columnheader", name="As files").get_by_role("link").click()
    header = page.get_by_role("columnheader", name="As files")
    assert header.get_attribute("aria-sort") == "descending"
    header.get_by_role("link").click()
    assert page.get_by_role("columnheader", name="As files").get_attribute("aria-sort") == "ascending"
    first = page.locator("tbody th").first.inner_text()
    assert "minilm-int8" in first or "evil" in first or "script" in first


@pytest.mark.parametrize(
    "path",
    [
        "/",
        f"/models/{quote(EVIL_NAME)}",
        f"/models/{quote(EVIL_NAME)}?tensors=",
        "/models/org/evil",
        "/models/org/minilm",
        "/runs/evil-run",
        "/runs/evil-failed",
        "/evaluations/evil/e",
        f"/compare?a={quote(EVIL_NAME)}&b=org/minilm",
        "/compare?a=runs/evil-run&b=runs/evil-failed",
        f"/?q={quote(EVIL)}",
        f"/{quote(EVIL)}",
        "/usage",
    ],
)
def test_nothing_that_somebody_wrote_runs(app, page, path):
    page.goto(app.url + path)
    page.wait_for_timeout(100)
    assert page.title() != "run"
    # Nothing was even tried, so that the policy had nothing to forbid.
    assert [text for text in page.complaints if "404" not in text and "400" not in text] == []
    assert all(url.startswith(app.url) for url in page.asked)
    assert page.locator("main script, main iframe, main style").count() == 0


def test_a_file_that_is_a_page_does_not_run(app, page):
    [name] = [item.path for item in app.context.store.files("models/org/evil") if item.path.endswith(".html")]
    with page.expect_download() as download:
        page.evaluate("url => { location.href = url }", f"{app.url}/org/evil/resolve/main/{quote(name)}")
    assert download.value.suggested_filename.endswith(".html")


def test_it_is_used_with_the_keyboard_alone(app, page):
    page.goto(app.url + "/models/org/minilm")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim().split('\\n')[0]"))
        outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outlined != "none" or page.evaluate("document.activeElement.tagName") in ("BODY", "a", "INPUT")
    assert {"Models", "Compare", "Disk use", "config.json"} <= reached
    assert any("finetune 5 min" in text for text in reached)
    # Every region that scrolls can be reached and has a name.
    assert page.locator(".scroll:not([tabindex='0'][role=region][aria-label])").count() == 0


def test_both_themes_can_be_read(app, browser):
    """The contrast of text is at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        for path in (
            "/",
            "/models/org/minilm-tuned",
            "/compare?a=org/minilm&b=org/minilm-tuned",
            f"/models/{quote(EVIL_NAME)}",
        ):
            page.goto(app.url + path)
            worst = page.evaluate(CONTRAST)
            assert worst["ratio"] >= 4.5, (scheme, path, worst)
        context.close()


CONTRAST = """() => {
  const rgb = text => { const n = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith('color(') ? 255 : 1;
    return {c: n.slice(0, 3).map(v => v * scale), a: n.length > 3 ? n[3] : 1}; };
  const luminance = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = el => { let over = []; for (; el; el = el.parentElement) {
      const b = rgb(getComputedStyle(el).backgroundColor); if (b.a > 0) over.push(b); if (b.a === 1) break; }
    return over.reverse().reduce((under, b) => b.c.map((v, i) => v * b.a + under[i] * (1 - b.a)), [255, 255, 255]); };
  let worst = {ratio: 99};
  for (const el of document.querySelectorAll('main *:not(svg *):not(svg), header *')) {
    if (![...el.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !el.offsetParent) continue;
    const a = luminance(rgb(getComputedStyle(el).color).c), b = luminance(behind(el));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst.ratio) worst = {ratio, text: el.textContent.trim().slice(0, 40), tag: el.tagName, cls: el.className};
  }
  return worst; }"""


def test_a_thousand_models(tmp_path, page):
    """Each page takes less than 0.3 s of a processor, server and client together, once the sizes are measured."""
    with casstore.open(tmp_path / "store", create=True, durability="none") as store:
        many(store, tmp_path / "m", 1000)
        with hub_server(store) as app:
            page.goto(app.url)
            assert page.locator("tbody tr").count() == 1000
            deadline = time.monotonic() + 60
            while b"being measured" in raw(app, "GET", "/").body:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            for path in ("/", "/?sort=size&order=down", "/?q=model-09", "/models/many/model-0500", "/usage"):
                begun = time.process_time()
                assert raw(app, "GET", path).status == 200
                took = time.process_time() - begun
                assert took < 0.3, (path, took)
