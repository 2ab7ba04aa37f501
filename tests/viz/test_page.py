"""The page of an explanation in a real browser: it shows something, asks no network, and can be read by everybody."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import igfast

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # of the browser's driver
]
SCRIPT = "<script>document.title='changed'</script>"


def image():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    return igfast.IntegratedGradients(net).explain(torch.rand(1, 3, 32, 32), target=1, n_steps=5)


def text():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(24, 2))
    tokens = ["[CLS]", "good", SCRIPT, "b&d", '"quoted"', "[SEP]"]
    explainer = igfast.LayerIntegratedGradients(net, net[0])
    return explainer.explain(torch.arange(1, 7).unsqueeze(0), target=0, feature_names=[tokens])


def table():
    torch.manual_seed(0)
    names = ["rooms", SCRIPT, "tax"]
    return igfast.IntegratedGradients(torch.nn.Linear(3, 1)).explain(torch.rand(3, 3), feature_names=names)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, tmp_path):
    contexts = []

    def opened(html, **options):
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("make", [image, text, table])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_pages(make, scheme, width, visit, tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(
        igfast.viz.report(make(), title=f"Title {SCRIPT}"),
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
    )
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert page.title() == f"Title {SCRIPT}"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"), dtype=float)
    assert pixels.std() > 5
    assert (pixels.mean() > 128) == (scheme == "light")
    found = Axe().run(page).response["violations"]
    assert [(v["id"], v["impact"]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_a_token_stays_text(visit):
    page = visit(igfast.viz.report(text(), title="A text"))
    assert page.get_by_text(SCRIPT).count() >= 1
    assert page.evaluate("document.querySelectorAll('script').length") == 0


def test_the_keyboard_opens_what_is_folded(visit):
    page = visit(igfast.viz.report(table(), title="A table"))
    details = page.locator("details")
    assert details.get_attribute("open") is None
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.keyboard.press("Enter")
    assert details.get_attribute("open") is not None
