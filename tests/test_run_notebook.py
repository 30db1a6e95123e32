"""The script that executes the notebook and stores it: .tools/run_notebook.py."""

import importlib.util
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SCRIPT = Path(__file__).resolve().parent.parent / ".tools" / "run_notebook.py"
PNG = b"\x89PNG\r\n\x1a\nnot a real picture"
PYTHON = {"language_info": {"version": "3.11"}}
WARNING = new_output("stream", name="stderr", text="careful\n")
ONE, REVERSED = "<!-- table -->\n", "<!-- /table -->\n<!-- table -->\n"
README = "# Title\n\n<!-- table -->\nold\n<!-- /table -->\n\nThe end.\n"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("run_notebook", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path, script):
    """A small project: what the digest covers, and a README with one marked block."""
    for name in script.INPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name}\nemma\n", encoding="utf-8")
    (tmp_path / "README.md").write_text(README, encoding="utf-8", newline="\n")
    return tmp_path


def notebook():
    """Two executed code cells that feed README, first a table, then a picture."""
    table, plot = new_code_cell("table()"), new_code_cell("plot()")
    table.update(execution_count=1, metadata=NotebookNode(tags=["readme:table"]))
    text = {"text/markdown": "| dev |\n|---|\n| 2.1 |\n", "text/plain": "<Markdown>"}
    table.outputs = [new_output("display_data", text)]
    plot.update(execution_count=2, metadata=NotebookNode(tags=["readme:curves"]))
    first, last = ({"image/png": b64encode(png).decode()} for png in (b"first", PNG))
    shown = (first, last | {"text/markdown": "a caption"})
    plot.outputs = [new_output("display_data", data) for data in shown]
    return new_notebook(cells=[new_markdown_cell("# Names"), table, plot])


def stored(script, root):
    """The notebook and README as a full run leaves them."""
    nb = notebook()
    nb.metadata["charlm"] = {"sources": script.digest(nb, root)}
    for name, data in script.readme_files(nb, root).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    return nb


def test_the_digest_changes_with_code_its_place_and_every_input(script, root):
    edited, moved, wandered = notebook(), notebook(), notebook()
    edited.cells[1].source += "  # again"
    moved.cells = moved.cells[::-1]
    wandered.cells[1].source, wandered.cells[2].source = "table()plot", "()"
    seen = [script.digest(nb, root) for nb in (notebook(), edited, moved, wandered)]
    for name in script.INPUTS:
        (root / name).write_text("olivia\n", encoding="utf-8")
        seen.append(script.digest(notebook(), root))
    assert len(seen) == len(set(seen)), "two different projects have one digest"
    assert {"charlm_utils.py", "names.txt", "names_all_years.txt"} <= {*script.INPUTS}


def test_the_digest_ignores_prose_outputs_and_line_ends(script, root):
    before = script.digest(notebook(), root)
    nb = notebook()
    nb.cells[0].source = "# Other words"
    nb.cells[1].outputs = []
    nb.cells[1].execution_count = 7
    for name in script.INPUTS:
        (root / name).write_bytes((root / name).read_bytes().replace(b"\n", b"\r\n"))
    assert script.digest(nb, root) == before


def test_cleaning_strips_what_differs_from_run_to_run_and_leaves_the_rest(script):
    nb = notebook()
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    nb.metadata["language_info"] = {"name": "python"} | PYTHON["language_info"]
    nb.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    view = new_output("display_data", data={script.WIDGET_VIEW: {"model_id": "1"}})
    nb.cells[2].outputs.append(view)
    cleaned = script.clean(nb)
    assert "widgets" not in cleaned.metadata
    assert cleaned.metadata.language_info == {"name": "python"}
    assert cleaned.cells[1].metadata == {"tags": ["readme:table"]}
    assert cleaned.cells[2].outputs[-1].data == {"text/plain": script.WIDGET_LINE}
    assert cleaned.cells[2].outputs[:-1] == nb.cells[2].outputs[:-1]
    assert script.clean(cleaned) == cleaned
    assert "widgets" in nb.metadata, "the notebook given must not change"


def test_errors_and_stderr_are_traced_to_their_cell(script):
    nb = notebook()
    assert script.troubles(nb) == []
    nb.cells[1].outputs = [WARNING]
    error = {"ename": "ValueError", "evalue": "no", "traceback": ["ValueError: no"]}
    nb.cells[2].outputs = [new_output("error", **error)]
    assert script.troubles(nb) == [
        "code cell 1 ('table()') wrote to stderr: careful",
        "code cell 2 ('plot()') raised ValueError:\nValueError: no",
    ]


def test_readme_takes_the_table_and_the_last_picture(script, root):
    files = script.readme_files(notebook(), root)
    assert set(files) == {"README.md", ".github/curves.png"}
    assert files[".github/curves.png"] == PNG
    table = "<!-- table -->\n\n| dev |\n|---|\n| 2.1 |\n\n<!-- /table -->"
    assert files["README.md"].decode() == f"# Title\n\n{table}\n\nThe end.\n"


def test_filling_readme_twice_changes_nothing_more_and_no_block_may_be_left(script):
    once = script.fill(README, {"table": r"a \1 b"})
    assert r"a \1 b" in once
    assert script.fill(once, {"table": r"a \1 b"}) == once
    with pytest.raises(ValueError, match="no cell tagged 'readme:table'"):
        script.fill(once, {})


@pytest.mark.parametrize("readme", ["no markers\n", ONE, REVERSED, README + README])
def test_readme_without_the_two_marker_lines_is_refused(script, readme):
    with pytest.raises(ValueError, match="README needs a line '<!-- table -->'"):
        script.fill(readme, {"table": "new"})


