"""The notebook's own definitions, from its cells, for tests and benchmark: never a copy."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
from small import NAMES, OTHERS

from charlm_utils import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = Path(os.environ.get("CHARLM_NOTEBOOK", ROOT / "CharLM_MLP.ipynb"))


def read_notebook() -> nbformat.NotebookNode:
    """The notebook as it is stored."""
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells() -> list[nbformat.NotebookNode]:
    """The code cells of the stored notebook, in order."""
    return [cell for cell in read_notebook().cells if cell.cell_type == "code"]


def is_definition(statement: ast.stmt) -> bool:
    """Whether a statement only defines: an import, a function, a class, a CONSTANT."""
    if isinstance(statement, ast.Assign | ast.AugAssign):
        one = isinstance(statement, ast.AugAssign)
        targets = [statement.target] if one else statement.targets
        targets = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
        targets = [t.value if isinstance(t, ast.Subscript) else t for t in targets]
        names = [t.id if isinstance(t, ast.Name) else "" for t in targets]
        return all(len(name) > 2 and name.isupper() for name in names)
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    return isinstance(statement, kinds)


def definitions(**overrides: Any) -> SimpleNamespace:
    """Execute the definitions of all cells, in order; `overrides` replace constants.

    What the notebook computes from names.txt is made from a few names and the 26 letters. The
    namespace itself is `vars(result)["globals"]`: names set there are seen by the functions.
    """
    vocab = Vocabulary.from_names(["abcdefghijklmnopqrstuvwxyz"])
    space: dict[str, Any] = {"vocab": vocab, "V": len(vocab), "leaderboard": {}}
    space |= {"train_names": NAMES, "dev_names": OTHERS, "vowels": [1, 5, 9, 15, 21, 25]}
    space |= {"known": set(NAMES), "real": set(OTHERS), "names": (NAMES + OTHERS) * 3}
    space |= {"all_years": OTHERS, "best_alpha": 0.1, **overrides}
    for cell in code_cells():
        for statement in ast.parse(cell.source).body:
            if not is_definition(statement):
                continue
            code = compile(ast.Module([statement], []), f"<cell {cell['id']}>", "exec")
            before = {name: space[name] for name in overrides}
            exec(code, space)
            space.update(before)  # what the test has set stays
    return SimpleNamespace(**space, globals=space)
