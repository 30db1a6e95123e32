"""Execute the notebook from top to bottom, store its outputs, and bring README up to date.

python .tools/run_notebook.py            a full run, whatever CHARLM_FAST says
python .tools/run_notebook.py --check    no run: fail if notebook, README or pictures are stale
python .tools/run_notebook.py --readme   no run: update README from the stored outputs

A code cell tagged `readme:NAME` feeds README: its last picture becomes .github/NAME.png; if it
shows none, its last Markdown goes between README's lines `<!-- NAME -->` and `<!-- /NAME -->`.
A code cell tagged `page:NAME` writes the file NAME, which moves into .github/, and prints its
SHA-256. What a run took stands in README (`<!-- seconds -->`).
"""

import base64
import contextlib
import copy
import hashlib
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "CharLM_MLP.ipynb"
# Outputs depend on these, too.
INPUTS = ("charlm_utils.py", "names.txt", "names_all_years.txt")
INPUTS += ("tests/exercises.py", "tests/findings.py", ".tools/studio.html")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_LINE = "Run this cell, and its sliders and buttons appear here."


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def digest(nb: NotebookNode, root: Path = ROOT) -> str:
    """Return the SHA-256 of what outputs come from: code cells in order, helper and names."""
    parts = [cell.source.encode() for cell in code_cells(nb)]
    parts += [(root / name).read_bytes() for name in INPUTS]
    total = hashlib.sha256()
    for part in parts:  # each hashed on its own, so that text cannot wander between them unseen
        total.update(hashlib.sha256(part.replace(b"\r\n", b"\n")).digest())
    return total.hexdigest()


def clean(nb: NotebookNode) -> NotebookNode:
    """Return a copy without what differs from run to run or cannot be drawn without a kernel."""
    nb = copy.deepcopy(nb)
    nb.metadata.pop("widgets", None)
    nb.metadata.get("language_info", {}).pop("version", None)
    for cell in code_cells(nb):
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if WIDGET_VIEW in output.get("data", {}):
                output.data = NotebookNode({"text/plain": WIDGET_LINE})
    return nb


def troubles(nb: NotebookNode) -> list[str]:
    """Name each code cell that has raised an error or written to stderr."""
    found = []
    for number, cell in enumerate(code_cells(nb), start=1):
        where = f"code cell {number} ({next(iter(cell.source.strip().splitlines()), '')!r})"
        for output in cell.outputs:
            if output.output_type == "error":
                found.append("\n".join([f"{where} raised {output.ename}:", *output.traceback]))
            elif output.get("name") == "stderr":
                found.append(f"{where} wrote to stderr: {output.text.strip()}")
    return found


def about(seconds: float) -> str:
    """Return a duration in words, no finer than it repeats on a machine like the last one."""
    if seconds < 90:
        step = 1 if seconds < 10 else 5
        rounded = max(1, step * round(seconds / step))
        return f"{rounded} second{'s' * (rounded > 1)}"
    return f"{round(seconds / 30) / 2:g} minutes"


def time_block(nb: NotebookNode) -> dict[str, str]:
    """Return what README says of the stored run's time, {} if there was none."""
    known = nb.metadata.get("charlm", {})
    if not (seconds := known.get("seconds")):
        return {}
    early = sum(taken for title, taken in seconds.items() if re.match("[01] ", title))
    text = f"The stored run took {about(sum(seconds.values()))} on {known['cores']} processor cores"
    return {"seconds": f"{text}; its first names came within {about(early)}."}


def pages(nb: NotebookNode) -> dict[str, str]:
    """Return the pages that the notebook has written: {name: SHA-256 as it was printed}."""
    found = {}
    for cell in code_cells(nb):
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("page:"):
                text = "".join(output.get("text", "") for output in cell.outputs)
                shas = re.findall(r"\b[0-9a-f]{64}\b", text)
                if len(shas) != 1:
                    raise ValueError(f"The cell tagged {tag!r} must print its page's SHA-256.")
                found[tag.removeprefix("page:")] = shas[0]
    return found


def fill(readme: str, blocks: dict[str, str]) -> str:
    """Return README with each block between its marker lines."""
    for name in set(re.findall(r"(?m)^<!-- /([\w-]+) -->$", readme)) - blocks.keys():
        raise ValueError(
            f"README has a block {name!r}, but no cell tagged 'readme:{name}' fills it."
        )
    for name, text in blocks.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        parts = re.split(rf"(?m)^({first}|{last})$", readme)
        if parts[1::2] != [first, last]:
            raise ValueError(f"README needs a line {first!r} and, below it, {last!r}, once each.")
        readme = f"{parts[0]}{first}\n\n{text}\n\n{last}{parts[4]}"
    return readme


def readme_files(nb: NotebookNode, root: Path = ROOT) -> dict[str, bytes]:
    """Return README and its pictures as they should be, by path below `root`."""
    pictures, blocks = {}, {}
    for cell in code_cells(nb):
        shown = [output.get("data", {}) for output in cell.outputs]
        for tag in (tag for tag in cell.metadata.get("tags", []) if tag.startswith("readme:")):
            name = tag.removeprefix("readme:")
            if not re.fullmatch(r"[\w-]+", name) or name in {*pictures, *blocks}:
                raise ValueError(f"Tag {tag!r}: one cell a name, of letters, digits, _ and -.")
            if pngs := [data["image/png"] for data in shown if "image/png" in data]:
                pictures[name] = base64.b64decode(pngs[-1])
            elif texts := [data["text/markdown"] for data in shown if "text/markdown" in data]:
                blocks[name] = texts[-1].strip()
            else:
                raise ValueError(f"The cell tagged {tag!r} shows neither a picture nor Markdown.")
    readme = fill((root / "README.md").read_text(encoding="utf-8"), blocks | time_block(nb))
    return {"README.md": readme.encode()} | {f".github/{n}.png": p for n, p in pictures.items()}


