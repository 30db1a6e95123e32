"""Execute the notebook from top to bottom, store its outputs, and bring README up to date.

python .tools/run_notebook.py            a full run, whatever CHARLM_FAST says
python .tools/run_notebook.py --check    no run: fail if notebook, README or pictures are stale
python .tools/run_notebook.py --readme   no run: update README from the stored outputs

A code cell tagged `readme:NAME` feeds README: its last picture becomes .github/NAME.png; if it
shows none, its last Markdown goes between the lines `<!-- NAME -->` and `<!-- /NAME -->`, as what
the run took does between those of `seconds`. A code cell tagged `page:NAME` writes the file NAME,
which moves into .github/, and prints its SHA-256.
"""

import base64
import contextlib
import copy
import os
import re
import sys
import time
from hashlib import sha256
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "CharLM_MLP.ipynb"
INPUTS = ["charlm_utils.py", "names.txt", "names_all_years.txt"]  # outputs depend on these, too
INPUTS += ["tests/exercises.py", "tests/findings.py", ".tools/studio.html"]
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_LINE = "Run this cell, and its sliders and buttons appear here."


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tagged(nb: NotebookNode, kind: str) -> list[tuple[str, NotebookNode]]:
    """Return (NAME, cell) for each tag `kind:NAME` of a code cell."""
    pairs = [(tag, cell) for cell in code_cells(nb) for tag in cell.metadata.get("tags", [])]
    return [(tag.removeprefix(kind), cell) for tag, cell in pairs if tag.startswith(kind)]


def digest(nb: NotebookNode) -> str:
    """Return the SHA-256 of what outputs come from: code cells in order and INPUTS."""
    parts = [cell.source.encode() for cell in code_cells(nb)]
    parts += [(ROOT / name).read_bytes() for name in INPUTS]
    # Each is hashed on its own, so that text cannot wander between them unseen.
    hashes = [sha256(part.replace(b"\r\n", b"\n")).digest() for part in parts]
    return sha256(b"".join(hashes)).hexdigest()


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
    if seconds >= 90:
        return f"{round(seconds / 30) / 2:g} minutes"
    step = 1 if seconds < 10 else 5
    rounded = max(1, step * round(seconds / step))
    return f"{rounded} second{'s' * (rounded > 1)}"


def fill(readme: str, blocks: dict[str, str]) -> str:
    """Return README with each block between its marker lines."""
    parts = re.split(r"(?m)^<!-- (/?[\w-]+) -->$", readme)  # text, NAME, old block, /NAME, text ...
    names = parts[1::4]
    if sorted(names) != sorted(blocks) or parts[3::4] != [f"/{name}" for name in names]:
        raise ValueError(f"README has marker lines {parts[1::2]}, but blocks {sorted(blocks)}.")
    parts[2::4] = [f"\n\n{blocks[name]}\n\n" for name in names]
    parts[1::2] = [f"<!-- {mark} -->" for mark in parts[1::2]]
    return "".join(parts)


def readme_files(nb: NotebookNode) -> dict[str, bytes]:
    """Return README and its pictures as they should be, by path from ROOT on."""
    pictures, blocks = {}, {}
    for name, cell in tagged(nb, "readme:"):
        if not re.fullmatch(r"[\w-]+", name) or name in pictures | blocks:
            raise ValueError(f"Tag 'readme:{name}': one cell a name, of letters, digits, _ and -.")
        shown = {}  # by kind, the last of each
        for output in cell.outputs:
            shown |= output.get("data", {})
        if "image/png" in shown:
            pictures[name] = base64.b64decode(shown["image/png"])
        elif "text/markdown" in shown:
            blocks[name] = shown["text/markdown"].strip()
        else:
            raise ValueError(f"Cell tagged 'readme:{name}': neither a picture nor Markdown.")
    known = nb.metadata.get("charlm", {})
    if seconds := known.get("seconds"):
        early = sum(taken for title, taken in seconds.items() if re.match("[01] ", title))
        took = f"took {about(sum(seconds.values()))} on {known['cores']} processor cores"
        blocks["seconds"] = f"The stored run {took}; its first names came within {about(early)}."
    readme = fill((ROOT / "README.md").read_text(encoding="utf-8"), blocks)
    return {"README.md": readme.encode()} | {f".github/{n}.png": p for n, p in pictures.items()}


