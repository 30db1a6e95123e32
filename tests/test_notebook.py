"""The notebook as a whole: what is stored, a run in fast mode, an interrupt in a live kernel."""

import ast
import json
import math
import os
import random
import re
import time
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from notebook_code import ROOT, code_cells, read_notebook

FIRST_TRAINING = "range-test"  # the cells before this one only define


def sources():
    return {cell["id"]: cell.source for cell in code_cells()}


WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # holds an id, new in each run


def without_view(data):
    return {kind: value for kind, value in data.items() if kind != WIDGET_VIEW}


def shown(cell):
    """What a cell shows, without counts: text, tables, pictures, widgets as text."""
    parts = []
    for output in cell.outputs:
        part = {key: output[key] for key in ("name", "text") if key in output}
        parts.append(part | {"data": without_view(output.get("data", {}))})
    return parts


def kinds_shown(cell):
    """The kinds of data of each output; a stored widget is the line that replaced it."""
    return [sorted(without_view(output.get("data", {"text": 0}))) for output in cell.outputs]


# What is stored


def test_the_stored_outputs_are_those_of_one_run_from_top_to_bottom():
    counts = [cell.execution_count for cell in code_cells()]
    assert counts == list(range(1, len(counts) + 1)), "run python .tools/run_notebook.py"


def test_every_cell_that_prints_or_plots_has_its_output():
    for cell in code_cells():
        calls = re.search(
            r"^(print|table|show_\w+|histograms|plt\.show|    print)\(", cell.source, re.M
        )
        if calls:
            assert cell.outputs, f"cell {cell['id']} shows something, but no output is stored"


def test_no_stored_output_is_an_error_or_a_warning():
    for cell in code_cells():
        for output in cell.outputs:
            assert output.output_type != "error", f"cell {cell['id']}"
            assert output.get("name") != "stderr", f"cell {cell['id']}: {output.get('text')}"
            assert "Warning" not in str(output.get("text", "")), f"cell {cell['id']}"


def test_the_stored_notebook_names_no_path_of_a_machine():
    text = nbformat.writes(read_notebook())
    found = re.findall(
        r"(?<![\w.])/(?:home|root|tmp|usr|opt|work|Users)/[\w./-]+|[A-Z]:\\\\\w+", text
    )
    assert not found, found


def test_no_stored_output_is_an_unfinished_progress_line():
    for cell in code_cells():
        for output in cell.outputs:
            plain = str(output.get("data", {}).get("text/plain", ""))
            assert "s left" not in plain and plain.strip() != "...", f"cell {cell['id']}"


# How notebook and helper belong together


def test_the_notebook_imports_the_helper_and_has_no_second_of_its_functions():
    trees = [ast.parse(source) for source in sources().values()]
    imported, defined = set(), set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and node.module == "charlm_utils":
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
    helpers = {"Vocabulary", "build_dataset", "load_names", "sample_names", "split_names"}
    assert imported == helpers
    assert not helpers & defined
    code = "\n".join(sources().values())
    assert "multinomial" not in code, "a second sampler"
    assert code.count("sample_names(") == 2, "sampling goes through the two wrappers"


def test_only_the_judge_uses_autograd_and_torchs_own_layers():
    for name, source in sources().items():
        code = re.sub(r"#.*", "", source)
        if "judge" not in name and name != "imports":
            assert not re.search(r"\bF\.|requires_grad|enable_grad|\bnn\.", code), name
            assert "torch.optim" not in code, name


def test_only_the_scoreboard_measures_a_loss_on_the_test_split():
    for name, source in sources().items():
        code = re.sub(r"#.*", "", source)
        for line in code.splitlines():
            test_split = re.search(r"test_(names|lines|data|rows|\d+)\b", line)
            if test_split and name not in ("scoreboard-rows", "scoreboard-next"):
                excluded = line.startswith("held_out = ")  # section 14 takes these names out
                harmless = "split_names(" in line or "assert " in line or excluded
                assert harmless, f"{name}: {line}"


def test_there_is_one_training_loop_and_one_evaluation():
    code = "\n".join(sources().values())
    assert code.count("network.parameters.sub_(") == 1
    assert len(re.findall(r"^def (?:train|evaluate)\(", code, re.M)) == 2


def test_there_are_more_markdown_cells_than_code_cells():
    cells = read_notebook().cells
    assert sum(c.cell_type == "markdown" for c in cells) > len(cells) / 2


# A run in fast mode: every cell twice in a row


REPORT = """import json
print(json.dumps({"bn_study": bn_study, "scoreboard": scoreboard, "seeds": len(SEEDS)}))"""


