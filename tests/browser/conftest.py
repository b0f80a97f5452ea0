"""A headless Chromium, and widgets mounted in a blank page with a fake model.

The browser is the system's: `LCA_CHROMIUM` names it, or it is found on the PATH. Nothing is
downloaded.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anywidget
import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from tests.browser.jupyterlab import Notebook, serve
from tests.notebooks.refresh import NOTEBOOKS

CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NOTEBOOK_VIEWPORT: ViewportSize = {"width": 1280, "height": 1150}  # a whole lab at once
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# JupyterLab's own values of the variables the widgets use, so that both themes can be looked at.
THEMES = {
    "light": (
        "--jp-ui-font-color1:rgba(0,0,0,.87);--jp-ui-font-color3:rgba(0,0,0,.38);"
        "--jp-layout-color1:#fff;--jp-layout-color2:#eee;--jp-layout-color3:#bdbdbd;"
        "--jp-border-color1:#bdbdbd;--jp-brand-color1:#1976d2;--jp-error-color1:#d32f2f;"
        "--jp-ui-inverse-font-color1:#fff"
    ),
    "dark": (
        "--jp-ui-font-color1:rgba(255,255,255,.87);--jp-ui-font-color3:rgba(255,255,255,.5);"
        "--jp-layout-color1:#111;--jp-layout-color2:#424242;--jp-layout-color3:#616161;"
        "--jp-border-color1:#616161;--jp-brand-color1:#2196f3;--jp-error-color1:#d32f2f;"
        "--jp-ui-inverse-font-color1:#000"
    ),
}


def find_chromium() -> str:
    """The path of the browser to drive; the test fails with the reason where there is none."""
    named = os.environ.get("LCA_CHROMIUM")
    if named:
        if not Path(named).is_file():
            pytest.fail(f"LCA_CHROMIUM={named!r} is not a file", pytrace=False)
        return named
    for name in CHROMIUM_NAMES:
        path = shutil.which(name)
        if path:
            return path
    pytest.fail(
        f"no browser: none of {', '.join(CHROMIUM_NAMES)} is on the PATH. "
        "Install one (apt-get install chromium) or name it with LCA_CHROMIUM.",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One headless browser for the whole session."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=list(CHROMIUM_FLAGS)
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A blank page; an error that nothing in the page caught fails the test."""
    context = chromium.new_context(viewport={"width": 900, "height": 700}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(5_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors, f"errors in the page: {errors}"


class Mounted:
    """A Python widget whose JavaScript half runs in `page`; the test plays the kernel between."""

    def __init__(self, page: Page, widget: anywidget.AnyWidget, traits: tuple[str, ...]) -> None:
        self.page = page
        self.widget = widget
        self.root = page.locator("#root > div")
        page.add_script_tag(path=str(Path(__file__).with_name("fake_model.js")))
        values = {name: getattr(widget, name) for name in traits}
        page.evaluate("([code, traits]) => mount(code, traits)", [widget._esm, values])
        widget.send = self._send
        widget.observe(self._changed, names=list(traits))

    def _send(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        encoded = [base64.b64encode(buffer).decode() for buffer in buffers or []]
        self.page.evaluate("([m, b]) => model.receive(m, b)", [content, encoded])

    def _changed(self, change: Any) -> None:
        self.page.evaluate("([name, value]) => model.set(name, value)", [change.name, change.new])

    def deliver(self) -> list[dict[str, Any]]:
        """Hand what the page has sent to the Python side; returns it."""
        messages: list[dict[str, Any]] = self.page.evaluate("model.sent.splice(0)")
        for message in messages:
            self.widget._handle_custom_msg(message, [])
        return messages

    def settle(self) -> None:
        """Wait until what was sent has been painted."""
        self.page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        self.page.wait_for_timeout(30)  # heat maps load their image after the frame


@pytest.fixture
def mount(page: Page) -> Callable[..., Mounted]:
    """`mount(widget, traits, theme, width)`: show a widget in the blank page."""

    def show(
        widget: anywidget.AnyWidget, *traits: str, theme: str = "light", width: int = 860
    ) -> Mounted:
        page.goto("about:blank")  # a fresh one also when a test mounts twice
        page.set_content(
            f"<body data-jp-theme-light={'true' if theme == 'light' else 'false'} "
            f"style='{THEMES[theme]};margin:12px;background:var(--jp-layout-color1)'>"
            f"<div id=root style='width:{width}px'></div></body>"
        )
        return Mounted(page, widget, traits)

    return show


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that serves a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("jupyterlab")
    shutil.copytree(NOTEBOOKS, folder / "notebooks")
    with serve(folder / "notebooks", home=folder) as address:
        yield address


@pytest.fixture(scope="module")
def open_notebook(chromium: Browser, jupyterlab: str) -> Iterator[Callable[[str], Notebook]]:
    """`open_notebook(name)`: a notebook in a page of its own, connected to its kernel."""
    context = chromium.new_context(viewport=NOTEBOOK_VIEWPORT, accept_downloads=True)

    def open_one(name: str) -> Notebook:
        return Notebook(context.new_page(), jupyterlab, name)

    yield open_one
    context.close()
