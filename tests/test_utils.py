"""The helper, property by property: files to names, names to tensors, and back."""

import random
import sys
from collections import Counter
from itertools import islice, product

import pytest
import torch
from torch import inf, nan

import charlm_utils as lm

# Letters of one to four bytes in UTF-8; U+10428 lies beyond what two bytes can number.
LETTERS = lm.Vocabulary.from_names(["abcxyz-'’éßñøжяあ中\U00010428"])
LARGE = lm.Vocabulary.from_names([*LETTERS.itos[1:], *map(chr, range(0x4E00, 0x59AE))])
ABC = lm.Vocabulary.from_names(["abcd"])  # five tokens: . a b c d
GENERATOR, DEVICES = torch.Generator(), ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
BIG = ["".join(letters) for letters in islice(product("abcdefghij", repeat=6), 500_000)]
TWO, NONE = ["emma", "ava"], "names.txt holds no names: ... one name a line"
BY, ONE_LINE = "a table, its columns parted by", "one line or in brackets: give one name a line"
WORLD = "zoë łukasz anne-marie жанна さくら अमिता x\u0302ena gal·la ジャン・ポール בן־חור "
WORLD += "צ׳רלי ג׳ורג׳ 'iolani rabi' علی\u200cرضا ക്രി\u200dസ മിഥുന്\u200d"  # U+200D may end a name
TYPED = WORLD.upper().replace("'I", "ʻI").replace(" ", "\n")
FOLDED = "H\u0331ALIM\nﬁona\nＡｎｎａ\nẞela\nŉora\nMary \u00a0 A\ngal·\u200c"
FOLDS = ["ẖalim", "fiona", "anna", "ßela", "'nora", "mary a", "gal"]
# Lists as people have them: the names in them, or what is said of them so that they are mended.
LISTS = {
    "Windows line ends": ("emma\r\nava\r\n", TWO),
    "byte-order mark, no last line end": ("\ufeffEmma\nAva", TWO),
    "heading": ("\ufeffFirst Name\r\nEmma\r\nAva\r\n", TWO),
    "heading and names in quotes": ('"PRE\u0301NOM"\n"Emma"\n“Ava”\n', TWO),
    "blank lines between, spaces": ("\n\u00a0 emma\n  \n\t\n\r\nava \t\u3000\r\n\n", TWO),
    "capitals, twice, a later heading": ("EMMA\nName\nEmma\n emma\n", ["emma", "name"]),
    "bullets": ("- Emma\n- Ava\n", TWO),
    "decomposed accents": ("Jose\u0301\nJosé\nZoe\u0308\n", ["josé", "zoë"]),
    "scripts, geresh and okina": (TYPED, WORLD.split()),
    "apostrophes and hyphens": ("J’A‐B\nJ‘A–B\nJʼA‑B\nJ＇A－B\nJ´A−B", ["j'a-b"]),
    "letters written in many ways": (FOLDED, FOLDS),
    "Turkish": ("IŞIL\nI\u0307PEK\nILKAY\nSILA", ["ışıl", "ipek", "ılkay", "sıla"]),
    "not Turkish": ("ISIL\nIDA", ["isil", "ida"]),
    "500,000 lines": ("\n".join(BIG), BIG),
    "empty file": ("", NONE),
    "blank lines alone": ("\ufeff\n\r\n  \n", NONE),
    "directory": (None, "No file of names at ... names.txt' ... one name a line"),
    "census as CSV": ("NAME,SEX,N\nAnn,F,17\nLiam,M,9\n", f"{BY} ','; column 1 holds the names"),
    "words for sexes": ("sex at birth,n\nfemale,Ann\nfemale,Eve\nfemale,Mia\n", "column 2 holds"),
    "counts after tabs": ("18688\tEmma\n9\tAva\n", f"{BY} tabs; column 2 holds the names"),
    "semicolons": ("Rang;N;Vorname\n1;9;Emma\n2;8;Ava\n", f"{BY} ';'; column 3 holds the names"),
    "Markdown": ("| name | n |\n|---|---|\n| Ann | 3 |\n", f"{BY} '|'; column 1 holds the names"),
    "table, title and sum": ("Top 2018\nEmma,5\nAva,4\nMia,3\nSum\n", "column 1 holds the names"),
    "one line": ("Emma, Olivia, Ava\n", f"',' in 'emma, olivia, ava' ... {ONE_LINE}"),
    "JSON": ('["Emma", "Ava 2"]', ONE_LINE),
    "JSON over lines": ('[\n "Emma",\n "Ava",\n "Mia"\n]\n', ONE_LINE),
    "numbered": ("1. Emma\n2. Ava\n", "line 1: '1' in ... (and 1 more such ... without numbers"),
    "nicknames": ("Emma\nElizabeth (Liz)\n", "line 2: '(' in ... name: a line holds ... brackets"),
    "comment at the end": ("Emma\nAva\n# SSA\n", "line 3: '#' in ... comments: mend or delete it"),
    "marks alone": ("ok\n-\r׳״\r\n''\n", "line 2: '-' has no letter in it (and 2 more such lines)"),
    "very long line": ("x" * 30_000 + "1", "'1' in '" + "x" * 39 + " cannot"),
    "Latin-1": (b"emma\r\n\r\nJos\xe9", "line 3: '�' in 'jos�' ... save the file as UTF-8"),
}


