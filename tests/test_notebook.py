"""The notebook as a whole: what is stored, how its names hang together, runs in fast mode."""

import ast
import copy
import os
import random
import re
import symtable
import time

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from notebook_code import ROOT, read_notebook

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # holds an id, new in each run


def sections(nb):
    """{number of the section: its code cells}, in order."""
    cells_of, number = {}, 0
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            heading = re.search(r"(?m)^## (\d+) ", cell.source)
            number = int(heading[1]) if heading else number
        else:
            cells_of.setdefault(number, []).append(cell)
    return cells_of


def code_of(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def table_of(nb, name):
    """The rows of the table shown by the cell that assigns a name."""
    cell = next(c for c in code_of(nb) if re.search(rf"(?m)^{name} = ", c.source))
    text = cell.outputs[-1]["data"]["text/markdown"]
    return [[part.strip() for part in line[1:-1].split("|")] for line in text.splitlines()[2:]]


def stored_faults(nb):
    """A sentence for each thing that a stored run must not hold."""
    cells = code_of(nb)
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(counts) + 1)):
        yield "not one run from top to bottom: run python .tools/run_notebook.py"
    for cell in cells:
        for output in cell.outputs:
            text = str(output.get("text", "")) + str(output.get("data", ""))
            plain = output.get("data", {}).get("text/plain", "")
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"{cell.id}: an error or a warning"
            if "Warning" in text:
                yield f"{cell.id}: {text[:80]}"
            if plain.startswith("step ") or plain.strip() == "...":
                yield f"{cell.id}: an unfinished line of progress"
    machine = r"(?<![\w.])/(?:home|root|tmp|usr|opt|work|Users)/[\w./-]+|[A-Z]:\\\\\w+"
    yield from re.findall(machine, nbformat.writes(nb))
    for claim, number, should, verdict in table_of(nb, "findings"):
        if verdict != "holds":
            yield f"{claim}: {number}, should be {should}"


def test_the_stored_run_is_whole_and_all_its_findings_hold():
    nb = read_notebook()
    assert list(stored_faults(nb)) == []
    assert len(table_of(nb, "findings")) == 31 and len(table_of(nb, "board_rows")) >= 10


def test_a_fault_in_a_stored_run_is_seen():
    def broken(change):
        nb = copy.deepcopy(read_notebook())
        change(nb)
        return list(stored_faults(nb))

    def does_not_hold(nb):
        cell = next(c for c in code_of(nb) if re.search(r"(?m)^findings = ", c.source))
        data = cell.outputs[-1]["data"]
        data["text/markdown"] = data["text/markdown"].replace("| holds |", "| fails |", 1)

    assert broken(does_not_hold)
    assert broken(lambda nb: code_of(nb)[3].update(execution_count=99))
    assert broken(lambda nb: code_of(nb)[3].update(outputs=[nbformat.v4.new_output("error")]))
    for output in (
        nbformat.v4.new_output("stream", text="/home/me/names.txt"),
        nbformat.v4.new_output("stream", name="stderr", text="careful"),
        nbformat.v4.new_output("stream", text="a UserWarning: careful"),
        nbformat.v4.new_output("display_data", {"text/plain": "step 3 of 9, loss 2"}),
    ):
        assert broken(lambda nb, output=output: code_of(nb)[3].update(outputs=[output]))


def test_no_code_host_cuts_a_line_and_no_cell_is_longer_than_a_screen():
    for cell in code_of(read_notebook()):
        lines = cell.source.splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 88, cell.id


def test_the_first_names_come_within_seventy_lines_of_code_and_600_words():
    code, words = 0, 0
    for cell in read_notebook().cells:
        if cell.cell_type == "markdown":
            words += len(cell.source.split())
        else:
            code += sum(bool(line.strip()) for line in cell.source.splitlines())
            if cell.id == "walk-names":
                break
    assert code <= 70 and words <= 600, (code, words)


def test_the_contents_link_to_each_section_by_the_id_that_its_heading_gets():
    cells = [c.source for c in read_notebook().cells if c.cell_type == "markdown"]
    heads = re.findall(r"(?m)^##? (.+)$", re.sub(r"(?s)```.*?```", "", "\n".join(cells[1:])))
    ids = [head.replace(" ", "-") for head in heads]  # as JupyterLab and nbconvert make them
    assert re.findall(r"\]\(#(.+?)\)(?=[,:\n]|$)", cells[0]) == ids


