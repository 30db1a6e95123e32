"""The playground as a reader uses it: JupyterLab, headless Chromium, one run of all cells.

Needs playwright (pip) and chromium (the system's). Without them these tests are skipped with a
reason, unless CHARLM_BROWSER=required: then they fail. The tests share one page and run in the
order of this file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import launched, need_a_browser

try:
    from playwright.sync_api import Locator, Page, expect
except ImportError:
    pass  # the tests are skipped

ROOT = Path(__file__).resolve().parent.parent
FILES = ("CharLM_MLP.ipynb", "charlm_utils.py", "names.txt", "names_all_years.txt")
FILES += ("tests/exercises.py", "tests/findings.py", ".tools/studio.html")
SLOW, SECOND = 240_000, 1_000  # milliseconds, as all times in this file
ANSWER = 10 * SECOND  # how long the answer to an input may take
SETTINGS = {  # of JupyterLab: every cell is in the page, nothing asks anything
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
RUN_ALL = """async (limit) => {
    const app = window.jupyterapp;
    await app.restored;
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
    const late = new Promise((_, no) => setTimeout(() => no(Error('run all: too slow')), limit));
    await Promise.race([app.commands.execute('notebook:run-all-cells'), late]);
    for (const cell of panel.content.widgets) cell.node.dataset.cell = cell.model.id;
}"""


class Playground:
    """The page with the notebook, every cell of it executed."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def cell(self, cell_id: str) -> Locator:
        return self.page.locator(f'[data-cell="{cell_id}"]')

    def shown(self, cell_id: str) -> Locator:
        """What a cell shows below its controls, if that is one thing and no picture."""
        return self.cell(cell_id).locator(".jp-OutputArea-output.jp-RenderedHTMLCommon")

    def image(self, cell_id: str) -> Locator:
        return self.cell(cell_id).locator(".jp-OutputArea-output img")

    def control(self, cell_id: str, label: str) -> Locator:
        name = self.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(label)}$"))
        return self.cell(cell_id).locator(".widget-inline-hbox").filter(has=name)

    def write(self, cell_id: str, label: str, text: str) -> None:
        """Write into a text box, as a reader does, and press Enter."""
        box = self.control(cell_id, label).locator("input")
        box.fill(text)
        box.press("Enter")

    def slide(self, cell_id: str, label: str, value: float) -> None:
        """Give a slider a value by writing it into its readout."""
        readout = self.control(cell_id, label).locator(".widget-readout")
        readout.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(str(value))
        self.page.keyboard.press("Enter")

    def answer(self, cell_id: str, act: Callable[[], object]) -> None:
        """Do something to a cell's controls, and wait until what the cell shows has changed."""
        before = self.shown(cell_id).inner_text()
        act()
        expect(self.shown(cell_id)).not_to_have_text(before, use_inner_text=True, timeout=ANSWER)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")  # not session: playwright's event loop must be gone for nbclient
def address(tmp_path_factory) -> Iterator[str]:
    """The address of the notebook in a JupyterLab of its own, on a copy of the project."""
    need_a_browser()
    root, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    for name in FILES:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    folders |= {"JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": "settings"}
    env = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    port, token = free_port(), "test"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    url = f"http://127.0.0.1:{port}"
    with (home / "lab.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            command, cwd=root, env=env | {"CHARLM_FAST": "1"}, stdout=log, stderr=log
        )
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{url}/api?token={token}", timeout=5).close()
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > until:
                        pytest.fail((home / "lab.log").read_text(encoding="utf-8"))
                    time.sleep(0.2)
            yield f"{url}/lab/tree/{FILES[0]}?token={token}&reset"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="module")
def lab(address) -> Iterator[Playground]:
    """The notebook in a browser after Run All."""
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 1200})
        page.set_default_timeout(10 * SECOND)
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60 * SECOND)
        page.evaluate(RUN_ALL, SLOW)
        yield Playground(page)


def names_in(text: str) -> list[str]:
    """The names in the text that the studio shows, without their marks."""
    return [re.sub(r"\W", "", name) for name in text.splitlines()[0].split(",")]


def test_every_cell_runs_and_every_widget_appears(lab):
    cells = lab.page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON().cells")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    troubles = [
        (cell["id"], output)
        for cell in code
        for output in cell["outputs"]
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert not troubles
    controls = {"studio-panel": 5, "studio-surprisal": 2, "training-panel-shown": 9}
    for cell_id, count in controls.items():
        expect(lab.cell(cell_id).locator(".widget-inline-hbox")).to_have_count(count)
    outputs = lab.page.locator(".jp-OutputArea")
    for message in ("Error displaying widget", "Loading widget", "Traceback", "Model not found"):
        expect(outputs.filter(has_text=message)).to_have_count(0)


