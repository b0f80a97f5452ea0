"""How fast a lab answers in a real JupyterLab: ``python -m tests.benchmarks.lab_latency``.

Prints a Markdown table: the time from a slider's move to the first painted row of the new run, the
painted updates per second while training, and the time from a click on Stop to the stopped state,
for depth 10 and width 64. Times are taken inside the page, so the driver's own delays do not count.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import sync_playwright

from tests.browser.conftest import CHROMIUM_FLAGS, NOTEBOOK_VIEWPORT, find_chromium
from tests.browser.jupyterlab import LabOnScreen, Notebook, serve

REPETITIONS = 15
TRAINING_SECONDS = 4
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
CELL = "import lca_widgets as lca\nlca.labs.Magnitude(depth=10, width=64, steps=2000)"

# Move the slider as a drag does, then wait until rows of a newer run are painted.
FIRST_PAINT = """([chart, slider, value]) => new Promise((resolve) => {
  const before = +chart.dataset.run;
  const seen = new MutationObserver(() => {
    if (+chart.dataset.run > before && +chart.dataset.rows > 0) {
      seen.disconnect();
      resolve(performance.now() - start);
    }
  });
  seen.observe(chart, { attributes: true });
  const start = performance.now();
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  slider.dispatchEvent(new Event("change", { bubbles: true }));
})"""

STOPPED = """([toolbar]) => new Promise((resolve) => {
  const seen = new MutationObserver(() => {
    if (toolbar.dataset.state === "stopped") {
      seen.disconnect();
      resolve(performance.now() - start);
    }
  });
  seen.observe(toolbar, { attributes: true });
  const start = performance.now();
  toolbar.querySelector("button[data-name=stop]").click();
})"""


def first_paints(lab: LabOnScreen) -> list[float]:
    """Milliseconds from each of several moves of the depth slider to the first painted row."""
    handles = [lab.chart.element_handle(), lab.control("depth").element_handle()]
    times = []
    for k in range(REPETITIONS):
        times.append(lab.page.evaluate(FIRST_PAINT, [*handles, 11 - k % 2]))
        lab.page.wait_for_timeout(400)  # let the new run get going, as a reader would
    return times


def paints_per_second(lab: LabOnScreen) -> float:
    before, start = lab.number("paints"), lab.number("lastPaint")
    lab.page.wait_for_timeout(1000 * TRAINING_SECONDS)
    return 1000 * (lab.number("paints") - before) / (lab.number("lastPaint") - start)


def stops(lab: LabOnScreen) -> list[float]:
    """Milliseconds from each of several clicks on Stop to the stopped state."""
    times = []
    lab.press("stop")
    for _ in range(REPETITIONS):
        before = lab.number("run")
        lab.press("run")
        lab.wait_for_rows(before + 1, rows=50)
        times.append(lab.page.evaluate(STOPPED, [lab.toolbar.element_handle()]))
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "notebooks").mkdir()
        notebook = new_notebook(cells=[new_code_cell(CELL)], metadata={"kernelspec": KERNEL})
        nbformat.write(notebook, home / "notebooks" / "lab.ipynb")
        with serve(home / "notebooks", home) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=find_chromium(), args=list(CHROMIUM_FLAGS)
            )
            page = browser.new_page(viewport=NOTEBOOK_VIEWPORT)
            opened = Notebook(page, address, "lab.ipynb")
            opened.run_all()
            lab = LabOnScreen(opened)
            lab.wait_for_rows(1, rows=500, timeout=90_000)
            paints, moves, clicks = paints_per_second(lab), first_paints(lab), stops(lab)
            browser.close()
    print(f"{platform.processor() or platform.machine()}, {platform.platform()}")
    print("| what | median | worst |\n|---|---|---|")
    print(f"| first paint after a slider move | {_summary(moves)} |")
    print(f"| Stop acts within | {_summary(clicks)} |")
    print(f"| painted updates per second while training | {paints:.0f} | |")


def _summary(times: list[float]) -> str:
    return f"{statistics.median(times):.0f} ms | {max(times):.0f} ms"


if __name__ == "__main__":
    main()