def inner_reads(table):
    """The global names that functions and classes below a table read."""
    names = set()
    for child in table.get_children():
        names |= {s.get_name() for s in child.get_symbols() if s.is_global()}
        names |= inner_reads(child)
    return names


def name_faults(nb):
    """A sentence for each name with several meanings, or read before its section."""
    cells, places = [], {}
    for section, section_cells in sections(nb).items():
        for cell in section_cells:
            table = symtable.symtable(cell.source, cell.id, "exec")
            symbols = table.get_symbols()
            bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
            read = {s.get_name() for s in symbols if s.is_referenced()} | inner_reads(table)
            cells.append((section, cell.id, bound, read))
            for name in bound | {s.get_name() for s in symbols if s.is_namespace()}:
                places.setdefault(name, []).append((section, cell.id))
    for section, cell, bound, read in cells:
        for name in sorted(read - bound):
            where = places.get(name, [(section, cell)])
            if min(where)[0] > section:
                yield f"{name}, read in {cell} (section {section}), comes later: {min(where)}"
            if len(where) > 1:
                yield f"{name}, read in {cell}, has several meanings: {where}"


def test_each_name_has_one_meaning_and_no_section_needs_a_later_one():
    assert sorted(set(name_faults(read_notebook()))) == []


def test_a_second_meaning_and_a_name_that_comes_later_are_seen():
    cell, head = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    parts = [head("## 1 One"), cell("x = 1\ndef f():\n    return later"), cell("print(x)")]
    parts += [head("## 2 Two"), cell("x = 2"), cell("later = 3")]
    faults = list(name_faults(nbformat.v4.new_notebook(cells=parts)))
    assert len(faults) == 2 and "later, read in" in faults[0] and "x, read in" in faults[1]


def functions_using(nb, pattern):
    """The functions and cells at whose top level a pattern occurs."""
    for cell in code_of(nb):
        for statement in ast.parse(cell.source).body:
            source = ast.get_source_segment(cell.source, statement)
            if re.search(pattern, re.sub(r"#.*", "", source)):
                yield getattr(statement, "name", source.splitlines()[0])


def test_only_gradient_checks_use_autograd_and_torchs_own_functions():
    autograd = r"\bF\.|requires_grad|enable_grad|\bnn\.|torch\.optim|\.grad\b"
    users = set(functions_using(read_notebook(), autograd))
    allowed = ("check", "reference", "sdpa", "layer_norm = lambda", "import torch.nn")
    assert [u for u in users if not any(a in u for a in allowed)] == []
    assert {"gradient_check", "check_network_gradient", "check_layers"} <= users


def test_the_helper_is_used_and_not_written_again():
    code = "\n".join(cell.source for cell in code_of(read_notebook()))
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = {a.name for node in imports if node.module == "charlm_utils" for a in node.names}
    expected = {"Vocabulary", "build_dataset", "load_names", "normalize_name"}
    assert names == expected | {"sample_names", "split_names"}
    assert not re.search(rf"(?m)^(def|class) ({'|'.join(names)})\b", code)


def test_only_the_results_measure_a_loss_on_the_test_split():
    lines = [
        (section, line)
        for section, cells in sections(read_notebook()).items()
        for cell in cells
        for line in cell.source.splitlines()
        if re.search(r"\btest_(names|lines)\b", line)
    ]
    harmless = ("split_names(", "assert ", "held_out = ")
    rest = [(s, line) for s, line in lines if not any(part in line for part in harmless)]
    assert [section for section, _ in rest] == [16], rest