@pytest.mark.parametrize("content, result", LISTS.values(), ids=LISTS)
def test_a_list_as_people_have_it_loads_or_is_refused_with_what_mends_it(
    content, result, tmp_path, capsys, request
):
    path = tmp_path / "names.txt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if isinstance(result, list):
        found = lm.load_names(str(path))
        has_heading = request.node.callspec.id.startswith("heading")
        assert ("is a heading and is left out" in capsys.readouterr().out) == has_heading
        assert found[:99] == result[:99] and len(found) == len(result)
        assert [*map(lm.normalize_name, found[:99])] == found[:99], "twice changes nothing"
        return
    with pytest.raises(FileNotFoundError if content is None else ValueError) as caught:
        lm.load_names(path)
    said = str(caught.value)
    assert [words for words in result.split(" ... ") if words not in said] == [], said
    assert len(said) < 300 + len(str(path)), "a sentence, however long the file"


def table(context_size=2, scale=1.5, seed=0):
    """Random logits of ABC for each context of `context_size` tokens."""
    return scale * torch.randn([5] * (context_size + 1), generator=GENERATOR.manual_seed(seed))


def draw(model, number=4, context_size=2, vocab=ABC, **options):
    """Names of a model, a tensor of logits for each context, or the logits for all contexts."""

    def answer(contexts):
        if callable(model):
            return model(contexts)
        return model.expand(len(contexts), -1) if model.ndim == 1 else model[tuple(contexts.T)]

    options = {"generator": GENERATOR.manual_seed(0)} | options
    return lm.sample_names(answer, vocab, context_size, number, **options)


EVEN, TEN = torch.zeros(5), "abcdefghij"
ODD, NOT_HOT = [0, -1, 1.5, 3.0, "3", nan, True, None], [-1, -1e-9, -inf, inf, nan]
CUTS = [(0.8, 0.1, 0.2), (0.8, 0.1, 0.0999), (80, 10, 10), (), (0.5, 0.5), (0.5, 0.5, 0.0)]
CUTS += [(nan, 0.5, 0.5), (0.5, nan, 0.5), (0.5, 0.5, nan), (inf, 0.1, 0.1), (1.2, -0.1, -0.1)]
EMPTY = [(0.01, 0.5, 0.49), (0.5, 0.01, 0.49), (0.5, 0.49, 0.01)]
ITOS = [(), (".",), ("a", "."), (".", "a", "a"), (".", "."), (".", "ab"), (".", "")]
DOTS, UNKNOWN, IN_ABC = ["b.d", ".b", "b.", "."], ["azZ", "bzé", "z"], "'z' in {!r} ... '.abcd'"
SHAPES = [(4, 6), (3, 5), (5, 5), (1, 5), (5, 4), (4, 1), (4, 1, 5), (4, 5, 1), (5,), (20,), ()]
ILL = [torch.tensor([0, 0, x, 0, 0]) for x in (nan, inf)] + [torch.full((5,), -inf)]
# Calls, the arguments that each must refuse, and what the message must say of them.
REFUSED = [
    (lm.normalize_name, [f"L{c}Y" for c in '.,;7_\t"?<*\0\ufeff\u2028😀'], "in 'l ... cannot be"),
    (lm.normalize_name, ["em\u200bma"], "ZERO WIDTH SPACE in 'em"),
    (lambda x: lm.split_names(TEN, x, seed=0), CUTS, "three positive ... sum 1 ... {}"),
    (lambda x: lm.split_names(TEN, x, seed=0), EMPTY, "10 names cut by {} ... empty"),
    (lm.Vocabulary, ITOS, "'.' and then different characters"),
    (lm.Vocabulary.from_names, [[], ["", ""], ["emma", "a.va"]], "'.' and then different"),
    (lambda x: ABC.decode([4, x, 99]), [-1, 5, 1000], "0 to 4 ... got {}."),
    (ABC.encode, UNKNOWN, IN_ABC),
    (lambda x: lm.build_dataset(["d", x], ABC, 2), [*UNKNOWN, "z\U00010428"], IN_ABC),
    (lambda x: draw(EVEN, prefix=x), DOTS, "prefix ... '.' ... {!r}"),
    (lambda x: lm.build_dataset(["a", x, ""], ABC, 3), DOTS, "'.' ... remove ... {!r}"),
    (lambda x: lm.build_dataset(["a"], ABC, x), ODD, "context_size ... {!r}"),
    (lambda x: draw(EVEN, 4, x), ODD, "context_size ... at least 1"),
    (lambda x: draw(EVEN, x), ODD[1:], "count ... at least 0 ... {!r}"),
    (lambda x: draw(EVEN, top_k=x), [6, *ODD[:-1]], "top_k ... between 1 and 5 ... {!r}"),
    (lambda x: draw(EVEN, max_length=x), ODD, "max_length ... at least 1"),
    (lambda x: draw(EVEN, prefix="abc", max_length=x), [2, 0], "at least 3, got {}"),
    (lambda x: draw(EVEN, temperature=x), NOT_HOT, "temperature ... 0, got {}"),
    (lambda x: draw(lambda _: torch.zeros(x)), SHAPES, "next_logits ... (4, 5) ... {}"),
    (lambda x: draw(lambda c: torch.where(c == 1, x, EVEN), 200, 1), ILL, "next_logits ... NaN or"),
    (lambda x: draw(x, temperature=0), ILL, "next_logits ... NaN or"),
]


