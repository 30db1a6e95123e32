"""Names to tensors and back, for a character-level language model; '.', id 0, ends a name."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

BOUNDARY = "."
HEADINGS = "name names firstname vorname prénom nombre".split() + ["first name", "given name"]
_SAME = dict.fromkeys(map(ord, "’‘‛ʼʻ＇`´′"), "'") | dict.fromkeys(map(ord, "‐‑–—−－﹣"), "-")


def normalize_name(text: str, *, dotless: bool = False) -> str:
    """Fold `text` to the one way in which a name is written here; '' stays ''.

    Lower case (İ is i; with `dotless` I is ı, as in Turkish), NFKC, one ' and one - for all that
    look so, single spaces. A name holds letters, their marks, ' - ׳ ״, and between letters space
    · ・ ־ and joiners, left out at its ends. ValueError names the first character that is none.
    """
    name = unicodedata.normalize("NFKC", text.translate(_SAME)).replace("İ", "i")
    name = unicodedata.normalize("NFKC", (name.replace("I", "ı") if dotless else name).lower())
    name = re.sub(" +", " ", name.translate(_SAME)).strip(" \t\r\n·・־\u200c")  # U+200D may end one
    for c in name:
        if unicodedata.category(c)[0] not in "LM" and c not in "'-׳״ ·・־\u200c\u200d":
            shown = repr(c) if c.isprintable() else unicodedata.name(c, repr(c))
            raise ValueError(f"{shown} in {name!r:.40} cannot be part of a name")
    if name and not any(unicodedata.category(c)[0] == "L" for c in name):
        raise ValueError(f"{name!r:.40} has no letter in it")
    return name


def load_names(path: str | Path, *, unique: bool = True) -> list[str]:
    """Read one name a line of a UTF-8 file, folded by `normalize_name`, in the order of the file.

    Blank lines, bullets, quotes and a heading in the first line (it says so) are left out; I is ı
    in a file with ı or İ; `unique` keeps the first of equal names. ValueError for lines that are
    no name, or none.
    """
    what = "give the path of a text file with one name a line."
    if not (path := Path(path)).is_file():
        raise FileNotFoundError(f"No file of names at '{path}': put it there, or {what}")
    text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig", errors="replace"))
    dotless = "ı" in text or "İ" in text
    lines = [line.strip().removeprefix("- ").strip('"“”„«»') for line in text.split("\n")]
    if lines[0].lower() in HEADINGS:
        print(f"{path}: the first line, {lines[0]!r}, is a heading and is left out.")
        lines[0] = ""
    names, faults = [], []
    for number, line in enumerate(lines, start=1):
        try:
            names.append(normalize_name(line, dotless=dotless))
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
    if any("�" in line for line in lines):
        return "'�' stands for bytes that are not UTF-8; save the file as UTF-8."
    filled = [line.strip("|") for line in lines if line][:100]
    for mark, word in {"\t": "tabs", ";": "';'", ",": "','", "|": "'|'"}.items():
        rows = [line.split(mark) for line in filled if mark in line]
        if rows and (len(filled) == 1 or filled[0].startswith(("[", "{"))):
            return "the names seem to stand on one line or in brackets: give one name a line."
        if len(rows) > len(filled) / 2:
            letters = [re.sub(r"[\W\d_]", "", "".join({*cells[1:]})) for cells in zip(*rows)]
            place = letters.index(max(letters, key=len)) + 1  # most letters, each text once
            what = f"this is a table, its columns parted by {word}"
            return f"{what}; column {place} holds the names: keep it."
    return "a line holds one name, without numbers, brackets or comments: mend or delete it."


def split_names(
    names: Sequence[str], fractions: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Shuffle `names` with `seed`, cut them in three; ValueError for bad fractions, empty parts."""
    cuts = tuple(fractions)
    if len(cuts) != 3 or not (min(cuts) > 0 and abs(sum(cuts) - 1) < 1e-9):
        raise ValueError(f"fractions must be three positive numbers with sum 1, got {cuts}.")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    first, second = round(cuts[0] * len(names)), round((cuts[0] + cuts[1]) * len(names))
    if not 0 < first < second < len(names):
        what = f"{len(names)} names cut by {cuts} leave a part empty"
        raise ValueError(f"{what}: give more names or other fractions.")
    mixed = [names[i] for i in order]
    return mixed[:first], mixed[first:second], mixed[second:]


