"""Names to tensors and back: data sets for a character-level language model, and sampling.

The helper of CharLM_MLP.ipynb. It knows no model: whatever maps contexts to logits can be sampled.
The token '.' has id 0 and marks both ends of a name: it stands before the first character, as
often as a context needs it, and once after the last.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["BOUNDARY", "Vocabulary", "build_dataset", "load_names", "sample_names", "split_names"]

BOUNDARY = "."


def load_names(path: str | Path, *, unique: bool = True) -> list[str]:
    """Read one name a line, in lower case, in the order of the file.

    The file is UTF-8 (with or without BOM), its lines end in LF or CRLF; blank lines and white
    space at the ends of a line are ignored. `unique=True` keeps only the first of equal names.

    Raises FileNotFoundError if there is no such file, and ValueError for a file without names,
    bytes that are not UTF-8, and a line with anything but letters, hyphens and apostrophes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No file of names at '{path}': put it there, or give the path of a text file with one name a line."
        )
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: bytes that are not UTF-8; save the file as UTF-8.") from None
    names = []
    for number, line in enumerate(text.split("\n"), start=1):
        # NFC: "é" typed as one character or as "e" and an accent is the same letter.
        name = unicodedata.normalize("NFC", line.strip()).lower()
        bad = next((c for c in name if unicodedata.category(c)[0] not in "LM" and c not in "-'’"), None)
        if bad is not None:
            raise ValueError(
                f"{path}, line {number}: {bad!r} in {name!r} cannot be part of a name; a line holds one name "
                "of letters, hyphens and apostrophes: mend or delete the line."
            )
        if name:
            names.append(name)
    if not names:
        raise ValueError(f"{path} holds no names: give a text file with one name a line.")
    return list(dict.fromkeys(names)) if unique else names