@pytest.mark.parametrize("call, arguments, words", REFUSED)
def test_what_is_wrong_is_refused_in_words_that_help(call, arguments, words):
    for argument in arguments:
        with pytest.raises(ValueError) as caught:
            call(argument)
        said = str(caught.value)
        missing = [word for word in words.format(argument).split(" ... ") if word not in said]
        assert not missing, f"the message must hold {missing}, but reads: {said}"
        assert torch.is_grad_enabled(), "gradient tracking must be on again after an error"


SPLITS = {(0.8, 0.1, 0.1): [800, 100, 100], (0.1, 0.2, 0.7): [10, 19, 68]}
SPLITS[0.7, 0.2, 0.1] = [7, 2, 1]  # their sum is 0.9999999999999999


def test_a_split_cuts_names_into_disjoint_parts_of_the_right_sizes_shuffled_by_its_seed():
    state, many = torch.get_rng_state(), range(1000)
    for fractions, sizes in SPLITS.items():
        names = [f"name{i % 99}" for i in range(sum(sizes))]  # some of them repeat
        parts = lm.split_names(names, fractions, seed=3)
        assert type(parts) is tuple and {*map(type, parts)} == {list}, "return three lists"
        assert [len(part) for part in parts] == sizes, f"wrong sizes for {fractions}"
        assert sorted(sum(parts, [])) == sorted(names), "each name lands in just one part"
    parts = lm.split_names(many, seed=1)
    assert parts == lm.split_names(many, (0.8, 0.1, 0.1), seed=1), "a seed fixes the split"
    assert parts != lm.split_names(many, seed=2), "another seed must give another split"
    assert all(400 < sum(part) / len(part) < 600 for part in parts), "shuffle before cutting"
    assert torch.equal(torch.get_rng_state(), state), "use no global generator"


