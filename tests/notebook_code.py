"""The notebook's own definitions, taken from its cells, for tests and benchmark. Never a copy."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat

from charlm_utils import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "CharLM_MLP.ipynb"


def read_notebook() -> nbformat.NotebookNode:
    """The notebook as it is stored."""
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells() -> list[nbformat.NotebookNode]:
    """The code cells of the stored notebook, in order."""
    return [cell for cell in read_notebook().cells if cell.cell_type == "code"]


def is_definition(statement: ast.stmt) -> bool:
    """Whether a statement only defines: an import, a function, a class or a NAMED_CONSTANT."""
    if isinstance(statement, ast.Assign):
        names = [t.id for t in statement.targets if isinstance(t, ast.Name)]
        return len(names) == len(statement.targets) and all(
            len(n) > 2 and n.isupper() for n in names
        )
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    return isinstance(statement, kinds)


def definitions(**overrides: Any) -> SimpleNamespace:
    """Execute the definitions of all cells, in order; `overrides` replace the notebook's constants.

    What the notebook computes from names.txt (vocab, V) is made from the 26 letters instead.
    """
    vocab = Vocabulary.from_names(["abcdefghijklmnopqrstuvwxyz"])
    namespace = {"vocab": vocab, "V": len(vocab), **overrides}
    for cell in code_cells():
        for statement in ast.parse(cell.source).body:
            if is_definition(statement):
                if isinstance(statement, ast.Assign) and statement.targets[0].id in overrides:
                    continue
                code = compile(ast.Module([statement], []), f"<cell {cell['id']}>", "exec")
                exec(code, namespace)
    return SimpleNamespace(**namespace)