@dataclass(frozen=True)
class Vocabulary:
    """The characters a model knows, '.' first: itos[id] is a character, stoi[character] its id."""

    itos: tuple[str, ...]
    stoi: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {c: i for i, c in enumerate("".join(self.itos))}
        if len(ids) < 2 or [*ids] != [*self.itos] or ids.get(BOUNDARY) != 0:
            raise ValueError(f"Give '.' and then different characters, not {[*self.itos]}.")
        object.__setattr__(self, "stoi", ids)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "Vocabulary":
        """'.' and the sorted characters of `names`; ValueError for no characters, or a '.'."""
        return cls((BOUNDARY, *sorted(set().union(*names))))

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

    Returns X (N, context_size) int64 and Y (N,) int64, N = sum(len(name) + 1 for name in names), in
    the order of names. Positions before a name's first character hold '.', id 0. ValueError for
    context_size < 1, a '.' in a name and a character that is not in `vocab`.
    """
    _check_whole("context_size", context_size, 1)
    # One long string, every name closed by '.', and one table look-up: no Python per character.
    text = BOUNDARY * context_size + BOUNDARY.join([*names, ""])
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    table = torch.full((max(map(ord, vocab.itos)) + 2,), -1)  # the last entry: beyond the highest
    table[[ord(c) for c in vocab.itos]] = torch.arange(len(vocab))
    tokens = table.index_select(0, codes.clamp(max=len(table) - 1))
    if text.count(BOUNDARY) != len(names) + context_size or (tokens < 0).any():
        for name in names:  # something is wrong; say where
            vocab.encode(name)
            if BOUNDARY in name:
                raise ValueError(f"'.' marks the ends of a name: remove it from inside {name!r}.")
    Y = tokens[context_size:]
    X = tokens.unfold(0, context_size, 1)[:-1].clone()  # the tokens before Y, across names
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
    end. Characters come from softmax(logits / temperature), of the `top_k` largest logits if given;
    temperature 0 takes the likeliest. A name ends with '.' or at `max_length`, prefix included.
    All runs on the generator's device. ValueError for arguments out of range.
    """
    _check_whole("context_size", context_size, 1)
    _check_whole("count", count, 0)
    _check_whole("max_length (prefix included)", max_length, max(1, len(prefix)))
    _check_whole("top_k", len(vocab) if top_k is None else top_k, 1, len(vocab))
    if not 0 <= temperature < torch.inf:
        raise ValueError(f"temperature must be a finite number of at least 0, got {temperature}.")
    if BOUNDARY in prefix:
        raise ValueError(f"A prefix holds characters of a name: remove the '.' from {prefix!r}.")
    device = generator.device if generator is not None else torch.device("cpu")
    start = torch.tensor([0] * context_size + vocab.encode(prefix), device=device)
    tokens = torch.zeros(count, context_size + max_length, dtype=torch.int64, device=device)
    tokens[:, : len(start)] = start  # padding and prefix; then what is drawn, and 0 beyond it
    active = torch.arange(count, device=device)  # rows that have not ended
    with torch.no_grad():
        for t in range(len(start), context_size + max_length):
            if len(active) == 0:
                break
            logits = next_logits(tokens[active, t - context_size : t])
            if logits.shape != (len(active), len(vocab)):
                got = f"shape {(len(active), len(vocab))}, got {tuple(logits.shape)}"
                raise ValueError(f"next_logits must return logits of {got}.")
            drawn = _draw(logits.to(device, torch.float32), temperature, top_k, generator)
            tokens[active, t] = drawn
            active = active[drawn != 0]
    codes = torch.tensor([0, *map(ord, vocab.itos[1:])], dtype=torch.int32, device="cpu")
    rows = codes[tokens[:, context_size:].cpu()].numpy()  # a string of numpy ends where 0s follow
    return rows.view(f"<U{max_length}").ravel().tolist()


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator) -> Tensor:
    """One id a row, (B,), from logits (B, V)."""
    best = logits.amax(1, keepdim=True)
    if not best.isfinite().all():  # amax hands on NaN and +inf, and is -inf only where all are
        raise ValueError("next_logits returned NaN or infinite logits: look at the model's loss.")
    if temperature == 0:
        return logits.argmax(1)
    if top_k is not None:
        kept = logits.topk(top_k, dim=1)  # of equal logits, exactly top_k stay
        logits = torch.full_like(logits, -torch.inf).scatter(1, kept.indices, kept.values)
    scaled = (logits - best) / min(max(temperature, 1e-30), 1e30)  # what float32 can hold
    cumulative = scaled.exp().cumsum(1)  # drawn is the first beyond a uniform number: never p = 0
    u = torch.rand(len(logits), 1, device=logits.device, generator=generator)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]


def _check_whole(name: str, value: int, low: int, high: int | None = None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be a whole number {span}, got {value!r}.")