def test_a_vocabulary_holds_the_boundary_and_the_sorted_characters_and_decodes_what_it_encodes():
    tokens = tuple(".'-ademn")  # "'" and "-" sort before "."
    vocab, same = lm.Vocabulary.from_names(iter(["anne-m", "d'a"])), lm.Vocabulary(tokens)
    assert vocab.itos == tokens and vocab.stoi == {c: i for i, c in enumerate(tokens)}
    assert vocab == same and hash(vocab) == hash(same), "equal if the characters are"
    assert vocab != ABC and repr(vocab) == f"Vocabulary(itos={tokens})", "itos is all"
    ids = LARGE.encode(text := "".join(LARGE.itos + LARGE.itos[::-1]))
    assert {*map(type, ids)} == {int} and len(LARGE) == len(LARGE.itos)
    assert LARGE.decode(iter(ids)) == LARGE.decode(torch.tensor(ids)) == text


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_the_data_set_equals_the_double_loop(size):
    cases = [[], [""], ["", ""], ["c", "a", "é"], ["", "ab", ""], ["abc" * 20], ("ab",)]
    chance = random.Random(size)
    for longest in [1, 2, 5, 15] * 10:
        lengths = [chance.randint(0, longest) for _ in range(chance.randint(0, 8))]
        cases.append(["".join(chance.choices(LARGE.itos[1:], k=k)) for k in lengths])
    for names in cases:
        rows = []  # each context and its target
        for name in names:
            ids = [0] * size + LARGE.encode(name + ".")
            rows += [ids[i : i + size + 1] for i in range(len(name) + 1)]
        X, Y = lm.build_dataset(names, LARGE, size)
        assert X.dtype == Y.dtype == torch.int64 and X.shape == (len(rows), size)
        assert [[*x, y] for x, y in zip(X.tolist(), Y.tolist())] == rows, names
        X[:] = torch.arange(X.numel()).view_as(X)
        assert X.flatten().tolist() == [*range(X.numel())], "rows of X share memory"
        assert Y.tolist() == [row[-1] for row in rows], "X and Y share memory"


def test_a_data_set_is_built_without_a_loop_over_names_or_characters():
    steps, before = [], sys.gettrace()

    def trace(frame, event, argument):
        frame.f_trace_opcodes = True
        steps[-1] += 1
        return trace

    for names in (["a"], ["abc"], ["abcd" * 9] * 50):
        steps.append(0)
        sys.settrace(trace)
        lm.build_dataset(names, ABC, 3)
        sys.settrace(before)
    assert steps[1] == steps[2], f"the steps in Python grow with the names: {steps}"


def assert_frequencies(drawn, chances, what):
    """Counts must fit probabilities, by chi-square; rare outcomes are put together."""
    total = sum(drawn.values())
    assert {*drawn} <= {name for name, p in chances.items() if p}, f"{what}: p = 0 was drawn"
    cells = [(drawn[x], p * total) for x, p in chances.items() if p * total > 5]
    seen, expected = map(sum, zip(*cells))
    if total - expected > 1:
        cells.append((total - seen, total - expected))
    chi2 = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    assert chi2 < len(cells) + 6 + 6 * (2 * len(cells)) ** 0.5, f"{what}: {cells[:9]}"  # six sigma


def exact(rows, temperature=1.0, top_k=5, prefix="", max_length=3):
    """The probability of every name, by a walk through all that begin with `prefix`."""
    if len(prefix) == max_length:
        return {prefix: 1.0}
    ids, chances = ([0] * 9 + ABC.encode(prefix))[1 - rows.ndim :], {}
    best = rows[tuple(ids)].double().topk(top_k if temperature else 1)
    weights = (best.values / (temperature or 1)).softmax(0).tolist()
    for i, weight in zip(best.indices.tolist(), weights):
        longer = (rows, temperature, top_k, prefix + ABC.itos[i], max_length)
        for name, p in (exact(*longer) if i else {prefix: 1.0}).items():
            chances[name] = p * weight
    return chances


MODELS = {"untrained": table(1, 0.01), "trained": table(), "peaked": table(3, 6.0)}
MODELS["with zeros"] = table().masked_fill(table(seed=1) > 1, -inf)
OPTIONS = [{"temperature": t} for t in (0, 0.5, 3, 1e4)] + [{}, {"max_length": 1}]
OPTIONS += [{"top_k": k, "temperature": t} for k in (1, 2, 4, 5) for t in (0.7, 1.0)]
OPTIONS += [{"prefix": p, "max_length": 3 + m} for p in ("b", "cab") for m in (0, 2)]