class Kernel:
    """A kernel in fast mode; `run` executes code and returns what it shows."""

    def __init__(self, cwd=ROOT, **settings):
        environment = os.environ | {"CHARLM_FAST": "1"}
        self.manager, self.client = start_new_kernel(cwd=str(cwd), env=environment)
        self.settings = "\n".join(f"{name} = {value!r}" for name, value in settings.items())

    def run(self, code, on_text=lambda text: None, fails=False):
        """A list of what is shown; text that is updated in place stands once."""
        message_id, shown, places = self.client.execute(code), [], {}
        while True:
            message = self.client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            content, kind = message["content"], message["msg_type"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            if kind == "error":
                self.traceback = content["traceback"]
                shown.append(f"{content['ename']}: {content['evalue']}")
                assert fails, "\n".join([code[:200], *content["traceback"][-2:]])
            elif kind == "stream":
                assert content["name"] != "stderr", content["text"]
                if shown and shown[-1][:1] == "\n":
                    shown[-1] += content["text"]
                else:
                    shown.append("\n" + content["text"])
                on_text(content["text"])
            elif kind in ("display_data", "update_display_data", "execute_result"):
                data = {k: v for k, v in content["data"].items() if k != WIDGET_VIEW}
                data.pop("text/plain" if len(data) > 1 else "", None)
                place = content.get("transient", {}).get("display_id")
                if kind == "update_display_data":
                    shown[places[place]] = str(data)
                else:
                    places[place] = len(shown)
                    shown.append(str(data))
                on_text(str(data))
        while True:
            reply = self.client.get_shell_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == message_id:
                return shown

    def cell(self, cell):
        """What a cell shows; the numbers of a cell of timings masked, models' ids, too."""
        shown = self.run(cell.source)
        if "parameters" in cell.metadata.get("tags", []):
            shown += self.run(self.settings)
        if "seconds" in cell.metadata.get("tags", []):
            shown = [re.sub(r"\d+\.\d+", "#", text) for text in shown]
        return [re.sub(r"model_id: \w+|0x[0-9a-f]+", "", text) for text in shown]

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel():
    """A kernel in which the whole notebook has run; `first` is what each cell showed."""
    kernel = Kernel()
    kernel.nb = read_notebook()
    kernel.sections = sections(kernel.nb)
    kernel.first = {cell.id: kernel.cell(cell) for cell in code_of(kernel.nb)}
    yield kernel
    kernel.close()


def changed(kernel, cells):
    """The cells that show something else than in the first run."""
    return [cell.id for cell in cells if kernel.cell(cell) != kernel.first[cell.id]]


def test_a_fast_run_shows_what_the_stored_notebook_shows_in_kind(kernel):
    for cell in code_of(kernel.nb):
        stored = [output.output_type == "stream" for output in cell.outputs]
        shown = [text.startswith("\n") for text in kernel.first[cell.id]]
        # a stored run joins what is printed before and after a live line
        assert (any(stored), stored.count(False)) == (any(shown), shown.count(False)), cell.id


def test_any_cell_run_again_in_any_order_shows_the_same(kernel):
    """Sections in random order, each cell twice, and before each section all of section 3.

    The cells of the walk are one training and belong together: section 1 runs as a whole.
    """
    order = random.Random(1).sample(sorted(kernel.sections), len(kernel.sections))
    for number in order:
        for cell in kernel.sections[3]:
            kernel.cell(cell)
        twice = [cell for cell in kernel.sections[number] for _ in range(1 if number == 1 else 2)]
        assert changed(kernel, twice) == [], f"section {number} in the order {order}"


DIALS = {"HIDDEN_SIZE": 60, "CONTEXT_SIZE": 2, "EMBEDDING_DIM": 4, "BATCH_SIZE": 64}
DIALS |= {"LEARNING_RATE": 0.05, "STEPS": 150}
STATE = """m = {}
print(m.config.hidden_sizes[0], m.config.context_size, m.config.embedding_dim, len(m.history.loss),
      m.history.learning_rate[0], m.size)"""


def test_dials_turned_work_at_once_in_any_section(kernel):
    cells = [next(c for c in kernel.sections[0] if "parameters" in c.metadata.get("tags", []))]
    kernel.settings = "\n".join(f"{dial} = {value!r}" for dial, value in DIALS.items())
    said = [f"Changed: {dial} is {value}," for dial, value in DIALS.items()]
    try:
        for number, model, part in (5, "model_1", 5), (7, "model_2", 1):
            steps = DIALS["STEPS"] // part  # Model 1 is cut short
            shown = "".join(t for c in [*cells, *kernel.sections[number]] for t in kernel.cell(c))
            assert all(line in shown for line in said)
            assert f"{steps:,} steps of {DIALS['BATCH_SIZE']}, rate" in shown
            *numbers, rate, size = kernel.run(STATE.format(model))[0].split()
            names = ("HIDDEN_SIZE", "CONTEXT_SIZE", "EMBEDDING_DIM", "STEPS")
            assert [int(n) for n in numbers] == [(DIALS | {"STEPS": steps})[n] for n in names]
            assert float(rate) == DIALS["LEARNING_RATE"] and f"{int(size):,} parameters" in shown
        shown = {cell.id: kernel.cell(cell) for cell in kernel.sections[13]}
        for cell_id in ("soft-study", "search"):
            text = shown.pop(cell_id)[0]
            assert all(line in text for line in ["Settings of this section", *said])
        same = [kernel.first[cell_id] == texts for cell_id, texts in shown.items()]
        assert all(same), "section 13 has settings of its own"
        for number in (10, 17):
            for cell in kernel.sections[number]:
                kernel.cell(cell)
    finally:
        kernel.settings = ""
        for cell in [*cells, *kernel.sections[5], *kernel.sections[7], *kernel.sections[10]]:
            kernel.cell(cell)


def test_an_interrupt_in_mid_training_leaves_a_network_that_can_be_used(kernel):
    def interrupt(text):
        if "'step " in text:
            time.sleep(0.2)
            kernel.manager.interrupt_kernel()

    code = """own = Config().make()
history = train(own, train_names, steps=10_000_000, dev=dev_names)
print(len(history.loss) == own.steps > 0, own.loss(dev_names) < 3.5, "interr" in history.stopped)"""
    shown = kernel.run(code, interrupt)
    assert "interrupted after" in shown[0] and shown[-1].strip() == "True True True"


def test_an_interrupt_in_mid_study_ends_it_at_once(kernel):
    def interrupt(text):
        if "2 of 50 runs" in text:
            kernel.manager.interrupt_kernel()

    code = "runs = 'as before'\nruns = study([{}], seeds=range(50), steps=200)"
    shown = kernel.run(code, interrupt, fails=True)
    assert shown[-1].startswith("KeyboardInterrupt") and "of 50 runs" in shown[0]
    check = "{len(row['history'].loss) for row in study.finished}"
    shown = kernel.run(f"print(runs, 2 <= len(study.finished) < 50, {check})")
    assert shown[0].strip() == "as before True {200}"


@pytest.mark.parametrize(
    ("setting", "section", "sentence"),
    [
        ("NAMES_FILE = 'no_such.txt'", 1, "FileNotFoundError: No file of names at"),
        ("BATCH_SIZE = -3", 2, "ValueError: BATCH_SIZE must be a whole number"),
        ("BATCH_SIZE = -3", 5, "ValueError: BATCH_SIZE must be a whole number"),
        ("BATCH_SIZE = 10**9", 5, "ValueError: No batch of 1000000000 can be had from"),
    ],
)
def test_a_wrong_setting_stops_with_one_sentence(kernel, setting, section, sentence):
    parameters = next(c for c in kernel.sections[0] if c.metadata.get("tags") == ["parameters"])
    try:
        kernel.run(f"{parameters.source}\n{setting}")
        rest = [cell for cell in kernel.sections[section] if cell is not parameters]
        for cell in rest:
            shown = kernel.run(cell.source, fails=True)
            if any(re.match(r"\w+Error: ", text) for text in shown):
                break
        assert shown[-1].startswith(sentence)
    finally:
        kernel.run(parameters.source)


# Lists as others have them: letters, number, shortest and longest name, and settings
LISTS = {
    "another alphabet": ("αβγδεικλμνορσ", 500, 3, 8, {"CONTEXT_SIZE": 2, "EMBEDDING_DIM": 1}),
    "few long names of many letters": (
        "".join(chr(0xAC00 + 7 * i) for i in range(150)), 110, 2, 29,
        {"LEARNING_RATE": 50.0, "STEPS": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
def test_another_list_runs_as_well(tmp_path, kind):
    letters, count, shortest, longest, settings = LISTS[kind]
    choose, names = random.Random(0), set()
    while len(names) < count:
        names.add("".join(choose.choices(letters, k=choose.randint(shortest, longest))))
    own_list = tmp_path / "names.txt"
    own_list.write_text("\n".join(sorted(names)), encoding="utf-8")
    kernel, shown = Kernel(NAMES_FILE=str(own_list), **settings), []
    try:
        for cell in code_of(read_notebook()):
            shown += kernel.cell(cell)
    finally:
        kernel.close()
    assert any("can be written in these letters" in text for text in shown)
    assert not any(re.search(r"\bnan\b", text) for text in shown if "image/png" not in text)


def test_a_list_that_is_too_short_is_refused_with_the_number(kernel, tmp_path):
    own_list = tmp_path / "names.txt"
    own_list.write_text("\n".join(f"a{'b' * i}" for i in range(12)), encoding="utf-8")
    try:
        kernel.run(f"NAMES_FILE = {str(own_list)!r}")
        for cell in kernel.sections[1]:
            kernel.run(cell.source)
        shown = [kernel.run(cell.source, fails=True) for cell in kernel.sections[2][:2]]
        assert shown[1][-1].endswith("names.txt holds 12 names: give at least 100.")
    finally:
        for cell in [*kernel.sections[0], *kernel.sections[1], *kernel.sections[2]]:
            kernel.cell(cell)
