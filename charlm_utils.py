"""Names to tensors and back: data sets for a character-level language model, and sampling.

The helper of CharLM_MLP.ipynb. It knows no model: whatever maps contexts to logits can be sampled.
The token '.', id 0, stands before a name, as often as a context needs it, and once after it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

BOUNDARY = "."
HEADINGS = {"name", "names", "first name", "firstname", "given name"}
HEADINGS |= {"vorname", "prénom", "nombre"}  # not a name where it stands in the first line
_SAME = dict.fromkeys(map(ord, "’‘‛ʼʻ＇`´′"), "'") | dict.fromkeys(map(ord, "‐‑–—−－﹣"), "-")


def normalize_name(text: str, *, dotless: bool = False) -> str:
    """Fold `text` to the one way in which a name is written here; '' stays ''.

    Lower case (İ is i; with `dotless` I is ı, as in Turkish), Unicode's form NFKC, one ' and one -
    for all that look like them, single spaces. A name holds letters, their marks, ' - ׳ ״, and
    between letters space · ・ ־ and joiners. ValueError names the first character that is none.
    """
    name = unicodedata.normalize("NFKC", text.translate(_SAME)).replace("İ", "i")
    name = unicodedata.normalize("NFKC", (name.replace("I", "ı") if dotless else name).lower())
    name = re.sub(" +", " ", name.translate(_SAME).strip())
    for place, c in enumerate(name):
        inside = 0 < place and (place < len(name) - 1 or c == "\u200d")  # Malayalam may end so
        allowed = "'-׳״ ·・־\u200c\u200d" if inside else "'-׳״"
        if unicodedata.category(c)[0] not in "LM" and c not in allowed:
            seen = c.isprintable()
            shown = repr(c) if seen else f"U+{ord(c):04X} ({unicodedata.name(c, 'a control')})"
            raise ValueError(f"{shown} in {name!r:.40} cannot be part of a name")
    if not name or any(unicodedata.category(c)[0] == "L" for c in name):
        return name
    raise ValueError(f"{name!r:.40} has no letter in it")


def load_names(path: str | Path, *, unique: bool = True) -> list[str]:
    """Read one name a line, folded by `normalize_name`, in the order of the file.

    The file is UTF-8, with or without BOM; lines end in LF, CRLF or CR. Blank lines, quotes around
    a name and a heading in the first line are left out. If ı or İ occurs in the file, I is ı.
    `unique=True` keeps only the first of equal names. Raises FileNotFoundError, and ValueError for
    bytes that are not UTF-8, lines that are no name and a file without names.
    """
    what = "give the path of a text file with one name a line."
    if not (path := Path(path)).is_file():
        raise FileNotFoundError(f"No file of names at '{path}': put it there, or {what}")
    raw = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"{path}, line {line}: bytes that are not UTF-8; save the file as UTF-8."
        raise ValueError(what) from None
    dotless = "ı" in text or "İ" in unicodedata.normalize("NFC", text)
    lines, names, faults = text.split("\n"), [], []
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.strip().lower() in HEADINGS:
            continue
        try:
            names.append(normalize_name(line.strip().strip('"'), dotless=dotless))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = f" (and {len(faults) - 1:,} more such lines)" if len(faults) > 1 else ""
        raise ValueError(f"{path}, {faults[0]}{more}: {_advice(lines)}")
    if not (names := list(filter(None, names))):
        raise ValueError(f"{path} holds no names: {what}")
    return list(dict.fromkeys(names)) if unique else names


def _advice(lines: Sequence[str]) -> str:
    """What to do with a file of which some lines are no name."""
    filled = [line for line in lines if line.strip()][:100]
    for mark in "\t;,|":
        columns = list(zip(*(line.split(mark) for line in filled)))  # as many as the shortest has
        if len(columns) > 1 and len(filled) == 1 and not re.search(r"\d", filled[0]):
            return "the names seem to stand on one line: give one name a line."
        if len(columns) > 1:
            texts = ["".join(column[1:] or column) for column in columns]
            good = [not re.search(r"\d", text) and len(text) > 1.5 * len(filled) for text in texts]
            place = f"column {good.index(True) + 1} holds" if any(good) else "one column may hold"
            parted = "tabs" if mark == "\t" else repr(mark)
            return f"this is a table, its columns parted by {parted}; {place} the names: keep it."
    return "a line holds one name, of letters: mend or delete it."


def split_names(
    names: Sequence[str], fractions: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Shuffle `names` with `seed` and cut the list into a training, a dev and a test part.

    Raises ValueError for fractions that are not positive, do not sum to 1 or leave a part empty.
    """
    cuts = tuple(fractions)
    if len(cuts) != 3 or not all(f > 0 for f in cuts) or not math.isclose(sum(cuts), 1):
        raise ValueError(f"fractions must be three positive numbers with sum 1, got {cuts}.")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    first, second = round(cuts[0] * len(names)), round((cuts[0] + cuts[1]) * len(names))
    if not 0 < first < second < len(names):
        what = f"{len(names)} names cut by {cuts} leave a part empty"
        raise ValueError(f"{what}: give more names or other fractions.")
    parts = order[:first], order[first:second], order[second:]
    return tuple([names[i] for i in part] for part in parts)