@pytest.mark.parametrize("rows", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_names_are_drawn_with_their_exact_probabilities(rows, options):
    options = {"max_length": 3} | options
    names, chances = draw(rows, 6000, rows.ndim - 1, **options), exact(rows, **options)
    assert type(names) is list and len(names) == 6000, "as many names as asked for"
    assert_frequencies(Counter(names), chances, "a batch of names")
    both = {(one, two): p * q for (one, p), (two, q) in product(chances.items(), repeat=2)}
    assert_frequencies(Counter(zip(names[::2], names[1::2])), both, "neighbours depend")


def test_a_large_vocabulary_is_drawn_evenly_whatever_the_precision():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        names = draw(torch.zeros(len(LARGE), dtype=dtype), 4000, vocab=LARGE, max_length=1)
        drawn = Counter(LARGE.stoi[name or "."] % 8 for name in names)
        assert_frequencies(drawn, dict.fromkeys(range(8), 1 / 8), f"id % 8 in {dtype}")


HALF, HOT = [0, -inf, 1, -inf, 2], (1e4, 1e39, 1e308)
EXTREME = [([-3, 2, 2.5, -8, 1], {"temperature": t}, "b") for t in (1e-4, 1e-42, 5e-324)]
EXTREME += [([-9, 4, 0, 5, 1], {"temperature": t}, ".abcd") for t in HOT]
EXTREME += [(HALF, {"temperature": t}, ".bd") for t in (1, *HOT)]
EXTREME += [(HALF, {"top_k": k}, ".bd") for k in (3, 4, 5)]
EXTREME += [([-s, s, -s, s, 0], {}, "ac") for s in (1e4, 1e30, 3e38)]
EXTREME += [([1] * 5, {"top_k": k}, k) for k in (1, 2, 4)] + [([1] * 5, {"temperature": 0}, 1)]


@pytest.mark.parametrize("logits, options, drawn", EXTREME)
def test_extreme_logits_do_not_overflow_or_let_zeros_in(logits, options, drawn):
    for dtype in (torch.float32, torch.float64):
        names = draw(torch.tensor(logits, dtype=dtype), 300, max_length=1, **options)
        seen = {name or "." for name in names}
        assert len(seen) == drawn if isinstance(drawn, int) else seen == {*drawn}


def test_no_random_number_draws_the_impossible(monkeypatch):
    for u in (0.0, 1 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda *size, u=u, **_: torch.full(size, u))
        names = draw(torch.tensor([-inf, -inf, 0.0, 1.3, -inf]), max_length=1)
        assert {*names} <= {*"bc"}, f"{u} drew a probability of 0"


@pytest.mark.parametrize("device, answers_on", product(DEVICES, DEVICES))
def test_names_beyond_ascii_are_spelled_on_the_generator_s_device(device, answers_on):
    wanted, seen = "".join(LETTERS.itos[1:]), []
    follow = torch.eye(len(LETTERS)).roll(1, 1).log()  # each letter, then the next one

    def model(contexts):
        seen.append(contexts)
        return follow[contexts[:, -1].cpu()].to(answers_on)

    options = {"prefix": wanted[:2], "generator": torch.Generator(device)}
    for number, temperature in product((0, 1, 3), (0, 1.0)):
        with torch.device("meta"):  # the default device must not matter
            names = draw(model, number, 2, LETTERS, temperature=temperature, **options)
        assert names == [wanted] * number, "one id is one character, to the end"
    assert {contexts.device.type for contexts in seen} == {device}, "wrong device"
    assert min(map(len, seen)) > 0, "a model may not be able to take a batch of 0"


@pytest.mark.parametrize("prefix, limit", [("", 1), ("", 7), ("a", 99), ("abc", 3)])
@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_model_is_asked_about_just_the_names_that_go_on(size, prefix, limit):
    rows, seen, options = table(size, 0.8, seed=2), [], {"prefix": prefix, "max_length": limit}
    names = draw(lambda x: seen.append(x) or rows[tuple(x.T)], 200, size, **options)
    for known, contexts in enumerate(seen, start=len(prefix)):
        running = [name for name in names if len(name) >= known]
        expected = [("." * size + name[:known])[-size:] for name in running]
        assert contexts.dtype == torch.int64 and contexts.shape == (len(running), size)
        assert [ABC.decode(row) for row in contexts] == expected, "wrong contexts"
    steps = min(max(map(len, names)) + 1, limit) - len(prefix)
    assert len(seen) == steps, "one forward a character, and none for no names"
    cut = [name[:limit] for name in draw(EVEN, 400, prefix=prefix, max_length=120)]
    assert draw(EVEN, 400, **options) == cut, "max_length must only cut names"


def test_defaults_and_each_draw_comes_from_the_generator_or_the_global_seed():
    default = {"temperature": 1.0, "top_k": None, "prefix": "", "max_length": 30}
    assert draw(table(), 200) == draw(table(), 200, **default), f"must be {default}"
    assert {*map(len, draw(torch.tensor([-inf, 1, 0, 0, 1])))} == {30}, "not 30 by default"
    state, generator = torch.get_rng_state(), torch.Generator().manual_seed(5)
    one = draw(table(), 50, generator=generator)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert one != draw(table(), 50, generator=generator), "go on, do not start again"
    assert one == draw(table(), 50, generator=generator.manual_seed(5)), "the seed must fix them"
    assert one != draw(table(), 50), "the seed must matter"
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