@pytest.mark.parametrize("title", ["Part II, the evidence", "16 Results", "References"])
def test_a_link_of_the_contents_leads_to_its_heading(lab, title):
    lab.page.locator(".jp-MarkdownOutput a").get_by_text(title, exact=True).first.click()
    heading = lab.page.locator(".jp-MarkdownOutput :is(h1, h2)").filter(has_text=title)
    expect(heading).to_be_in_viewport()


def test_every_name_of_the_studio_begins_with_the_prefix(lab):
    lab.answer("studio-panel", lambda: lab.write("studio-panel", "prefix", " Mar"))
    names = names_in(lab.shown("studio-panel").inner_text())
    assert len(names) == 24
    assert all(name.startswith("Mar") for name in names)


def test_a_prefix_that_no_name_can_have_is_answered_by_one_sentence(lab):
    lab.answer("studio-panel", lambda: lab.write("studio-panel", "prefix", "a1"))
    text = lab.shown("studio-panel").inner_text().strip()
    assert text.startswith("'1'") and text.count(".") == 1 and "\n" not in text
    lab.answer("studio-panel", lambda: lab.write("studio-panel", "prefix", ""))
    assert len(names_in(lab.shown("studio-panel").inner_text())) == 24


def test_the_temperature_changes_the_names(lab):
    before = names_in(lab.shown("studio-panel").inner_text())
    handle = lab.control("studio-panel", "temperature").locator(".noUi-handle")
    lab.answer("studio-panel", lambda: handle.press("ArrowLeft"))
    assert names_in(lab.shown("studio-panel").inner_text()) != before
    lab.answer("studio-panel", lambda: lab.slide("studio-panel", "temperature", 0))
    assert len(set(names_in(lab.shown("studio-panel").inner_text()))) == 1, (
        "temperature 0: no chance"
    )
    lab.answer("studio-panel", lambda: lab.slide("studio-panel", "temperature", 1))
    assert names_in(lab.shown("studio-panel").inner_text()) == before


def test_the_button_draws_other_names(lab):
    before = names_in(lab.shown("studio-panel").inner_text())
    button = lab.cell("studio-panel").get_by_role("button", name="again")
    lab.answer("studio-panel", button.click)
    names = names_in(lab.shown("studio-panel").inner_text())
    assert len(names) == len(before) and names != before


def test_the_surprisal_of_each_letter_of_a_typed_name_appears(lab):
    lab.answer("studio-surprisal", lambda: lab.write("studio-surprisal", "name", "Matilda"))
    text = lab.shown("studio-surprisal").inner_text()
    cells = lab.shown("studio-surprisal").locator("td").all_inner_texts()
    assert cells[:8] == [*"Matilda."] and all(re.fullmatch(r"\d+\.\d", c) for c in cells[8:])
    assert len(cells) == 16, "each letter over its surprisal"
    assert re.search(r"one draw in [\d,]+; (new|in )", text)


def test_training_moves_the_curve_and_stop_keeps_what_was_trained(lab):
    cell = lab.cell("training-panel-shown")
    before = lab.image("training-panel-shown").get_attribute("src")
    settings = {"steps": 3_000, "layers": 4, "hidden size": 512}  # some seconds of work
    for label, value in settings.items():
        lab.slide("training-panel-shown", label, value)
    cell.get_by_role("button", name="Train").click()
    expect(cell.get_by_role("button", name="Train")).to_be_disabled()
    expect(lab.image("training-panel-shown")).not_to_have_attribute(
        "src", before, timeout=60 * SECOND
    )
    cell.get_by_role("button", name="Stop").click()
    sentence = cell.get_by_text(re.compile(r"stopped after [\d,]+ of 3,000 steps"))
    sentence.first.wait_for(timeout=20 * SECOND)  # expect() would look once a second only
    row = cell.locator("tbody tr").filter(has_text=re.compile(r"your\smodel\s1"))
    expect(row).to_have_count(1)
    steps = re.search(r"after ([\d,]+) of", sentence.first.inner_text())[1].replace(",", "")
    assert steps in row.locator("td").all_inner_texts(), "the steps that were run"
    expect(cell.get_by_role("button", name="Train")).to_be_enabled()


def test_a_trained_model_joins_those_of_the_studio(lab):
    choice = lab.control("studio-panel", "model").locator("select")
    lab.answer("studio-panel", lambda: choice.select_option("your model 1"))
    assert "your model 1" in lab.shown("studio-panel").inner_text()