@dataclass(frozen=True)
class Vocabulary:
    """The characters a model knows, '.' first: itos[id] is a character, stoi[character] its id."""

    itos: tuple[str, ...]
    stoi: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        characters = list(self.itos)
        once = len(set(characters)) == len(characters) and all(len(c) == 1 for c in characters)
        if characters[:1] != [BOUNDARY] or not once:
            raise ValueError(f"Give '.' and then different characters, not {characters}.")
        object.__setattr__(self, "stoi", {c: i for i, c in enumerate(characters)})

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Vocabulary:
        """'.' and the sorted characters of `names`; ValueError for no characters, or a '.'."""
        characters = set().union(*names)
        if not characters:
            raise ValueError("A vocabulary needs at least one name with a character in it.")
        if BOUNDARY in characters:
            raise ValueError("'.' marks the ends of a name: remove it from inside the names.")
        return cls((BOUNDARY, *sorted(characters)))

    def __len__(self) -> int:
        return len(self.itos)

    def encode(self, text: str) -> list[int]:
        """The ids of the characters of `text`; ValueError for a character it does not know."""
        if unknown := [c for c in text if c not in self.stoi]:
            what = f"not in the vocabulary {''.join(self.itos)!r}: use only its characters."
            raise ValueError(f"{unknown[0]!r} in {text!r} is {what}")
        return [self.stoi[c] for c in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of `ids` (ints or a 1-d tensor); ValueError for an id out of range."""
        ids = [int(i) for i in ids]
        if outside := [i for i in ids if not 0 <= i < len(self)]:
            raise ValueError(f"ids go from 0 to {len(self) - 1}, got {outside[0]}.")
        return "".join(self.itos[i] for i in ids)


def build_dataset(
    names: Sequence[str], vocab: Vocabulary, context_size: int
) -> tuple[Tensor, Tensor]:
    """Each character of each name, and its end, as a target with the tokens before it.

    Returns X (N, context_size) int64 and Y (N,) int64, N = sum(len(name) + 1 for name in names);
    rows follow the names in order. Positions before a name's first character hold '.', id 0.
    Raises ValueError for context_size < 1, a '.' in a name and a character that is not in `vocab`.
    """
    _check_whole("context_size", context_size, 1)
    # One long string, every name closed by '.', and one table look-up: no Python per character.
    text = BOUNDARY.join([*names, ""])
    Y = _lookup(text, vocab)
    if text.count(BOUNDARY) != len(names) or (Y < 0).any():
        for name in names:  # something is wrong; say where
            vocab.encode(name)
            if BOUNDARY in name:
                raise ValueError(f"'.' marks the ends of a name: remove it from inside {name!r}.")
    before = torch.cat([Y.new_zeros(context_size), Y])
    X = before.unfold(0, context_size, 1)[: len(Y)].clone()  # the tokens before Y, across names
    for j in reversed(range(context_size - 1)):
        X[:, j] *= X[:, j + 1] != 0  # left of a '.' lies another name: '.' there, too
    return X, Y


def sample_names(
    next_logits: Callable[[Tensor], Tensor],
    vocab: Vocabulary,
    context_size: int,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    prefix: str = "",
    max_length: int = 30,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Draw `count` names that begin with `prefix`, all at once, one batched forward a character.

    `next_logits` maps contexts (B, context_size) int64 to logits (B, len(vocab)); B falls as names
    end. Characters are drawn from softmax(logits / temperature), among the `top_k` largest logits
    if given; temperature 0 takes the likeliest. A name ends with '.' or at `max_length`, prefix
    included. All runs on the generator's device. Raises ValueError for arguments out of range.
    """
    _check_whole("context_size", context_size, 1)
    _check_whole("count", count, 0)
    _check_whole("max_length (prefix included)", max_length, max(1, len(prefix)))
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number of at least 0, got {temperature}.")
    if top_k is not None:
        _check_whole("top_k", top_k, 1, len(vocab))
    if BOUNDARY in prefix:
        raise ValueError(f"A prefix holds characters of a name: remove the '.' from {prefix!r}.")
    device = generator.device if generator is not None else torch.device("cpu")
    start = torch.tensor([0] * context_size + vocab.encode(prefix), device=device)
    # Row i of tokens is the whole of name i: padding, prefix, what is drawn; 0 beyond its end.
    tokens = torch.zeros(count, context_size + max_length + 1, dtype=torch.int64, device=device)
    tokens[:, : len(start)] = start
    active = torch.arange(count, device=device)  # rows that have not ended
    with torch.no_grad():
        for t in range(len(start), context_size + max_length):
            if len(active) == 0:
                break
            logits = next_logits(tokens[active, t - context_size : t])
            if logits.shape != (len(active), len(vocab)):
                got = f"shape {(len(active), len(vocab))}, got {tuple(logits.shape)}"
                raise ValueError(f"next_logits must return logits of {got}.")
            drawn = _draw(logits.to(device), temperature, top_k, generator)
            tokens[active, t] = drawn
            active = active[drawn != 0]
    codes = torch.tensor(list(map(ord, vocab.itos)), dtype=torch.int32, device="cpu")
    text = codes[tokens[:, context_size:].cpu()].numpy().tobytes().decode("utf-32-le")
    starts = range(0, len(text), max_length + 1)  # one long string is far quicker than many ids
    return [text[i : i + max_length + 1].partition(BOUNDARY)[0] for i in starts]


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator) -> Tensor:
    """One id a row, (B,), from logits (B, V)."""
    logits = logits.float()
    best = logits.amax(1, keepdim=True)
    if not best.isfinite().all():  # amax hands on NaN and +inf, and is -inf only where all are
        raise ValueError("next_logits returned NaN or infinite logits: look at the model's loss.")
    if temperature == 0:
        return logits.argmax(1)
    if top_k is not None:
        kept = logits.topk(top_k, dim=1)  # of equal logits, exactly top_k stay
        logits = torch.full_like(logits, -math.inf).scatter(1, kept.indices, kept.values)
    # The first id where the cumulative distribution exceeds a uniform number, so never one of
    # probability 0. float32 cannot hold a more extreme temperature.
    scaled = (logits - best) / min(max(temperature, 1e-30), 1e30)
    cumulative = scaled.exp().cumsum(1)  # (B, V), its last column is the sum
    u = torch.rand(len(logits), 1, device=logits.device, generator=generator)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]


def _lookup(text: str, vocab: Vocabulary) -> Tensor:
    """The ids of `text`, (len(text),) int64, -1 for a character that is not in `vocab`."""
    known, codes = (
        torch.frombuffer(bytearray(part.encode("utf-32-le", "surrogatepass")), dtype=torch.int32)
        for part in ("".join(vocab.itos), text + BOUNDARY)  # no buffer may be empty
    )
    table = torch.full((int(known.max()) + 2,), -1)  # the last entry: beyond the highest known
    table[known] = torch.arange(len(vocab))
    return table.index_select(0, codes[:-1].clamp(max=len(table) - 1))


def _check_whole(name: str, value: int, low: int, high: int | None = None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be a whole number {span}, got {value!r}.")
