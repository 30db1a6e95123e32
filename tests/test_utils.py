"""The helper, property by property: files to names, names to tensors, and back."""

import math
import random
import sys
import unicodedata
from collections import Counter
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from charlm_utils import (
    Vocabulary,
    build_dataset,
    load_names,
    normalize_name,
    sample_names,
    split_names,
)

BOM, INF, NAN = b"\xef\xbb\xbf", math.inf, math.nan
# Letters of one to four bytes in UTF-8; U+10428 lies beyond what two bytes can number.
LETTERS = Vocabulary.from_names(["abcxyz-'’éßñøжяあ中\U00010428"])
LARGE = Vocabulary.from_names([*LETTERS.itos[1:], *map(chr, range(0x4E00, 0x59AE))])
ABC = Vocabulary.from_names(["abcd"])  # five tokens: . a b c d
TEN, MANY = [*"abcdefghij"], [f"name{i}" for i in range(1000)]
DEVICES = ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
EVEN, ENDLESS = torch.zeros(5), torch.tensor([-INF, 1.0, 0.0, 0.0, 1.0])


def load(content, **options):
    """The names in a file that holds `content`, bytes or text."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "names.txt")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_names(str(path), **options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def table(context_size=2, scale=1.5, seed=0):
    """Random logits of ABC for each context of `context_size` tokens."""
    return scale * torch.randn([5] * (context_size + 1), generator=seeded(seed))


def spoilt(context, columns, value):
    """Sound logits but for one context; the likeliest contexts are '..', '.a', 'ab'."""
    rows = torch.zeros(5, 5, 5)
    rows[0, 0, 1] = rows[0, 1, 2] = 1.0
    rows[context][columns] = value
    return rows


def draw(model, number=4, context_size=2, vocab=ABC, seen=None, **options):
    """Names; `seen` takes the contexts asked for. A tensor is a table or one answer."""

    def answer(contexts):
        asked.append(contexts.clone())
        if callable(model):
            return model(contexts)
        each = len(contexts)
        return model.repeat(each, 1) if model.ndim == 1 else model[tuple(contexts.T)]

    asked = [] if seen is None else seen
    options = {"generator": seeded()} | options
    return sample_names(answer, vocab, context_size, number, **options)


ODD, NOT_HOT = [-1, 1.5, 3.0, "3", NAN, True], [-1, -1e-9, -INF, INF, NAN]
CUTS = [(0.8, 0.1, 0.2), (0.8, 0.1, 0.0999), (80, 10, 10), (1.2, -0.1, -0.1), ()]
CUTS += [(NAN, 0.5, 0.5), (0.5, NAN, 0.5), (0.5, 0.5, NAN), (-0.5, 1.0, 0.5)]
CUTS += [(0.5, 0.5, 0.0), (INF, 0.1, 0.1), (0.5, 0.5), (0.4, 0.3, 0.2, 0.1)]
EMPTY = [(0.01, 0.5, 0.49), (0.5, 0.01, 0.49), (0.5, 0.49, 0.01)]
ITOS = [(), ("a", "."), (".", "a", "a"), (".", "."), (".", "ab"), (".", "")]
DOTS, IN_NO_NAME = ["b.d", ".b", "b.", "."], '.,;7_\t"?<*\0\ufeff\u200b\u2028😀'
UNKNOWN = ["azZ", *(f"a{c}b" for c in "Azé \U00010428\ud800")]
IN_ABC = "{0[1]!r} in {0!r} ... '.abcd'"
SHAPES = [(4, 6), (4, 4), (3, 5), (5, 5), (1, 5), (5, 4), (4, 1), (4, 1, 5), (4, 5, 1)]
SHAPES += [(4,), (5,), (20,), ()]
BAD = [(3, NAN), (3, INF), (slice(5), NAN), (slice(5), -INF)]
BAD = product([(0, 0), (1, 2)], BAD, [{}, {"top_k": 3}, {"temperature": 0}])
RAW = product((b"", BOM), (b"\n", b"\r\n"), (1, 2, 7))
# Calls, the arguments that each must refuse, and what the message must say of them.
REFUSED = [
    (load, [b"", b"\n\r\n  \n", BOM, BOM + b"\n"], "names.txt holds no ... one name"),
    (lambda x: load(x[0] + x[1] * (x[2] - 1) + b"\xe9\n"), RAW, "line {0[2]}: ... UTF"),
    (load, ["emma\n".encode("utf-16")], "names.txt, line 1: ... UTF-8; save"),
    (load, ["emma\nav1?a\nem2ma\n"], "names.txt, line 2: '1' in 'av1?a' ... mend"),
    (lambda x: load(f"\ufeffava\n\nl{x}y\n"), IN_NO_NAME, "line 3: ... cannot be ... one"),
    (lambda x: split_names(TEN, x, seed=0), CUTS, "three positive ... sum 1 ... {}"),
    (lambda x: split_names(TEN, x, seed=0), EMPTY, "10 names cut by {} ... empty"),
    (lambda x: split_names(TEN[:x], seed=0), [0, 2], "{} names ... empty ... more"),
    (Vocabulary, ITOS, "'.' and then different characters"),
    (Vocabulary.from_names, [[], ["", ""]], "vocabulary ... at least one name"),
    (Vocabulary.from_names, [["emma", "a.va"]], "'.' ... remove"),
    (lambda x: ABC.decode([4, x, 99]), [-1, 5, 1000], "0 to 4 ... got {}."),
    (ABC.encode, UNKNOWN, IN_ABC),
    (lambda x: build_dataset(["d", x], ABC, 2), UNKNOWN, IN_ABC),
    (lambda x: draw(EVEN, prefix=x), UNKNOWN, IN_ABC),
    (lambda x: draw(EVEN, prefix=x), DOTS, "prefix ... '.' ... {!r}"),
    (lambda x: build_dataset(["a", x, ""], ABC, 3), DOTS, "'.' ... remove ... {!r}"),
    (lambda x: build_dataset(["a"], ABC, x), [0, None, *ODD], "context_size ... {!r}"),
    (lambda x: draw(EVEN, 4, x), [0, None, *ODD], "context_size ... at least 1"),
    (lambda x: draw(EVEN, x), [None, *ODD], "count ... at least 0 ... {!r}"),
    (lambda x: draw(EVEN, top_k=x), [0, 6, *ODD], "top_k ... between 1 and 5 ... {!r}"),
    (lambda x: draw(EVEN, max_length=x), [0, None, *ODD], "max_length ... at least 1"),
    (lambda x: draw(EVEN, prefix="abc", max_length=x), [2, 0], "at least 3, got {}"),
    (lambda x: draw(EVEN, temperature=x), NOT_HOT, "temperature ... 0, got {}"),
    (lambda x: draw(lambda _: torch.zeros(x)), SHAPES, "next_logits ... (4, 5) ... {}"),
    (lambda x: draw(spoilt(x[0], *x[1]), 200, **x[2]), BAD, "next_logits ... NaN or"),
]
NO_FILES = ["nowhere.txt", Path("nowhere.txt"), Path(__file__).parent]


@pytest.mark.parametrize(
    "error, call, argument, words",
    [(FileNotFoundError, load_names, x, "'{}' ... one name a line") for x in NO_FILES]
    + [(ValueError, call, x, words) for call, xs, words in REFUSED for x in xs],
)
def test_what_is_wrong_is_refused_in_words_that_help(error, call, argument, words):
    with pytest.raises(error) as caught:
        call(argument)
    said, words = str(caught.value), words.format(argument).split(" ... ")
    missing = [word for word in words if word not in said]
    assert not missing, f"the message must hold {missing}, but reads: {said}"
    assert caught.type is error, f"raise a {error.__name__}, not its kin {caught.type}"
    assert torch.is_grad_enabled(), "gradient tracking must be on again after an error"


@pytest.mark.parametrize(
    "content, what",
    [
        (b"emma\nava", "a last line without a line end is a name like any other"),
        (BOM + b"emma\nava\n", "a byte order mark is no part of the first name"),
        (b"emma\r\nava\r\n", "CRLF ends a line as LF does"),
        (b"emma\rava\r", "and so does a lone CR"),
        (b"\n\nemma\n   \n\t\n\r\nava\n\n", "blank lines are ignored everywhere"),
        ("\u00a0 emma\nava \t\u3000\r\n", "white space at both ends is ignored"),
        (b"Emma\nAVA\n", "case is folded to lower"),
        (b"emma\nava\nEmma\n emma\n", "of equal names the first stays"),
    ],
)
def test_a_file_is_read_whatever_wrote_it(content, what):
    assert load(content) == load(content, unique=True) == ["emma", "ava"], what


def test_letters_of_all_scripts_and_their_marks_make_names():
    names = ["zoë", "łukasz", "anne-marie", "d'arcy", "жанна", "さくら"]
    names += ["अमिता", "x\u0302ena", "josé", "mary ann", "gal·la", "צ׳רלי", "בן־חור"]
    names += [
        "ジャン・ポール",
        "علی\u200cرضا",
        "ക്രി\u200dസ",
        "മിഥുന്\u200d",
    ]  # joiners; one ends a Malayalam name
    typed = "\n".join([*names, unicodedata.normalize("NFD", "josé")]).upper()
    assert load(typed) == names, "lower case, in the file's order, one 'é' (NFC)"
    assert load(typed, unique=False) == [*names, "josé"], "unique=False keeps repeats"


SAME = [("D’Aro", "d'aro"), ("D‘Aro", "d'aro"), ("DʼAro", "d'aro"), ("D＇ARO", "d'aro")]
SAME += [("Jean‐Luc", "jean-luc"), ("Jean–Luc", "jean-luc"), ("Jean‑Luc", "jean-luc")]
SAME += [("H\u0331ALIM", "ẖalim"), ("ẖalim", "ẖalim"), ("İPEK", "ipek"), ("I\u0307pek", "ipek")]
SAME += [("ﬁona", "fiona"), ("Ａｎｎａ", "anna"), ("Mary \u00a0 A", "mary a"), ("ẞela", "ßela")]
SAME += [("ŉora", "'nora"), ("", ""), ("  ", "")]


@pytest.mark.parametrize("text, name", SAME)
def test_one_name_is_written_in_one_way(text, name):
    assert normalize_name(text) == name == normalize_name(name), "and folding twice changes nothing"
    assert load(f"{text}\nx") == [*filter(None, [name]), "x"]


def test_a_list_with_a_dotless_i_reads_capital_i_as_that_and_no_other_list_does():
    small = ["ışıl", "ipek", "ilkay", "sıla"]
    for capital in (["IŞIL", "İPEK", "İLKAY", "SILA"], ["IŞIL", "İPEK", "ILKAY", "SILA"]):
        found = load("\n".join(capital))
        assert found[:2] + found[3:] == small[:2] + small[3:], found
    assert load("ISIL\nIDA") == ["isil", "ida"]
    assert normalize_name("Iİ", dotless=True) == "ıi" and normalize_name("Iİ") == "ii"


SAID = {
    "Mirel,F,18688\nDana,M,9": "a table, its columns parted by ','; column 1 holds the names",
    "18688\tMirel\n9\tDana": "a table, its columns parted by tabs; column 2 holds the names",
    "count;sex;name\n9;F;Mia\n8;M;Leo": "parted by ';'; column 3 holds the names",
    "1,2\n3,4": "a table, its columns parted by ','; one column may hold the names",
    "ok\na1\nb2\nc3": "line 2: '1' in 'a1' cannot be part of a name (and 2 more such lines)",
    "x" * 30_000 + "1": "'1' in '" + "x" * 39 + " cannot",
    "em\u200bma": "U+200B (ZERO WIDTH SPACE) in",
    "\u200cemma": "U+200C (ZERO WIDTH NON-JOINER) in",
    "emma\u200c": "U+200C (ZERO WIDTH NON-JOINER) in",
    "gal·": "'·' in 'gal·' cannot be part of a name: a line holds one name",
    "-": "'-' has no letter in it",
    "a\rb1\r": "line 2: '1' in",
}


@pytest.mark.parametrize("content", SAID)
def test_a_wrong_file_is_refused_with_what_it_is_and_how_much(content):
    with pytest.raises(ValueError) as caught:
        load(content)
    assert SAID[content] in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 400
    assert ("(and" in str(caught.value)) == ("\n" in content), "how many more, if there are more"


@pytest.mark.parametrize(
    "fractions, sizes",
    [
        ((0.8, 0.1, 0.1), [800, 100, 100]),
        ([0.1, 0.2, 0.7], [10, 19, 68]),
        ((0.7, 0.2, 0.1), [7, 2, 1]),  # their sum is 0.9999999999999999
        ((1 / 3, 1 / 3, 1 / 3), [1, 1, 1]),
    ],
)
def test_a_split_cuts_names_into_disjoint_parts_of_the_right_sizes(fractions, sizes):
    names = tuple(f"name{i % 99}" for i in range(sum(sizes)))  # some of them repeat
    state = torch.get_rng_state()
    parts = split_names(names, fractions, seed=3)
    assert type(parts) is tuple and {*map(type, parts)} == {list}, "return three lists"
    assert [len(part) for part in parts] == sizes, f"wrong sizes for {fractions}"
    assert sorted(sum(parts, [])) == sorted(names), "each name lands in just one part"
    assert torch.equal(torch.get_rng_state(), state), "use no global generator"


def test_a_split_is_shuffled_by_its_seed_and_by_default_80_10_and_10_percent():
    parts = split_names(MANY, seed=1)
    assert parts == split_names(MANY, (0.8, 0.1, 0.1), seed=1), "a seed fixes the split"
    assert parts != split_names(MANY, seed=2), "another seed must give another split"
    middles = [sum(map(MANY.index, part)) / len(part) for part in parts]
    assert all(400 < middle < 600 for middle in middles), "shuffle before cutting"


def test_the_boundary_is_id_0_and_the_characters_follow_sorted():
    tokens = tuple(".'-ademn")  # "'" and "-" sort before "."
    vocab, same = Vocabulary.from_names(iter(["anne-m", "d'a"])), Vocabulary(tokens)
    assert vocab.itos == tokens, "'.' first, then the sorted characters"
    assert vocab.stoi == {c: i for i, c in enumerate(tokens)}, "stoi is its inverse"
    assert len(vocab) == 8, "the boundary counts as a token"
    assert vocab == same and hash(vocab) == hash(same), "equal if the characters are"
    assert vocab != ABC and repr(vocab) == f"Vocabulary(itos={tokens})", "itos is all"


def test_encode_and_decode_undo_each_other():
    ids = LARGE.encode(text := "".join(LARGE.itos + LARGE.itos[::-1]))
    assert {*map(type, ids)} == {int}, "encode gives a list of ints"
    assert LARGE.decode(iter(ids)) == text, "decode must undo encode"
    assert LARGE.decode(torch.tensor(ids)) == text, "a tensor of ids may be decoded"
    assert ABC.encode("") == [] and ABC.decode([]) == "", "nothing becomes nothing"


@pytest.mark.parametrize("vocab", [LETTERS, LARGE], ids=len)
@pytest.mark.parametrize("context_size", [1, 2, 3, 5, 12])
def test_the_data_set_equals_the_double_loop(context_size, vocab):
    cases = [[], [""], ["", ""], ["c", "a", "é"], ["", "ab", ""], ["abc" * 20], ("ab",)]
    chance = random.Random(context_size)
    for longest in [1, 2, 5, 15] * 10:
        sizes = [chance.randint(0, longest) for _ in range(chance.randint(0, 8))]
        cases.append(["".join(chance.choices(vocab.itos[1:], k=k)) for k in sizes])
    for names in cases:
        contexts, targets = [], []
        for name in names:
            context = [0] * context_size
            for character in name + ".":
                contexts.append(context)
                targets.append(vocab.stoi[character])
                context = context[1:] + targets[-1:]
        X, Y = build_dataset(names, vocab, context_size)
        assert X.dtype == Y.dtype == torch.int64, "X and Y hold ids: int64"
        assert X.shape == (len(targets), context_size), f"wrong shape of X of {names}"
        assert Y.tolist() == targets, f"wrong targets of {names!r}"
        assert X.tolist() == contexts, f"wrong contexts of {names!r}"
        X[:] = torch.arange(X.numel()).view_as(X)
        assert X.flatten().tolist() == [*range(X.numel())], "rows of X share memory"
        assert Y.tolist() == targets, "X and Y share memory"


def test_a_data_set_is_built_without_a_loop_over_names_or_characters():
    steps, before = [], sys.gettrace()

    def trace(frame, event, argument):
        frame.f_trace_opcodes = True
        steps[-1] += 1
        return trace

    for names in (["a"], ["abc"], ["abcd" * 9] * 50):
        steps.append(0)
        sys.settrace(trace)
        build_dataset(names, ABC, 3)
        sys.settrace(before)
    assert steps[1] == steps[2], f"the steps in Python grow with the names: {steps}"


def assert_frequencies(drawn, chances, what):
    """Counts must fit probabilities, by chi-square; rare outcomes are put together."""
    total = sum(drawn.values())
    impossible = [name for name in drawn if chances.get(name, 0) == 0]
    assert not impossible, f"{what}: {impossible[:9]} cannot be drawn, but were"
    cells = [(drawn[x], p * total, x) for x, p in chances.items() if p * total > 5]
    rest = total - sum(expected for _, expected, _ in cells)
    if rest > 1:
        cells.append((total - sum(seen for seen, _, _ in cells), rest, "all others"))
    chi2 = sum((seen - expected) ** 2 / expected for seen, expected, _ in cells)
    limit = len(cells) + 6 + 6 * math.sqrt(2 * len(cells))  # about six sigma
    assert chi2 < limit, f"{what}: (drawn, expected, name) is {cells[:9]}"


def exact(rows, temperature=1.0, top_k=5, prefix="", max_length=3):
    """The probability of every name, by a walk through all that begin with `prefix`."""
    if len(prefix) == max_length:
        return {prefix: 1.0}
    ids = ([0] * 9 + ABC.encode(prefix))[1 - rows.ndim :]
    best = sorted((x, i) for i, x in enumerate(rows[tuple(ids)].tolist()))
    best = best[-top_k:] if temperature else best[-1:]
    weights = {i: math.exp(x / (temperature or 1)) for x, i in best}
    chances = {}
    for i, weight in weights.items():
        longer = (rows, temperature, top_k, prefix + ABC.itos[i], max_length)
        for name, p in (exact(*longer) if i else {prefix: 1.0}).items():
            chances[name] = p * weight / sum(weights.values())
    return chances


MODELS = {"untrained": table(1, 0.01), "trained": table(), "peaked": table(3, 6.0)}
MODELS["with zeros"] = table().masked_fill(table(seed=1) > 1, -INF)
HALF, HOT, COLD = [0, -INF, 1, -INF, 2], (1e4, 1e39, 1e308), (1e-4, 1e-42, 5e-324)
OPTIONS = [{"temperature": t} for t in (0, 0.5, 3, 1e4)] + [{}, {"max_length": 1}]
OPTIONS += [{"top_k": k, "temperature": t} for k in (1, 2, 4, 5) for t in (0.7, 1.0)]
OPTIONS += [{"prefix": p, "max_length": 3 + m} for p in ("b", "cab") for m in (0, 2)]


@pytest.mark.parametrize("rows", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_names_are_drawn_with_their_exact_probabilities(rows, options):
    options, size = {"max_length": 3} | options, rows.ndim - 1
    names, chances = draw(rows, 6000, size, **options), exact(rows, **options)
    assert type(names) is list and len(names) == 6000, "as many names as asked for"
    assert_frequencies(Counter(names), chances, "a batch of names")
    options["generator"] = seeded()
    alone = [draw(rows, 1, size, **options)[0] for _ in range(60)]
    assert_frequencies(Counter(alone), chances, "one name a call")
    pairs = product(chances.items(), repeat=2)
    both = {(one, two): p * q for (one, p), (two, q) in pairs}
    assert_frequencies(Counter(zip(names[::2], names[1::2])), both, "neighbours depend")


def test_the_defaults_are_temperature_1_no_top_k_no_prefix_and_30_characters():
    default = {"temperature": 1.0, "top_k": None, "prefix": "", "max_length": 30}
    assert draw(table(), 200) == draw(table(), 200, **default), f"must be {default}"
    names = sample_names(lambda x: ENDLESS.repeat(len(x), 1), ABC, 2, 3)
    assert {*map(len, names)} == {30}, "max_length must be 30 by default"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "logits, options, drawn",
    [
        *[([-3, 2, 2.5, -8, 1], {"temperature": t}, {*"b"}) for t in COLD],
        *[([-9, 4, 0, 5, 1], {"temperature": t}, {*".abcd"}) for t in HOT],
        *[(HALF, {"temperature": t}, {*".bd"}) for t in (1, *HOT)],
        *[(HALF, {"top_k": k}, {*".bd"}) for k in (3, 4, 5)],
        *[([-s, s, -s, s, 0], {}, {*"ac"}) for s in (1e4, 1e30, 3e38)],
        *[([1, 1, 1, 1, 1], {"top_k": k}, k) for k in (1, 2, 3, 4, 5)],  # of equals, k
        ([1, 1, 1, 1, 1], {"temperature": 0}, 1),
    ],
)
def test_extreme_logits_do_not_overflow_or_let_zeros_in(logits, options, drawn, dtype):
    names = draw(torch.tensor(logits, dtype=dtype), 300, max_length=1, **options)
    seen = {name or "." for name in names}
    assert drawn in (seen, len(seen)), f"drawn were {seen}"


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_no_random_number_draws_the_impossible(monkeypatch, u):
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, u))
    logits = torch.tensor([-INF, -INF, 0.0, 1.3, -INF])
    assert {*draw(logits, max_length=1)} <= {*"bc"}, f"{u} drew a probability of 0"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_large_vocabulary_is_drawn_evenly_whatever_the_precision(dtype):
    logits = torch.zeros(len(LARGE), dtype=getattr(torch, dtype))
    names = draw(logits, 4000, vocab=LARGE, max_length=1)
    drawn = Counter(LARGE.stoi[name or "."] % 8 for name in names)
    assert_frequencies(drawn, dict.fromkeys(range(8), 1 / 8), "id % 8")


@pytest.mark.parametrize("device, answers_on", product(DEVICES, DEVICES))
def test_names_beyond_ascii_are_spelled_on_the_generator_s_device(device, answers_on):
    wanted, seen = "".join(LETTERS.itos[1:]), []
    follow = torch.eye(len(LETTERS)).roll(1, 1).log()  # each letter, then the next one
    options = {"model": lambda x: follow[x[:, -1].cpu()].to(answers_on)}
    options |= {"vocab": LETTERS, "seen": seen, "prefix": wanted[:2]}
    generators = [torch.Generator(device)] + [None] * (device == "cpu")
    for number, temperature, generator in product((0, 1, 3), (0, 1.0), generators):
        options |= {"generator": generator, "temperature": temperature}
        with torch.device("meta"):  # the default device must not matter
            names = draw(number=number, **options)
        assert names == [wanted] * number, "one id is one character, to the end"
    assert {contexts.device.type for contexts in seen} == {device}, "wrong device"
    assert min(map(len, seen)) > 0, "a model may not be able to take a batch of 0"


@pytest.mark.parametrize("prefix, limit", [("", 1), ("", 7), ("a", 99), ("abc", 3)])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_a_model_is_asked_about_just_the_names_that_go_on(size, prefix, limit):
    seen, options = [], {"prefix": prefix, "max_length": limit}
    names = draw(table(size, 0.8, seed=2), 200, size, seen=seen, **options)
    for known, contexts in enumerate(seen, start=len(prefix)):
        running = [name for name in names if len(name) >= known]
        expected = [("." * size + name[:known])[-size:] for name in running]
        assert contexts.dtype == torch.int64, "contexts hold ids: int64"
        assert contexts.shape == (len(running), size), "B must fall as names end"
        assert [ABC.decode(row) for row in contexts] == expected, "wrong contexts"
    steps = min(max(map(len, names)) + 1, limit) - len(prefix)
    assert len(seen) == steps, "one forward a character, and none for no names"
    assert {*map(len, draw(ENDLESS, **options))} == {limit}, "cut, prefix included"
    cut = [name[:limit] for name in draw(EVEN, 400, prefix=prefix, max_length=120)]
    assert draw(EVEN, 400, **options) == cut, "max_length must only cut names"


def test_each_draw_comes_from_the_generator_or_without_one_from_the_global_seed():
    state, generator = torch.get_rng_state(), seeded(5)
    one = draw(table(), 50, generator=generator)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert one != draw(table(), 50, generator=generator), "go on, do not start again"
    assert one == draw(table(), 50, generator=seeded(5)), "the seed must fix the names"
    assert one != draw(table(), 50, generator=seeded(6)), "the seed must matter"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert one == draw(table(), 50, generator=None), "use the global seed"


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"temperature": 0}], ids=str)
def test_sampling_needs_no_gradients_and_writes_to_nothing_of_the_model(options):
    weights, modes = table(1).requires_grad_(), []

    def model(contexts):
        modes.append(torch.is_grad_enabled())
        last = contexts[:, -1].clone()
        contexts.zero_()
        return weights[last]

    names = draw(model, 5, 1, **options)
    assert not any(modes) and torch.is_grad_enabled(), "no gradients while sampling"
    assert names == draw(table(1), 5, 1, **options), "contexts must be copies"
    draw(lambda _: weights, 5, max_length=1, **options)
    assert torch.equal(weights, table(1)), "logits may be the model's own: do not write"