def check(nb: NotebookNode) -> list[str]:
    """Return a sentence for each thing in notebook, README and pictures that is stale."""
    found = troubles(nb)
    if nb.metadata.get("charlm", {}).get("sources") != digest(nb):
        found.append("code cells, helper or names have changed since the outputs were stored.")
    counts = [cell.execution_count for cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        found.append("the execution counts are not 1, 2, 3, ...: not one run from top to bottom.")
    if clean(nb) != nb:
        found.append("another program saved the notebook: the outputs may be those of another run.")
    for name, cell in tagged(nb, "page:"):
        page = ROOT / ".github" / name
        if not page.is_file() or sha256(page.read_bytes()).hexdigest() not in str(cell.outputs):
            found.append(f".github/{name} is not the page whose SHA-256 the stored run printed.")
    try:
        for name, data in readme_files(nb).items():
            if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != data:
                found.append(f"{name} differs from the stored outputs: run with --readme.")
    except ValueError as error:
        found.append(str(error))
    return found


class Progress:
    """Says which section runs and, from the seconds of an earlier run, how long the rest takes."""

    def __init__(self, nb: NotebookNode, before: dict[str, float]):
        self.before, self.starts, self.titles, title = before, {}, [], ""
        for cell in nb.cells:  # the title of the section that each cell stands in
            if cell.cell_type == "markdown":
                title = [title, *re.findall(r"(?m)^##? (.+)$", cell.source)][-1]
            self.titles.append(title)

    def seconds(self) -> dict[str, float]:
        """Return how long each section has taken so far."""
        ends = [*self.starts.values(), time.perf_counter()][1:]
        taken = [round(end - start, 1) for start, end in zip(self.starts.values(), ends)]
        return dict(zip(self.starts, taken))

    def enter(self, index: int) -> None:
        if (title := self.titles[index]) in self.starts:
            return
        seconds = self.seconds()
        self.starts[title] = time.perf_counter()
        rest = sum(self.before.get(title, 0) for title in set(self.titles[index:]))
        done = sum(self.before.get(title, 0) for title in seconds)
        slower = sum(seconds.values()) / done if done > 20 else 1  # than the earlier run
        left = f"  (about {rest * slower / 60:.1f} minutes left)" if rest else ""
        print(f"{title}{left}", flush=True)


def execute(nb: NotebookNode) -> NotebookNode:
    """Run the notebook once in a fresh kernel, in full; return what is to be stored of it."""
    os.environ.pop("CHARLM_FAST", None)
    progress = Progress(nb, nb.metadata.get("charlm", {}).get("seconds", {}))
    nb.metadata["charlm"] = {"sources": digest(nb)}  # before the run: of what is executed
    client = NotebookClient(nb, coalesce_streams=True, resources={"metadata": {"path": str(ROOT)}})
    client.on_cell_execute = lambda cell, cell_index: progress.enter(cell_index)
    if hasattr(client.create_kernel_manager(), "transport_encryption"):
        client.km.transport_encryption = "auto"  # else newer kernels warn that nobody encrypts
    with contextlib.suppress(CellExecutionError):  # the cell's outputs hold it
        client.execute()
    nb.metadata["charlm"] |= {"seconds": progress.seconds(), "cores": os.cpu_count()}
    if found := troubles(nb):
        raise ValueError("nothing stored: " + "\n".join(found))
    nbformat.validate(nb := clean(nb))
    return nb


def main() -> None:
    path, mode = ROOT / NOTEBOOK, sys.argv[1:]
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
            for name, _ in tagged(nb, "page:"):
                os.replace(ROOT / name, ROOT / ".github" / name)
            path.write_bytes((nbformat.writes(nb) + "\n").encode())  # first: it took minutes
            print(f"{NOTEBOOK} stored, {sum(nb.metadata['charlm']['seconds'].values()):.0f} s")
            if os.name == "posix":
                import resource

                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # macOS: in bytes
                print(f"peak memory: {peak >> (20 if sys.platform == 'darwin' else 10)} MiB")
        for name, data in readme_files(nb).items():
            (ROOT / name).write_bytes(data)
            print("written:", name)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{NOTEBOOK}: {error}")
    except (DeadKernelError, KeyboardInterrupt, AssertionError):  # at ^C nbclient asserts in vain
        sys.exit(f"{NOTEBOOK}: nothing stored: ^C, or the kernel died (too little memory?)")


if __name__ == "__main__":
    main()