@pytest.fixture(scope="session")
def doubled():
    """Every code cell run twice in a row, in one kernel, in fast mode; what is left at the end."""
    nb = read_notebook()
    pairs = []
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        twins = [nbformat.v4.new_code_cell(cell.source, id=f"{cell['id']}-{i}") for i in "ab"]
        pairs.append((cell["id"], *twins))
    report = nbformat.v4.new_code_cell(REPORT)
    nb.cells = [twin for _, *twins in pairs for twin in twins] + [report]
    resources = {"metadata": {"path": str(ROOT)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHARLM_FAST", "1")
        NotebookClient(nb, timeout=600, coalesce_streams=True, resources=resources).execute()
    return SimpleNamespace(pairs=pairs, report=json.loads(report.outputs[0].text))


def test_the_whole_notebook_runs_in_fast_mode_without_a_warning(doubled):
    for name, first, _ in doubled.pairs:
        for output in first.outputs:
            assert output.output_type != "error", name
            assert output.get("name") != "stderr", f"{name}: {output.get('text')}"


def test_every_cell_run_twice_in_a_row_shows_the_same(doubled):
    for name, first, second in doubled.pairs:
        assert shown(first) == shown(second), f"cell {name} keeps state from run to run"


def test_a_run_shows_what_the_stored_notebook_shows_in_kind(doubled):
    stored = {cell["id"]: cell for cell in code_cells()}
    for name, first, _ in doubled.pairs:
        assert kinds_shown(first) == kinds_shown(stored[name]), f"cell {name}"


def test_the_study_holds_one_finite_row_for_each_condition_and_seed(doubled):
    study, seeds = doubled.report["bn_study"], doubled.report["seeds"]
    assert len(study) == 2 * 2 * 4 * 2 * seeds
    keys = ("depth", "init", "learning_rate", "batch_norm", "seed")
    assert len({tuple(row[key] for key in keys) for row in study}) == len(study)
    for row in study:
        for key, value in row.items():
            if key in ("steps_to_level", "seconds_to_level"):  # None where never reached
                assert value is None or value >= 0
            elif key != "init":
                assert math.isfinite(value), f"{key} of {row}"


def test_the_scoreboard_holds_all_models_with_finite_losses(doubled):
    scoreboard = doubled.report["scoreboard"]
    keys = ["model", "parameters", "steps", "seconds", "train", "dev", "test"]
    for row in scoreboard:
        assert list(row) == keys
        assert math.isfinite(row["dev"]) and math.isfinite(row["test"])
        assert (row["train"] is None) == (row["steps"] is None)
    names = " ".join(row["model"] for row in scoreboard)
    models = "uniform bigram 4-gram 5-gram Model_1 Model_2 6_x_64 dropout_0.1 ReLU 1/8_of all_years"
    for model in [*models.split(), "best_MLP", "Transformer", "best_MLP_+_5-gram"]:
        assert model.replace("_", " ") in names
    assert len({row["model"] for row in scoreboard}) == len(scoreboard)


def test_a_small_list_of_other_letters_without_repeats_runs_as_well(tmp_path):
    choose = random.Random(0)
    names = {"".join(choose.choices("αβγδεικλμνορσ", k=choose.randint(3, 8))) for _ in range(500)}
    own_list = tmp_path / "names.txt"
    own_list.write_text("\n".join(sorted(names)), encoding="utf-8")
    nb = read_notebook()
    at = next(i for i, cell in enumerate(nb.cells) if cell["id"] == "parameters")
    settings = f"NAMES_FILE = ALL_NAMES_FILE = {str(own_list)!r}; CONTEXT_SIZE = 2"
    nb.cells.insert(at + 1, nbformat.v4.new_code_cell(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHARLM_FAST", "1")
        resources = {"metadata": {"path": str(ROOT)}}
        NotebookClient(nb, timeout=600, resources=resources).execute()


# A live kernel


@pytest.fixture
def kernel():
    """A function that executes code in a fresh fast-mode kernel: (reply, text that it showed)."""
    environment = os.environ | {"CHARLM_FAST": "1"}
    manager, client = start_new_kernel(cwd=str(ROOT), env=environment)

    def execute(code, on_output=lambda text: None):
        message_id, texts = client.execute(code), []
        while True:
            message = client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            content, kind = message["content"], message["msg_type"]
            if kind == "status" and content["execution_state"] == "idle":
                reply = client.get_shell_msg(timeout=60)
                while reply["parent_header"].get("msg_id") != message_id:  # of the kernel's start
                    reply = client.get_shell_msg(timeout=60)
                return reply["content"], "".join(texts)
            text = content.get("text") or content.get("data", {}).get("text/plain") or ""
            if kind == "error":
                text = f"{content['ename']}: {content['evalue']}"
            texts.append(text)
            on_output(text)

    execute.manager = manager
    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_an_interrupt_in_mid_training_leaves_a_model_that_the_next_cell_uses(kernel):
    for name, source in sources().items():
        if name == FIRST_TRAINING:
            break
        reply, text = kernel(source)
        assert reply["status"] == "ok", f"{name}: {text}"
    kernel("network = make_mlp('gain 1/2', batch_norm=True)")

    def interrupt_when_under_way(text):
        if "s left" in text:
            time.sleep(0.3)
            kernel.manager.interrupt_kernel()

    training = "history = train(network, train_data, steps=10_000_000, dev=dev_data)"
    reply, text = kernel(training, interrupt_when_under_way)
    assert reply["status"] == "ok", text
    assert "interrupted after" in text
    check = (
        "print(len(history.loss) > 0, evaluate(network, dev_data) < 3, network.layers[2].training)"
    )
    reply, text = kernel(check)
    assert reply["status"] == "ok" and text.strip() == "True True True", text


@pytest.mark.parametrize(
    ("setting", "cell", "sentence"),
    [
        ("NAMES_FILE = 'no_such.txt'", "data-load", "FileNotFoundError: No file of names at"),
        ("BATCH_SIZE = -3", "settings-check", "ValueError: BATCH_SIZE must be a whole number"),
        ("BATCH_SIZE = 10**9", "data-split", "ValueError: BATCH_SIZE 1000000000 is more than"),
        ("DEVICE = 'toaster'", "settings-check", "ValueError: This machine has no device"),
    ],
)
def test_a_wrong_setting_stops_early_with_one_sentence(kernel, setting, cell, sentence):
    for name, source in sources().items():
        reply, text = kernel(source)
        if name == "parameters":
            kernel(setting)
        if reply["status"] == "error":
            break
    assert name == cell, f"stopped in cell {name}: {text}"
    assert sentence in text