def split_names(
    names: Sequence[str], fractions: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Shuffle `names` with `seed` and cut the list into training, dev and test part.

    Every entry lands in exactly one part: if no name repeats, the parts share no name.
    Raises ValueError if `fractions` are not three positive numbers with sum 1, or if a part would be empty.
    """
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or not math.isclose(sum(fractions), 1):
        raise ValueError(f"fractions must be three positive numbers with sum 1, got {tuple(fractions)}.")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    first = round(fractions[0] * len(names))
    second = round((fractions[0] + fractions[1]) * len(names))
    if not 0 < first < second < len(names):
        raise ValueError(
            f"{len(names)} names cut by {tuple(fractions)} leave a part empty: give more names or other fractions."
        )
    shuffled = [names[i] for i in order]
    return shuffled[:first], shuffled[first:second], shuffled[second:]


@dataclass(frozen=True)
class Vocabulary:
    """The characters a model knows, '.' first: `itos[id]` is a character, `stoi[character]` its id."""

    itos: tuple[str, ...]
    stoi: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.itos[:1] != (BOUNDARY,) or len(set(self.itos)) != len(self.itos) or any(len(c) != 1 for c in self.itos):
            raise ValueError("A vocabulary is '.' and then different single characters; use Vocabulary.from_names.")
        object.__setattr__(self, "stoi", {c: i for i, c in enumerate(self.itos)})

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Vocabulary:
        """'.' and the sorted characters of `names`. Raises ValueError for no names, or a '.' in one."""
        characters = set().union(*names)
        if not characters:
            raise ValueError("A vocabulary needs at least one name with a character in it; the list has none.")
        if BOUNDARY in characters:
            raise ValueError("'.' marks the ends of a name and cannot be inside one: remove it from the names.")
        return cls((BOUNDARY, *sorted(characters)))

    def __len__(self) -> int:
        return len(self.itos)

    def encode(self, text: str) -> list[int]:
        """The ids of the characters of `text`. Raises ValueError for a character it does not know."""
        unknown = next((c for c in text if c not in self.stoi), None)
        if unknown is not None:
            raise ValueError(f"{unknown!r} in {text!r} is not in the vocabulary {''.join(self.itos)!r}.")
        return [self.stoi[c] for c in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of `ids` (ints or a 1-d tensor) as one string. Raises ValueError for an id out of range."""
        ids = [int(i) for i in ids]
        if not all(0 <= i < len(self) for i in ids):
            raise ValueError(f"ids go from 0 to {len(self) - 1}, got {ids}.")
        return "".join(self.itos[i] for i in ids)


def build_dataset(names: Sequence[str], vocab: Vocabulary, context_size: int) -> tuple[Tensor, Tensor]:
    """Every character of every name, and the end, as a target with the `context_size` tokens before it.

    Returns X (N, context_size) int64 and Y (N,) int64 with N = sum(len(name) + 1 for name in names);
    rows follow the names in order. Positions before a name's first character hold '.', id 0.
    Raises ValueError for context_size < 1, a '.' in a name and a character that is not in `vocab`.
    """
    _check_count("context_size", context_size, 1)
    lengths = torch.tensor([len(name) + 1 for name in names], dtype=torch.int64)
    # One long string, every name closed by '.', and one table look-up: no Python per character.
    Y = _lookup("".join([name + BOUNDARY for name in names]), vocab)
    if (Y < 0).any() or (Y == 0).sum() != len(names):
        for name in names:  # something is wrong; say where
            vocab.encode(name)
            if BOUNDARY in name:
                raise ValueError(f"'.' marks the ends of a name and cannot be inside one, as in {name!r}: remove it.")
    ends = lengths.cumsum(0)
    position = torch.arange(len(Y)) - torch.repeat_interleave(ends - lengths, lengths)  # (N,) 0, 1, .. in each name
    before = torch.cat([torch.zeros(context_size, dtype=torch.int64), Y])
    windows = before.unfold(0, context_size, 1)[: len(Y)]  # (N, context_size) the tokens before Y, across names
    distance = torch.arange(context_size, 0, -1)  # column j looks context_size - j back
    return windows * (position[:, None] >= distance), Y  # what lies before the name becomes 0


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

    `next_logits` maps contexts (B, context_size) int64 to logits (B, len(vocab)); B falls as names end.
    The next character is drawn from softmax(logits / temperature), among the `top_k` largest logits
    if given; temperature 0 takes the most likely character. A name ends with '.' or at `max_length`
    characters, prefix included. Everything runs on the generator's device (CPU without one); the same
    generator state gives the same names.
    Raises ValueError for arguments out of range, an unknown character in `prefix`, and logits
    of the wrong shape or with no distribution in them (NaN, +inf, all -inf).
    """
    _check_count("context_size", context_size, 1)
    _check_count("count", count, 0)
    _check_count("max_length", max_length, max(1, len(prefix)))
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number of at least 0, got {temperature}.")
    if top_k is not None:
        _check_count("top_k", top_k, 1, len(vocab))
    if BOUNDARY in prefix:
        raise ValueError(f"A prefix holds characters of a name, not the boundary '.', got {prefix!r}.")
    device = generator.device if generator is not None else torch.device("cpu")
    start = torch.tensor([0] * context_size + vocab.encode(prefix), device=device)
    # tokens[i] is the whole row of name i: padding, prefix, then what is drawn; 0 beyond its end.
    tokens = torch.zeros(count, context_size + max_length + 1, dtype=torch.int64, device=device)
    tokens[:, : len(start)] = start
    active = torch.arange(count, device=device)  # rows that have not ended
    with torch.no_grad():
        for t in range(len(start), context_size + max_length):
            if not len(active):
                break
            logits = next_logits(tokens[active, t - context_size : t])
            if logits.shape != (len(active), len(vocab)):
                raise ValueError(
                    f"next_logits must return shape {(len(active), len(vocab))} for {len(active)} contexts, "
                    f"got {tuple(logits.shape)}."
                )
            drawn = _draw(logits.to(device), temperature, top_k, generator)
            tokens[active, t] = drawn
            active = active[drawn != 0]
    return _to_names(tokens[:, context_size:], vocab)


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One id a row, (B,), from logits (B, V)."""
    best = logits.amax(1, keepdim=True)
    if not best.isfinite().all():  # amax hands on NaN and +inf, and is -inf only where all are
        raise ValueError("next_logits returned NaN or infinite logits: look at the model, its loss may have diverged.")
    if temperature == 0:
        return logits.argmax(1)
    if top_k is not None:
        ids = logits.topk(top_k, dim=1).indices  # of equal logits exactly top_k stay
        logits = torch.full_like(logits, -math.inf).scatter(1, ids, logits.gather(1, ids))
    # Subtract first: even a tiny temperature then overflows to -inf only, which softmax turns into 0.
    probabilities = ((logits - best) / temperature).softmax(1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _code_points(text: str) -> Tensor:
    """The Unicode code points of `text`, (len(text),) int32."""
    return torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32) if text else torch.empty(0).int()


def _lookup(text: str, vocab: Vocabulary) -> Tensor:
    """The ids of `text`, (len(text),) int64, -1 for a character that is not in `vocab`."""
    known = _code_points("".join(vocab.itos))
    highest = int(known.max())
    table = torch.full((highest + 2,), -1)  # the last entry serves all characters beyond the highest known
    table[known] = torch.arange(len(vocab))
    return table[_code_points(text).clamp(max=highest + 1)]


def _to_names(tokens: Tensor, vocab: Vocabulary) -> list[str]:
    """Each row of ids (B, T), every one holding a 0, as the string before its first 0."""
    width = tokens.shape[1]
    codes = _code_points("".join(vocab.itos))[tokens.cpu()]
    text = codes.numpy().tobytes().decode("utf-32-le")
    return [text[i : i + width].partition(BOUNDARY)[0] for i in range(0, len(text), width)]


def _check_count(name: str, value: int, low: int, high: int | None = None) -> None:
    if not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be a whole number of {span}, got {value!r}.")
