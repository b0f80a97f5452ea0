"""Verbs for driving a real JupyterLab: a server, a notebook open in it, a lab on its screen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Locator, Page

START_TIMEOUT = 60  # seconds for the server
KERNEL_TIMEOUT = 60_000  # ms until a notebook is connected to its kernel
RUN_TIMEOUT = 180_000  # ms for all cells of a notebook


@contextmanager
def serve(root: Path, home: Path) -> Iterator[str]:
    """Run JupyterLab on ``root`` with nobody's settings; yields its address."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    _write_settings(home / "settings")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--allow-root", "--expose-app-in-browser"]
    command += [f"--ServerApp.root_dir={root}", "--IdentityProvider.token="]
    command += ["--ServerApp.disable_check_xsrf=True"]
    log = home / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait_until_up(address, server, log)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)


class Notebook:
    """One notebook open in JupyterLab, its page's console errors kept in ``console_errors``."""

    def __init__(self, page: Page, address: str, name: str) -> None:
        self.page = page
        self.console_errors: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.console_errors.append(str(error)))
        page.goto(f"{address}/lab/tree/{name}?reset")
        page.wait_for_selector(
            ".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=KERNEL_TIMEOUT
        )
        page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")

    def run_all(self, *, wait: bool = True) -> None:
        """Run all cells; wait until the kernel has answered the last one."""
        self.page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        if wait:
            self.page.wait_for_function(_ALL_CELLS_RUN, timeout=RUN_TIMEOUT)

    def set_theme(self, name: str) -> None:
        """Switch to ``"JupyterLab Light"`` or ``"JupyterLab Dark"``."""
        self.page.evaluate(
            "name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name
        )

    def cell_errors(self) -> list[str]:
        """Return the text of every error output."""
        return self.page.locator(".jp-OutputArea-output[data-mime-type*=error]").all_inner_texts()

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.console_errors.append(message.text)


class LabOnScreen:
    """A lab of a notebook, the first or a later one, as a reader sees and touches it."""

    def __init__(self, notebook: Notebook, index: int = 0) -> None:
        self.page = notebook.page
        self.screen = self.page.locator(".jp-OutputArea-output:has(.lca-chart)").nth(index)
        self.chart = self.screen.locator(".lca-chart")
        self.toolbar = self.screen.locator(".lca-toolbar")
        self.chart.wait_for(timeout=RUN_TIMEOUT)

    def number(self, name: str) -> float:
        """Return one of the chart's own counters: run, rows, paints, lastPaint."""
        return float(self.chart.evaluate("(chart, name) => chart.dataset[name] || 0", name))

    def state(self) -> str:
        """Return the toolbar's state."""
        return self.toolbar.get_attribute("data-state") or ""

    def wait_for_state(self, state: str, timeout: float = 60_000) -> None:
        """Wait until the toolbar shows ``state``."""
        self.page.wait_for_function(
            "([toolbar, state]) => toolbar.dataset.state === state",
            arg=[self.toolbar.element_handle(), state],
            timeout=timeout,
        )

    def wait_for_end(self, timeout: float = 60_000) -> None:
        """Wait until the run has come to its end, good or bad."""
        self.page.wait_for_function(
            "toolbar => ['finished', 'diverged'].includes(toolbar.dataset.state)",
            arg=self.toolbar.element_handle(),
            timeout=timeout,
        )

    def wait_for_rows(self, run: float, rows: int = 1, timeout: float = 20_000) -> None:
        """Wait until ``rows`` rows of run number ``run`` or a later one are painted."""
        self.page.wait_for_function(
            "([chart, run, rows]) => +chart.dataset.run >= run && +chart.dataset.rows >= rows",
            arg=[self.chart.element_handle(), run, rows],
            timeout=timeout,
        )

    def press(self, button: str) -> None:
        """Press a button of the toolbar."""
        self.toolbar.locator(f"button[data-name={button}]").click()

    def control(self, name: str) -> Locator:
        """Return the input of a control: a slider, a list, a text field."""
        return self.screen.locator(f"[data-name={name}]").first

    def type(self, slider: str, value: str) -> None:
        """Type a value into a slider's number box and press Enter."""
        box = self.screen.locator(f"[data-box={slider}]")
        box.fill(value)
        box.press("Enter")

    def drag(self, slider: str, to: float) -> None:
        """Drag a slider's thumb with the mouse to the value ``to``."""
        handle = self.control(slider)
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        assert box is not None
        low, high, now = handle.evaluate("s => [+s.min, +s.max, +s.value]")
        thumb = 16  # px: a native slider's thumb stays inside the track
        left, track = box["x"] + thumb / 2, (box["width"] - thumb) / (high - low)
        middle = box["y"] + box["height"] / 2
        self.page.mouse.move(left + (now - low) * track, middle)
        self.page.mouse.down()
        self.page.mouse.move(left + (to - low) * track, middle, steps=8)
        self.page.mouse.up()


# Every code cell has been answered: it has a number, and no prompt still says [*].
_ALL_CELLS_RUN = """() => {
  const notebook = jupyterapp.shell.currentWidget.content;
  const cells = notebook.widgets.filter((cell) => cell.model.type === "code");
  return cells.length > 0 && cells.every((cell) =>
    cell.model.executionCount !== null && cell.model.executionState !== "running");
}"""


def _write_settings(folder: Path) -> None:
    tracker = folder / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    # Every cell in the page, also those that are scrolled out of sight.
    (tracker / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    documents = folder / "@jupyterlab" / "docmanager-extension"
    documents.mkdir(parents=True)
    # A notebook that is run must not replace what is stored, which other tests open.
    (documents / "plugin.jupyterlab-settings").write_text('{"autosave": false}')
    news = folder / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/api/status", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