def check(nb: NotebookNode, root: Path = ROOT) -> list[str]:
    """Return a sentence for each thing in notebook, README and pictures that is stale."""
    found = troubles(nb)
    if nb.metadata.get("charlm", {}).get("sources") != digest(nb, root):
        found.append("code cells, helper or names have changed since the outputs were stored.")
    counts = [cell.execution_count for cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        found.append("the execution counts are not 1, 2, 3, ...: not one run from top to bottom.")
    if clean(nb) != nb:
        found.append("another program saved the notebook: the outputs may be those of another run.")
    try:
        for name, sha in pages(nb).items():
            page = root / ".github" / name
            if not page.is_file() or hashlib.sha256(page.read_bytes()).hexdigest() != sha:
                found.append(f".github/{name} is not the page of the stored run: run once more.")
        for name, wanted in readme_files(nb, root).items():
            if not (root / name).is_file() or (root / name).read_bytes() != wanted:
                found.append(f"{name} differs from the stored outputs: run with --readme.")
    except ValueError as error:
        found.append(str(error))
    return found


class Progress:
    """Says which section runs and, from the seconds of an earlier run, how long the rest takes."""

    def __init__(self, nb: NotebookNode, before: dict[str, float]):
        self.before, self.seconds, self.now, self.titles = before, {}, "", []
        for cell in nb.cells:  # the title of the section that each cell stands in
            text = cell.source if cell.cell_type == "markdown" else ""
            found = re.findall(r"(?m)^##? (.+)$", text)
            self.titles.append(found[-1] if found else self.titles[-1] if self.titles else "")
        self.start = time.perf_counter()

    def enter(self, index: int) -> None:
        if (title := self.titles[index]) != self.now:
            self.close()
            self.now, self.start = title, time.perf_counter()
            rest = list(dict.fromkeys(self.titles))
            known = [self.before.get(t, 0) for t in rest[rest.index(title) :]]
            done = sum(self.seconds.values()), sum(self.before.get(t, 0) for t in self.seconds)
            speed = done[0] / done[1] if done[1] > 20 else 1  # of this machine, once it shows
            left = f"  (about {sum(known) * speed / 60:.1f} minutes left)" if sum(known) else ""
            print(f"{title}{left}", flush=True)

    def close(self) -> dict[str, float]:
        if self.now:
            self.seconds[self.now] = round(time.perf_counter() - self.start, 1)
        return self.seconds


def execute(nb: NotebookNode, root: Path = ROOT) -> NotebookNode:
    """Return the notebook as one full run in a fresh kernel leaves it, ready to be stored."""
    os.environ.pop("CHARLM_FAST", None)
    nb = copy.deepcopy(nb)
    before = nb.metadata.get("charlm", {}).get("seconds", {})
    nb.metadata["charlm"] = {"sources": digest(nb, root)}  # before the run: of what is executed
    for cell in code_cells(nb):
        cell.update(outputs=[], execution_count=None)
    options = {"timeout": None, "coalesce_streams": True, "record_timing": False}
    if "transport_encryption" in KernelManager.class_trait_names():
        # Encrypt where the kernel can; without this line newer kernels warn that nobody does.
        options["config"] = Config(KernelManager={"transport_encryption": "auto"})
    progress = Progress(nb, before)
    options["on_cell_execute"] = lambda cell, cell_index: progress.enter(cell_index)
    client = NotebookClient(nb, resources={"metadata": {"path": str(root)}}, **options)
    with contextlib.suppress(CellExecutionError):  # the cell's outputs hold it
        client.execute()
    nb.metadata["charlm"] |= {"seconds": progress.close(), "cores": os.cpu_count()}
    if found := troubles(nb):
        raise ValueError("nothing stored: " + "\n".join(found))
    nbformat.validate(nb := clean(nb))
    return nb


def peak_memory() -> str:
    """Return the most memory that any child process so far, here the kernel, has held."""
    if sys.platform == "win32":
        return "unknown"
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return f"{peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MiB"


def main() -> None:
    path, start, mode = ROOT / NOTEBOOK, time.perf_counter(), sys.argv[1:]
    if mode not in ([], ["--check"], ["--readme"]):
        sys.exit(__doc__)
    try:
        before = path.read_bytes()
        nb = nbformat.reads(before.decode(), as_version=4)
        if mode == ["--check"]:
            if found := check(nb):
                raise ValueError("\n".join(found))
            return print(f"{NOTEBOOK}, README.md and its pictures belong together.")
        if not mode:
            nb = execute(nb)
            if path.read_bytes() != before:
                raise ValueError("nothing stored: the notebook was edited during the run.")
            print(f"{time.perf_counter() - start:.0f} s, peak memory of the kernel {peak_memory()}")
            for name in pages(nb):
                (ROOT / ".github").mkdir(exist_ok=True)
                os.replace(ROOT / name, ROOT / ".github" / name)
        changed = []

        def store(name: str, data: bytes) -> None:
            (ROOT / name).parent.mkdir(exist_ok=True)
            if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != data:
                (ROOT / name).write_bytes(data)
                changed.append(name)

        store(NOTEBOOK, (nbformat.writes(nb) + "\n").encode())  # first: it took minutes
        for name, data in readme_files(nb).items():
            store(name, data)
        print("written:", ", ".join(changed) or "nothing, all was as it is")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{NOTEBOOK}: {error}")
    except (DeadKernelError, KeyboardInterrupt) as error:
        why = "the kernel died (too little memory?)" if isinstance(error, DeadKernelError) else "^C"
        sys.exit(f"{NOTEBOOK}: nothing stored: {why}")


if __name__ == "__main__":
    main()
