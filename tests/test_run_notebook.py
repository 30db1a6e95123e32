"""The script that executes the notebook and stores it: .tools/run_notebook.py."""

import importlib
import re
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
PNG, PAGE = b"\x89PNG\r\n\x1a\nnot a real picture", b"<p>page</p>"
PYTHON = {"language_info": {"version": "3.11"}}
WARNING = new_output("stream", name="stderr", text="careful\n")
ERROR = new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
ENDS = [CellExecutionError("", "", ""), KeyboardInterrupt, DeadKernelError]
README = "# Title\n\n<!-- table -->\nold\n<!-- /table -->\n\nThe end.\n"
OTHER = "<!-- more -->\n<!-- /more -->\n"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script in a small project: what the digest covers, and a README with one block."""
    monkeypatch.syspath_prepend(TOOLS)
    module = importlib.import_module("run_notebook")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in (".tools", ".github", "tests"):
        (tmp_path / name).mkdir()
    for name in module.INPUTS:
        (tmp_path / name).write_text(f"{name}\nemma\n", encoding="utf-8")
    (tmp_path / "README.md").write_text(README, encoding="utf-8", newline="\n")
    return module


def notebook():
    """Three executed code cells: README's table, README's picture, a page."""
    table = {"text/markdown": "| dev |\n|---|\n| 2.1 |\n", "text/plain": "<Markdown>"}
    first, last = ({"image/png": b64encode(png).decode()} for png in (b"first", PNG))
    last["text/markdown"] = "a caption"
    tags = {"readme:table": [table], "readme:curves": [first, last], "page:a.html": []}
    cells = [new_markdown_cell("# Names")]
    for number, tag in enumerate(tags, start=1):
        cells.append(new_code_cell(f"show({number})", execution_count=number))
        cells[number].metadata.tags = [tag]
        cells[number].outputs = [new_output("display_data", data) for data in tags[tag]]
    cells[3].outputs = [new_output("stream", text=f"SHA-256 {sha256(PAGE).hexdigest()}\n")]
    return new_notebook(cells=cells)


def run(script, monkeypatch, outputs=(), end=None):
    """The notebook after a run in which a cell adds outputs, and that may end before its time."""

    def execute(client):
        (script.ROOT / "a.html").write_bytes(PAGE)
        client.nb.cells[1].outputs += outputs
        if end:
            raise end

    nbformat.write(notebook(), script.ROOT / script.NOTEBOOK)
    monkeypatch.setattr(sys, "argv", ["run_notebook.py"])
    monkeypatch.setattr(script.NotebookClient, "execute", execute)
    script.main()
    return nbformat.read(script.ROOT / script.NOTEBOOK, as_version=4)


def test_the_digest_changes_with_code_its_place_and_every_input_and_with_nothing_else(script):
    edited, moved, wandered, same = notebook(), notebook(), notebook(), notebook()
    edited.cells[1].source += "  # again"
    moved.cells = moved.cells[::-1]
    wandered.cells[1].source, wandered.cells[2].source = "show(1)show", "(2)"
    same.cells[0].source = "# Other words"
    same.cells[1].update(outputs=[], execution_count=7)
    seen = [script.digest(nb) for nb in (notebook(), edited, moved, wandered)]
    for path in (script.ROOT / name for name in script.INPUTS):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert script.digest(same) in (seen[0], seen[-1]), "line ends do not count"
        path.write_text("olivia\n", encoding="utf-8")
        seen.append(script.digest(notebook()))
    assert len(seen) == len(set(seen)), "two different projects have one digest"
    assert {"charlm_utils.py", "names.txt", "names_all_years.txt"} <= {*script.INPUTS}


def test_cleaning_strips_what_differs_from_run_to_run_and_leaves_the_rest(script):
    nb = notebook()
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    nb.metadata["language_info"] = {"name": "python"} | PYTHON["language_info"]
    nb.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    nb.cells[2].outputs.append(new_output("display_data", {script.WIDGET_VIEW: {"model_id": "1"}}))
    cleaned = script.clean(nb)
    assert cleaned.metadata == {"language_info": {"name": "python"}}
    assert cleaned.cells[1].metadata == {"tags": ["readme:table"]}
    assert cleaned.cells[2].outputs[-1].data == {"text/plain": script.WIDGET_LINE}
    assert cleaned.cells[2].outputs[:-1] == nb.cells[2].outputs[:-1]
    assert "widgets" in nb.metadata, "the notebook given must not change"


def test_readme_takes_table_and_last_picture_and_filling_it_again_changes_nothing(script):
    table = "<!-- table -->\n\n| dev |\n|---|\n| 2.1 |\n\n<!-- /table -->"
    filled = f"# Title\n\n{table}\n\nThe end.\n"
    files = {"README.md": filled.encode(), ".github/curves.png": PNG}
    assert script.readme_files(notebook()) == files
    assert script.fill(filled, {"table": "| dev |\n|---|\n| 2.1 |"}) == filled


@pytest.mark.parametrize("readme", [README.replace("/", ""), README * 2, README + OTHER])
def test_readme_needs_the_two_marker_lines_of_each_block_and_no_others(script, readme):
    with pytest.raises(ValueError, match="README has marker lines"):
        script.fill(readme, {"table": "new"})


@pytest.mark.parametrize("tag", ["readme:", "readme:../up", "readme:table", "readme:empty"])
def test_a_tag_that_is_no_name_or_taken_or_shows_nothing_is_refused(script, tag):
    nb = notebook()
    nb.cells[3].metadata.tags = [tag]
    with pytest.raises(ValueError, match=f"{tag}.: (one cell a name|neither a picture)"):
        script.readme_files(nb)


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda nb: nb.cells[1].update(source="other()"), "have changed since"),
        (lambda nb: nb.cells[1].update(execution_count=2), "execution counts"),
        (lambda nb: nb.metadata.update(PYTHON), "another program saved"),
        (lambda nb: nb.cells[2].outputs.append(ERROR), "2 ('show(2)') raised ValueError:\nValueE"),
        (lambda nb: nb.cells[3].update(outputs=[]), ".github/a.html is not the page"),
        (("README.md", README), "README.md differs"),
        (("README.md", "# Title\n"), "README has marker lines"),
        ((".github/curves.png", None), ".github/curves.png differs"),
        ((".github/a.html", "<p>another</p>"), ".github/a.html is not the page"),
        ((".github/a.html", None), ".github/a.html is not the page"),
    ],
)
def test_the_check_passes_after_a_run_and_finds_damage(script, monkeypatch, damage, sentence):
    nb = run(script, monkeypatch)
    assert script.check(nb) == []
    if callable(damage):
        damage(nb)
    else:
        path, text = script.ROOT / damage[0], damage[1]
        path.write_bytes(text.encode()) if text else path.unlink()
    (found,) = script.check(nb)
    assert sentence in found


def test_readme_says_in_words_how_long_the_run_took_and_when_the_first_names_came(script):
    words = "1 second, 3 seconds, 10 seconds, 45 seconds, 90 seconds, 1.5 minutes, 9 minutes"
    assert ", ".join(map(script.about, (0.2, 3.4, 9.7, 43, 89, 100, 536))) == words
    nb, path = notebook(), script.ROOT / "README.md"
    nb.metadata["charlm"] = {"seconds": {"0 A": 2.0, "1 B": 7.0, "10 C": 31.0}, "cores": 2}
    path.write_text(README + "\n<!-- seconds -->\n<!-- /seconds -->\n")
    readme = script.readme_files(nb)["README.md"].decode()
    assert "took 40 seconds on 2 processor cores; its first names came within 9 seconds." in readme


def test_progress_names_each_section_and_what_time_is_left(script, capsys):
    titles = ("# Names\nwhy", "# Part I\n\n## 1 Data", "text", "## 2 Loop")
    nb = new_notebook(cells=[new_markdown_cell(title) for title in titles])
    script.Progress(nb, {}).enter(0)
    progress = script.Progress(nb, {"Names": 6.0, "1 Data": 60.0, "2 Loop": 54.0})
    progress.enter(0)
    progress.enter(1)  # six seconds are too short to tell how fast we are
    progress.starts = {title: start - 132.0 for title, start in progress.starts.items()}
    progress.enter(2)
    progress.enter(3)  # half as fast as the stored run
    said = re.findall(r"(.*?)(?:  \(about (.*) minutes left\))?\n", capsys.readouterr().out)
    assert said == [("Names", ""), ("Names", "2.0"), ("1 Data", "1.9"), ("2 Loop", "1.8")]
    assert progress.seconds() == {"Names": 0.0, "1 Data": 132.0, "2 Loop": 0.0}


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_raises_warns_or_is_interrupted_is_not_stored(script, monkeypatch, end):
    with pytest.raises(SystemExit, match="nothing stored"):
        run(script, monkeypatch, [WARNING], end)
    nb = nbformat.read(script.ROOT / script.NOTEBOOK, as_version=4)
    assert "charlm" not in nb.metadata, "the notebook has been stored"