def test_a_tag_that_is_no_name_or_taken_or_shows_nothing_is_refused(script, root):
    for tag in ("readme:", "readme:../up", "readme:table"):
        nb = notebook()
        nb.cells[2].metadata.tags = [tag]
        with pytest.raises(ValueError, match="one cell a name"):
            script.readme_files(nb, root)
    nb = notebook()
    nb.cells[2].outputs = []
    with pytest.raises(ValueError, match="neither a picture nor Markdown"):
        script.readme_files(nb, root)


def test_the_check_passes_after_a_run_and_a_walk_through_a_file(script, root):
    nb = stored(script, root)
    assert script.check(nb, root) == []
    assert script.check(nbformat.reads(nbformat.writes(nb), as_version=4), root) == []


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda nb: nb.cells[1].update(source="other()"), "have changed since"),
        (lambda nb: nb.metadata.pop("charlm"), "have changed since"),
        (lambda nb: nb.cells[1].update(execution_count=2), "execution counts"),
        (lambda nb: nb.cells[1].update(execution_count=None), "execution counts"),
        (lambda nb: nb.metadata.update(PYTHON), "another program saved"),
        (lambda nb: nb.cells[1].outputs.append(WARNING), "('table()') wrote to stderr"),
        (("names.txt", "olivia\n"), "have changed since"),
        (("README.md", README), "README.md differs"),
        (("README.md", "# Title\n"), "README needs a line"),
        ((".github/curves.png", "older"), ".github/curves.png differs"),
        ((".github/curves.png", None), ".github/curves.png differs"),
    ],
)
def test_the_check_finds_what_is_stale(script, root, damage, sentence):
    nb = stored(script, root)
    if callable(damage):
        damage(nb)
    else:
        name, text = damage
        (root / name).write_bytes(text.encode()) if text else (root / name).unlink()
    (found,) = script.check(nb, root)
    assert sentence in found


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (3.4, "3 seconds"), (9.7, "10 seconds"), (43, "45 seconds")]
    + [(89, "90 seconds"), (100, "1.5 minutes"), (536, "9 minutes"), (570, "9.5 minutes")],
)
def test_a_duration_is_said_no_finer_than_it_repeats(script, seconds, words):
    assert script.about(seconds) == words


def test_readme_says_how_long_the_run_took_and_when_the_first_names_came(script, root):
    nb = notebook()
    seconds = {"0 Hyperparameters": 2.0, "1 Fifty lines": 7.0, "10 Embedding": 31.0}
    nb.metadata["charlm"] = {"seconds": seconds, "cores": 2}
    (root / "README.md").write_text(README + "\n<!-- seconds -->\n<!-- /seconds -->\n")
    readme = script.readme_files(nb, root)["README.md"].decode()
    assert "took 40 seconds on 2 processor cores; its first names came within 9 seconds." in readme


def with_page(script, root):
    """A stored notebook with a cell that has written a page."""
    nb, page = notebook(), b"<p>page</p>"
    cell = new_code_cell("write()", execution_count=3, metadata=NotebookNode(tags=["page:a.html"]))
    said = f"a.html: 11 bytes, SHA-256 {sha256(page).hexdigest()}\n"
    cell.outputs = [new_output("stream", name="stdout", text=said)]
    nb.cells.append(cell)
    nb.metadata["charlm"] = {"sources": script.digest(nb, root)}
    for name, data in script.readme_files(nb, root).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    (root / ".github" / "a.html").write_bytes(page)
    return nb


def test_a_page_is_that_of_the_stored_run_or_stale(script, root):
    nb = with_page(script, root)
    assert script.check(nb, root) == [] and list(script.pages(nb)) == ["a.html"]
    (root / ".github" / "a.html").write_bytes(b"<p>another</p>")
    assert script.check(nb, root) == [
        ".github/a.html is not the page of the stored run: run once more."
    ]
    (root / ".github" / "a.html").unlink()
    assert len(script.check(nb, root)) == 1
    nb.cells[-1].outputs = []
    with pytest.raises(ValueError, match="'page:a.html' must print its page's SHA-256"):
        script.pages(nb)
    assert any("must print" in text for text in script.check(nb, root))


def test_progress_names_each_section_and_what_time_is_left(script, capsys):
    cells = [new_markdown_cell("# Names\nwhy"), new_code_cell("1"), new_markdown_cell("text")]
    cells += [new_markdown_cell("# Part I\n\n## 1 Data"), new_code_cell("2"), new_code_cell("3")]
    nb = new_notebook(cells=[*cells, new_markdown_cell("## 2 Loop"), new_code_cell("4")])
    times = {"Names": 6.0, "1 Data": 6.0, "2 Loop": 12.0}  # too short to tell how fast we are
    for before, left in ({}, ["", "", ""]), (times, ["0.4", "0.3", "0.2"]):
        progress = script.Progress(nb, before)
        for index in (1, 4, 5, 7):
            progress.enter(index)
        assert list(progress.close()) == list(times)
        said = [f"{n}  (about {m} minutes left)" if m else n for n, m in zip(times, left)]
        assert capsys.readouterr().out.splitlines() == said
    progress = script.Progress(nb, {"Names": 60.0, "1 Data": 60.0})
    progress.seconds["Names"] = 120.0  # half as fast as the stored run
    progress.enter(4)
    assert capsys.readouterr().out == "1 Data  (about 2.0 minutes left)\n"
