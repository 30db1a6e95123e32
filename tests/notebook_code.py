"""The notebook's own definitions, from its cells, for tests and benchmark: never a copy."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
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


def assigned_names(statement: ast.Assign | ast.AugAssign) -> list[str]:
    """The names that an assignment sets; "" for what is no plain name."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    names = []
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        names += [part.id if isinstance(part, ast.Name) else "" for part in parts]
    return names


def is_definition(statement: ast.stmt) -> bool:
    """Whether a statement only defines: an import, a function, a class, a CONSTANT.

    A `try` or an `if` counts where it begins with an import. X, C, W1, ... are no constants.
    """
    if isinstance(statement, ast.Assign | ast.AugAssign):
        return all(len(name) > 2 and name.isupper() for name in assigned_names(statement))
    if isinstance(statement, ast.Try | ast.If):
        return isinstance(statement.body[0], ast.Import | ast.ImportFrom)
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    return isinstance(statement, kinds)


def computed_values() -> dict[str, Any]:
    """What the notebook computes from its lists, here from a few names and 26 letters."""
    vocab = Vocabulary.from_names(["abcdefghijklmnopqrstuvwxyz"])
    return {
        "vocab": vocab,
        "V": len(vocab),
        "vowels": [vocab.stoi[letter] for letter in "aeiouy"],
        "names": (NAMES + OTHERS) * 3,
        "train_names": NAMES,
        "dev_names": OTHERS,
        "all_years": OTHERS,
        "known": set(NAMES),
        "real": set(OTHERS),
        "best_alpha": 0.1,
        "leaderboard": {},
    }


def definitions(**overrides: Any) -> SimpleNamespace:
    """Execute the definitions of all cells, in order; `overrides` replace values.

    The namespace itself is `definitions().globals`: names set there are seen by the functions.
    It is a module's, so that forked processes can be told which function to run.
    """
    module = ModuleType(f"notebook_{len(sys.modules)}")
    sys.modules[module.__name__] = module
    space = vars(module)
    space.update(computed_values() | overrides)
    for cell in code_cells():
        for statement in filter(is_definition, ast.parse(cell.source).body):
            exec(compile(ast.Module([statement], []), f"<cell {cell['id']}>", "exec"), space)
            space.update(overrides)  # what the test has set stays
    return SimpleNamespace(**space, globals=space)
