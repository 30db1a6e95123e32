"""The helper, property by property: files to names, names to tensors, logits to names."""

import math
import random
import unicodedata
from collections import Counter
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch

from charlm_utils import Vocabulary, build_dataset, load_names, sample_names, split_names

BOM = b"\xef\xbb\xbf"
# Letters of one to four bytes in UTF-8; the last lies beyond the 65,536 that two bytes can number.
LETTERS = "abcxyz-'’éßñøжяあ中\U00010428"
INF, NAN = math.inf, math.nan


@contextmanager
def refusal(*mentions, error=ValueError):
    """The block must raise `error`, and the message must hold each of `mentions`."""
    try:
        yield
    except Exception as caught:
        raised = caught
    else:
        pytest.fail(f"nothing was raised: this must be refused with a {error.__name__}")
    assert isinstance(raised, error), (
        f"this must be refused with a {error.__name__}, not with {type(raised).__name__}: {raised}"
    )
    for mention in mentions:
        assert str(mention).lower() in str(raised).lower(), (
            f"the message should tell the reader about {mention!r}, but reads: {raised}"
        )


@pytest.fixture
def write(tmp_path):
    """A function that writes bytes, or text as UTF-8, to a file and returns its path."""

    def write(content):
        path = tmp_path / "some_names.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


# load_names


def test_names_come_in_the_order_of_the_file(write):
    assert load_names(write("olivia\nava\nemma\n")) == ["olivia", "ava", "emma"], (
        "load_names must keep the order of the lines"
    )


def test_a_path_may_be_a_string_or_a_path(write):
    path = write("emma\n")
    assert load_names(str(path)) == load_names(Path(path)) == ["emma"], "both kinds of path must do"


@pytest.mark.parametrize(
    "content, what",
    [
        (b"emma\nava", "a last line without a line end is a name like any other"),
        (BOM + b"emma\nava\n", "a byte order mark at the start is no part of the first name"),
        (b"emma\r\nava\r\n", "CRLF ends a line as LF does; no '\\r' stays in a name"),
        (BOM + b"emma\r\nava", "byte order mark, CRLF and a missing last line end go together"),
        (b"\n\nemma\n   \n\t\n\r\nava\n\n", "blank lines are ignored, wherever they stand"),
        (b"  emma\nava \t\r\n", "white space at the ends of a line is ignored"),
        ("\u00a0emma\u00a0\n\u3000ava\n".encode(), "so is white space beyond ASCII"),
        (b"Emma\nAVA\n", "case is folded to lower"),
    ],
)
def test_a_file_is_read_whatever_wrote_it(write, content, what):
    assert load_names(write(content)) == ["emma", "ava"], what


def test_names_with_accents_hyphens_and_apostrophes_are_names(write):
    names = [
        "josé",
        "zoë",
        "łukasz",
        "anne-marie",
        "d'arcy",
        "d’arcy",
        "жанна",
        "さくら",
        "अमिता",
        "x\u0302ena",
    ]
    assert load_names(write("\n".join(names).upper())) == names, (
        "names are not ASCII only; marks, such as vowel signs and accents, belong to their letters"
    )


def test_an_accent_is_the_same_letter_however_it_was_typed(write):
    one, two = "josé", unicodedata.normalize("NFD", "josé")
    assert one != two
    assert load_names(write(f"{one}\n{two}\n")) == [one], (
        "'é' as one character and as 'e' and an accent must become the same name (NFC)"
    )


def test_unique_keeps_the_first_of_equal_names(write):
    path = write("charlie\nemma\nCharlie\nava\n emma\n")
    assert load_names(path) == ["charlie", "emma", "ava"], (
        "by default each name stands once, where it stood first, after case and spaces are gone"
    )
    assert load_names(path, unique=True) == load_names(path), "unique=True must be the default"


def test_without_unique_every_line_stays(write):
    path = write("charlie\nemma\nCharlie\nava\n emma\n")
    assert load_names(path, unique=False) == ["charlie", "emma", "charlie", "ava", "emma"], (
        "unique=False must keep repeats, in the order of the file"
    )


def test_the_project_s_own_file_of_names_is_read():
    path = Path(__file__).parents[1] / "names.txt"
    every, unique = load_names(path, unique=False), load_names(path)
    assert every[:3] == ["emma", "olivia", "ava"], "names.txt begins with the most frequent names"
    assert len(unique) == len(set(every)) < len(every), "names.txt holds repeats; load drops them"
    assert set("".join(unique)) == set("abcdefghijklmnopqrstuvwxyz"), "names.txt holds a to z only"


def test_a_missing_file_is_refused_by_its_path(tmp_path):
    path = tmp_path / "nowhere.txt"
    with refusal(path, "one name a line", error=FileNotFoundError):
        load_names(path)


def test_a_directory_is_no_file_of_names(tmp_path):
    with refusal(tmp_path, "one name a line", error=FileNotFoundError):
        load_names(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", BOM, BOM + b"\n"])
def test_a_file_without_names_is_refused(write, content):
    path = write(content)
    with refusal(path, "no names", "one name a line"):
        load_names(path)


@pytest.mark.parametrize("start", [b"", BOM], ids=["without BOM", "with BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("line", [1, 2, 3, 7])
def test_bytes_that_are_not_utf_8_are_refused_with_their_line(write, start, end, line):
    # A bad byte at the very start of its line: one line too few is the easy mistake with a BOM.
    path = write(start + (b"emma" + end) * (line - 1) + b"\xe9va" + end + b"ava" + end)
    with refusal(path, f"line {line}:", "UTF-8", "save"):
        load_names(path)


def test_a_file_in_utf_16_is_refused(write):
    path = write("emma\nava\n".encode("utf-16"))
    with refusal(path, "line 1:", "UTF-8"):
        load_names(path)


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["without BOM", "with BOM"])
@pytest.mark.parametrize("character", list('.,;7_\t "?<*\x00\ufeff\u200b\u2028') + ["😀", "\r"])
def test_a_character_that_is_in_no_name_is_refused_with_its_line(write, start, character):
    path = write(f"{start}emma\n\nol{character}ivia\nava\n")
    with refusal(path, "line 3:", repr(character), "one name", "mend"):
        load_names(path)


def test_the_first_bad_line_is_the_one_that_is_named(write):
    with refusal("line 2:", "'1'"):
        load_names(write("emma\nav1a\nava\nem2ma\n"))


# split_names


def numbered_names(count):
    return [f"name{i}" for i in range(count)]


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.7, 0.2, 0.1), [0.1, 0.2, 0.7]])
@pytest.mark.parametrize("count", [12, 97, 1000])
def test_a_split_is_disjoint_and_covers_everything(count, fractions):
    names = numbered_names(count)
    parts = split_names(names, fractions, seed=3)
    assert isinstance(parts, tuple) and len(parts) == 3, "a split has a train, dev and test part"
    assert all(isinstance(part, list) for part in parts), "each part is a list of names"
    assert Counter(sum(parts, [])) == Counter(names), "each name must land in exactly one part"
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * count) <= 1, (
            f"a part of {fraction} of {count} names must not have {len(part)}"
        )


@pytest.mark.parametrize(
    "count, sizes", [(10, (8, 1, 1)), (100, (80, 10, 10)), (1000, (800, 100, 100))]
)
def test_by_default_the_parts_are_eighty_ten_and_ten_percent(count, sizes):
    parts = split_names(numbered_names(count), seed=0)
    assert tuple(map(len, parts)) == sizes, "the default fractions are 0.8, 0.1 and 0.1"


def test_fractions_that_make_1_but_for_rounding_are_taken():
    parts = split_names(numbered_names(9), (1 / 3, 1 / 3, 1 / 3), seed=0)
    assert [len(part) for part in parts] == [3, 3, 3], "three thirds are a whole"
    assert sum((0.7, 0.2, 0.1)) != 1, "0.7 + 0.2 + 0.1 is 0.9999999999999999"
    parts = split_names(numbered_names(10), (0.7, 0.2, 0.1), seed=0)
    assert [len(part) for part in parts] == [7, 2, 1], "compare the sum with 1 by math.isclose"


def test_repeated_names_all_stay_in_a_split():
    names = ["emma"] * 7 + ["ava"] * 5
    assert Counter(sum(split_names(names, seed=1), [])) == Counter(names), (
        "split_names cuts the list as it is: it neither drops nor doubles a repeated name"
    )


def test_one_seed_gives_one_split_and_another_seed_another():
    names = numbered_names(100)
    assert split_names(names, seed=1) == split_names(names, seed=1), "a seed must fix the split"
    assert split_names(names, seed=1) != split_names(names, seed=2), "the seed must matter"


def test_a_split_is_shuffled_and_not_cut_from_the_sorted_list():
    names = numbered_names(1000)
    train, dev, test = split_names(names, seed=0)
    for part in (train, dev, test):
        mean = sum(map(names.index, part)) / len(part)
        assert abs(mean - 499.5) < 120, (
            "each part must be drawn from the whole list: the file is sorted by frequency"
        )


def test_a_split_leaves_its_input_and_the_global_generator_alone():
    names = numbered_names(50)
    before, state = list(names), torch.get_rng_state()
    split_names(names, seed=1)
    assert names == before, "the list that is passed in must keep its order"
    assert torch.equal(torch.get_rng_state(), state), "splitting must not use the global generator"


@pytest.mark.parametrize(
    "fractions",
    [
        (0.8, 0.1, 0.2),
        (0.8, 0.1, 0.0999),
        (80, 10, 10),
        (NAN, 0.5, 0.5),
        (0.5, NAN, 0.5),
        (0.5, 0.5, NAN),
        (1.2, -0.1, -0.1),
        (-0.5, 1.0, 0.5),
        (0.5, 0.5, 0.0),
        (INF, 0.1, 0.1),
        (0.5, 0.5),
        (0.4, 0.3, 0.2, 0.1),
        (),
    ],
)
def test_fractions_that_are_not_three_positive_parts_of_1_are_refused(fractions):
    with refusal("fractions", "three", "positive", "sum", fractions):
        split_names(numbered_names(100), fractions, seed=0)


@pytest.mark.parametrize(
    "count, fractions",
    [
        (0, (0.8, 0.1, 0.1)),
        (2, (0.8, 0.1, 0.1)),
        (3, (0.98, 0.01, 0.01)),
        (20, (0.001, 0.5, 0.499)),
    ],
)
def test_a_split_that_would_leave_a_part_empty_is_refused(count, fractions):
    with refusal(f"{count} names", "empty", "more names", fractions):
        split_names(numbered_names(count), fractions, seed=0)


# Vocabulary


def test_the_boundary_is_id_0_and_the_characters_follow_in_order():
    vocab = Vocabulary.from_names(["emma", "ava"])
    assert list(vocab.itos) == [".", "a", "e", "m", "v"], "'.' first, then the sorted characters"
    assert vocab.stoi == {".": 0, "a": 1, "e": 2, "m": 3, "v": 4}, "stoi is the inverse of itos"
    assert len(vocab) == 5, "the boundary counts as a token"


def test_the_boundary_is_id_0_even_where_other_characters_sort_before_it():
    vocab = Vocabulary.from_names(["anne-marie", "d'arcy"])  # "'" and "-" sort before "."
    assert vocab.stoi["."] == 0 and vocab.itos[0] == ".", "'.' is id 0, whatever sorts before it"


def test_a_vocabulary_depends_on_the_characters_and_not_on_the_order_of_the_names():
    one, two = Vocabulary.from_names(["emma", "ava"]), Vocabulary.from_names(iter(["vae", "m"]))
    assert one.itos == two.itos, "the same characters must get the same ids"


def test_encode_and_decode_undo_each_other():
    vocab = Vocabulary.from_names([LETTERS])
    ids = vocab.encode(LETTERS + "." + LETTERS[::-1])
    assert all(isinstance(i, int) for i in ids), "encode gives a list of ints"
    assert vocab.decode(ids) == LETTERS + "." + LETTERS[::-1], "decode must undo encode"
    assert vocab.encode(vocab.decode(range(len(vocab)))) == list(range(len(vocab)))
    assert vocab.encode("") == [] and vocab.decode([]) == "", "nothing becomes nothing"


def test_decode_takes_a_tensor_of_ids():
    vocab = Vocabulary.from_names(["emma"])
    assert vocab.decode(torch.tensor(vocab.encode("emma."))) == "emma.", "a row of X is a tensor"


def test_a_boundary_inside_a_name_is_refused_by_the_vocabulary():
    with refusal("'.'", "inside", "remove"):
        Vocabulary.from_names(["emma", "a.va"])


@pytest.mark.parametrize("names", [[], [""], ["", ""]])
def test_a_vocabulary_of_nothing_is_refused(names):
    with refusal("vocabulary", "at least one name"):
        Vocabulary.from_names(names)


@pytest.mark.parametrize("character", ["z", "A", "é", "\U00010428", " "])
def test_an_unknown_character_is_refused_by_encode(character):
    vocab = Vocabulary.from_names(["emma"])
    with refusal(repr(character), repr("em" + character), "vocabulary", ".aem"):
        vocab.encode("em" + character)


@pytest.mark.parametrize("bad", [-1, 4, 1000])
def test_an_id_out_of_range_is_refused_by_decode(bad):
    vocab = Vocabulary.from_names(["emma"])  # 0 to 3
    with refusal("0 to 3", bad):
        vocab.decode([1, bad, 2])


# build_dataset


def double_loop(names, vocab, context_size):
    """The definition of the data set: for each character of each name, what stood before it."""
    X, Y = [], []
    for name in names:
        context = [0] * context_size
        for character in name + ".":
            X.append(context)
            Y.append(vocab.stoi[character])
            context = context[1:] + [vocab.stoi[character]]
    return (
        torch.tensor(X, dtype=torch.int64).reshape(len(Y), context_size),
        torch.tensor(Y, dtype=torch.int64),
    )


def assert_same_data(names, vocab, context_size):
    X, Y = build_dataset(names, vocab, context_size)
    X_loop, Y_loop = double_loop(names, vocab, context_size)
    where = f"of {names!r} with context_size {context_size}"
    assert X.dtype == Y.dtype == torch.int64, f"X and Y {where} hold ids: int64"
    assert X.shape == X_loop.shape, f"X {where} has shape {tuple(X.shape)}, {X_loop.shape} is right"
    assert Y.shape == Y_loop.shape, f"Y {where} has shape {tuple(Y.shape)}, {Y_loop.shape} is right"
    assert torch.equal(Y, Y_loop), f"Y {where} is {Y.tolist()}, the loop gives {Y_loop.tolist()}"
    assert torch.equal(X, X_loop), f"X {where} is {X.tolist()}, the loop gives {X_loop.tolist()}"


def test_the_windows_of_emma_are_those_of_the_table():
    vocab = Vocabulary.from_names(["emma"])
    X, Y = build_dataset(["emma"], vocab, 3)
    rows = [f"{vocab.decode(x)} -> {vocab.decode([y])}" for x, y in zip(X, Y, strict=True)]
    assert rows == ["... -> e", "..e -> m", ".em -> m", "emm -> a", "mma -> ."], (
        "each row holds the characters before the target, the nearest last, padded with '.'"
    )


@pytest.mark.parametrize("context_size", range(1, 13))
def test_the_data_set_equals_the_double_loop_on_random_names(context_size):
    draw = random.Random(context_size)
    vocab = Vocabulary.from_names([LETTERS])
    for _ in range(40):
        longest = draw.choice([1, 2, 5, 15])
        names = [
            "".join(draw.choices(LETTERS, k=draw.randint(0, longest)))
            for _ in range(draw.randint(0, 8))
        ]
        assert_same_data(names, vocab, context_size)


@pytest.mark.parametrize("context_size", [1, 2, 3, 12])
@pytest.mark.parametrize(
    "names",
    [[], [""], ["", "", ""], ["a"], ["a", "b", "c"], ["", "ab", ""], ["abc" * 20], ("ab", "c")],
)
def test_the_data_set_equals_the_double_loop_at_the_edges(names, context_size):
    assert_same_data(names, Vocabulary.from_names(["abc"]), context_size)


def test_a_data_set_may_use_fewer_characters_than_the_vocabulary_has():
    assert_same_data(["c", "ab"], Vocabulary.from_names([LETTERS]), 3)


def test_the_names_do_not_look_into_each_other():
    vocab = Vocabulary.from_names(["abcdefgh"])
    names = ["abc", "d", "", "efgh", "a"]
    X, Y = build_dataset(names, vocab, 5)
    alone = [build_dataset([name], vocab, 5) for name in names]
    assert torch.equal(X, torch.cat([x for x, _ in alone])), (
        "a context must end where its name begins"
    )
    assert torch.equal(Y, torch.cat([y for _, y in alone])), (
        "targets must not depend on other names"
    )


def test_x_and_y_can_be_changed_without_touching_each_other():
    vocab = Vocabulary.from_names(["emma"])
    X, Y = build_dataset(["emma"], vocab, 3)
    expected, targets = X.clone(), Y.clone()
    X[2, 1] = expected[2, 1] = 77
    assert torch.equal(X, expected), "rows of X share memory: a view of overlapping windows got out"
    assert torch.equal(Y, targets), "X and Y share memory"


@pytest.mark.parametrize("context_size", [0, -1, 1.5, 3.0, "3", None, True, NAN])
def test_a_context_size_that_is_not_a_whole_number_from_1_is_refused(context_size):
    vocab = Vocabulary.from_names(["emma"])
    with refusal("context_size", "at least 1", repr(context_size)):
        build_dataset(["emma"], vocab, context_size)
    with refusal("context_size", "at least 1", repr(context_size)):
        sample_names(constant([0.0] * 4), vocab, context_size, 1)


@pytest.mark.parametrize("names", [["emma", "em.ma"], [".emma"], ["emma."], ["."]])
def test_a_boundary_inside_a_name_is_refused_by_the_data_set(names):
    with refusal("'.'", repr(names[-1]), "remove"):
        build_dataset(names, Vocabulary.from_names(["emma"]), 3)


@pytest.mark.parametrize("character", ["A", "b", "z", "é", "\U00010428"])
def test_an_unknown_character_is_refused_by_the_data_set(character):
    with refusal(repr(character), repr(f"em{character}a"), "vocabulary"):
        build_dataset(["emma", f"em{character}a", "am"], Vocabulary.from_names(["emma"]), 3)


def test_a_boundary_is_not_hidden_by_a_name_that_is_missing():
    with refusal("'.'", "'a.m'"):  # as many boundaries as names would have had without it
        build_dataset(["a.m", ""], Vocabulary.from_names(["emma"]), 3)


# sample_names: what is drawn


ABC = Vocabulary.from_names(["abcd"])  # five tokens: . a b c d


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def constant(logits, dtype=torch.float32):
    """A model that answers every context with the same logits."""
    row = torch.tensor(logits, dtype=dtype)
    return lambda contexts: row.repeat(len(contexts), 1)


def table(context_size, seed=0, scale=1.5):
    """A model of ABC with a random row of logits for each context of `context_size` tokens."""
    rows = scale * torch.randn([5] * (context_size + 1), generator=seeded(seed))
    return lambda contexts: rows[tuple(contexts.T)]


class Recorder:
    """A model that keeps copies of the contexts it was asked about."""

    def __init__(self, model):
        self.model, self.contexts = model, []

    def __call__(self, contexts):
        self.contexts.append(contexts.clone())
        return self.model(contexts)


def assert_frequencies(observed, probabilities, what):
    """Counts must fit probabilities: chi-square within five standard deviations of its mean."""
    total = sum(observed.values())
    impossible = [cell for cell in observed if probabilities.get(cell, 0) == 0]
    assert not impossible, f"{what}: {impossible!r} cannot be drawn, but were"
    cells = {cell: p for cell, p in probabilities.items() if p > 0}
    chi2 = sum((observed.get(cell, 0) - total * p) ** 2 / (total * p) for cell, p in cells.items())
    freedom = max(1, len(cells) - 1)
    drawn = {cell: round(observed.get(cell, 0) / total, 4) for cell in cells}
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom), (
        f"{what}: drawn with frequencies {drawn}, the probabilities are {cells}"
    )


def test_the_result_is_a_list_of_as_many_strings_as_asked_for():
    names = sample_names(table(2), ABC, 2, 37, generator=seeded())
    assert isinstance(names, list) and len(names) == 37, "count names, in a list"
    assert all(isinstance(name, str) for name in names), "names are strings"
    assert set("".join(names)) <= set("abcd"), "a name holds characters, never the boundary"


def test_a_count_of_0_gives_no_names():
    assert sample_names(table(2), ABC, 2, 0) == [], "no names, and no error"
    assert sample_names(table(2), ABC, 2, 0, prefix="ab", generator=seeded()) == []


LOGITS = [0.3, 1.1, -0.7, 0.0, 2.0]


@pytest.mark.parametrize("top_k", [None, 1, 2, 4, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1, 3.0])
def test_characters_are_drawn_from_the_softmax_of_the_logits(temperature, top_k):
    options = {"temperature": temperature, "top_k": top_k, "generator": seeded()}
    names = sample_names(constant(LOGITS), ABC, 2, 10_000, max_length=1, **options)
    kept = sorted(range(5), key=LOGITS.__getitem__)[-(top_k or 5) :]
    weights = {i: math.exp(LOGITS[i] / temperature) for i in kept}
    expected = {ABC.itos[i]: w / sum(weights.values()) for i, w in weights.items()}
    assert_frequencies(
        Counter(name or "." for name in names),
        expected,
        f"softmax(logits / {temperature}) among the top {top_k}",
    )


def test_by_default_temperature_is_1_and_nothing_is_cut():
    names = sample_names(constant(LOGITS), ABC, 2, 10_000, max_length=1, generator=seeded())
    p = torch.tensor(LOGITS, dtype=torch.float64).softmax(0).tolist()
    expected = dict(zip(ABC.itos, p, strict=True))
    assert_frequencies(Counter(name or "." for name in names), expected, "softmax(logits)")


def test_a_model_with_known_probabilities_is_reproduced_name_by_name():
    """The probability of a whole name is the product over its characters and its end."""
    vocab = Vocabulary.from_names(["abc"])
    logits = torch.randn(4, 4, 4, generator=seeded(4))
    p = logits.double().softmax(2)
    names = sample_names(
        lambda contexts: logits[contexts[:, 0], contexts[:, 1]],
        vocab,
        2,
        20_000,
        generator=seeded(),
    )
    expected = {}
    for length in range(4):
        for letters in product("abc", repeat=length):
            ids, probability = [0, 0, *vocab.encode("".join(letters)), 0], 1.0
            for i in range(2, len(ids)):
                probability *= float(p[ids[i - 2], ids[i - 1], ids[i]])
            expected["".join(letters)] = probability
    expected["longer"] = 1 - sum(expected.values())
    observed = Counter(name if len(name) < 4 else "longer" for name in names)
    assert_frequencies(observed, expected, "names from a table of contexts of two")


def test_a_bigram_table_is_reproduced_transition_by_transition():
    p = torch.tensor(
        [
            [0.1, 0.4, 0.2, 0.2, 0.1],
            [0.3, 0.0, 0.5, 0.1, 0.1],
            [0.2, 0.3, 0.3, 0.0, 0.2],
            [0.6, 0.1, 0.1, 0.1, 0.1],
            [0.2, 0.2, 0.2, 0.2, 0.2],
        ]
    )
    logits = p.log()  # log 0 = -inf: never drawn
    names = sample_names(
        lambda contexts: logits[contexts[:, -1]], ABC, 3, 5000, max_length=200, generator=seeded(1)
    )
    seen = {character: Counter() for character in ABC.itos}
    for name in names:
        for now, then in zip("." + name, name + ".", strict=True):
            seen[now][then] += 1
    for now, row in zip(ABC.itos, p.tolist(), strict=True):
        expected = dict(zip(ABC.itos, row, strict=True))
        assert_frequencies(seen[now], expected, f"what follows {now!r} in a bigram table")


def test_draws_in_one_batch_do_not_depend_on_each_other():
    names = sample_names(constant([0.0] * 5), ABC, 1, 10_000, max_length=1, generator=seeded(3))
    tokens = [name or "." for name in names]
    pairs = Counter(zip(tokens[::2], tokens[1::2], strict=True))
    assert_frequencies(pairs, dict.fromkeys(product(ABC.itos, repeat=2), 1 / 25), "neighbours")


def test_a_logit_of_minus_infinity_is_never_drawn_at_any_temperature():
    model = constant([0.0, -INF, 1.0, -INF, 2.0])
    for temperature in (0, 1e-3, 1.0, 100.0, 1e39, 1e308):
        for top_k in (None, 1, 3, 4, 5):
            names = sample_names(
                model, ABC, 2, 300, temperature=temperature, top_k=top_k, generator=seeded()
            )
            assert set("".join(names)) <= {"b", "d"}, (
                f"a character of probability 0 was drawn (temperature {temperature}, top_k {top_k})"
            )


# sample_names: temperature and top_k


@pytest.mark.parametrize("seed", range(5))
def test_temperature_0_takes_the_most_likely_character(seed):
    model = table(2, seed=seed)
    names = sample_names(model, ABC, 2, 3, temperature=0, max_length=12, generator=seeded())
    ids = [0, 0]
    while len(ids) < 2 + 12:
        ids.append(int(model(torch.tensor([ids[-2:]])).argmax()))
        if ids[-1] == 0:
            break
    greedy = ABC.decode(ids[2:]).rstrip(".")
    assert names == [greedy] * 3, "temperature 0 must follow the largest logit, for every name"


@pytest.mark.parametrize("seed", range(5))
def test_top_k_of_1_equals_temperature_0(seed):
    model = table(2, seed=seed)
    greedy = sample_names(model, ABC, 2, 4, temperature=0, generator=seeded())
    for temperature in (0.3, 1.0, 50.0):
        names = sample_names(
            model, ABC, 2, 4, temperature=temperature, top_k=1, generator=seeded(seed)
        )
        assert names == greedy, "with one character to choose from, the choice is the most likely"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-4, 1e-10, 1e-38, 1e-42, 1e-50, 1e-300, 5e-324])
def test_a_tiny_temperature_gives_the_most_likely_character_and_no_nan(temperature, dtype):
    model = constant([-3.0, 2.0, 2.5, -8.0, 1.0], dtype)
    names = sample_names(
        model, ABC, 2, 20, temperature=temperature, max_length=3, generator=seeded()
    )
    assert names == ["bbb"] * 20, (
        "dividing by a tiny temperature must neither overflow nor turn it into 0 (0 / 0 is NaN)"
    )


@pytest.mark.parametrize("temperature", [1e4, 1e30, 1e39, 1e308])
def test_a_high_temperature_approaches_the_uniform_distribution(temperature):
    model = constant([-9.0, 4.0, 0.0, 5.0, 1.0])
    names = sample_names(
        model, ABC, 2, 10_000, max_length=1, temperature=temperature, generator=seeded()
    )
    expected = dict.fromkeys(ABC.itos, 1 / 5)
    assert_frequencies(Counter(n or "." for n in names), expected, f"temperature {temperature}")


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_large_logits_do_not_overflow(size):
    model = constant([-size, size, -size, size, 0.0])
    names = sample_names(model, ABC, 2, 200, max_length=1, generator=seeded())
    assert set(names) == {"a", "c"}, "softmax must subtract the largest logit first"


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5])
def test_of_equal_logits_exactly_top_k_stay(top_k):
    names = sample_names(
        constant([1.0] * 5), ABC, 2, 500, top_k=top_k, max_length=1, generator=seeded()
    )
    assert len(set(names)) == top_k, "a tie at the border must not let more than top_k through"


@pytest.mark.parametrize("temperature", [-1, -1e-9, -INF, INF, NAN])
def test_a_temperature_that_is_not_a_finite_number_from_0_is_refused(temperature):
    with refusal("temperature", "at least 0", temperature):
        sample_names(table(2), ABC, 2, 3, temperature=temperature)


@pytest.mark.parametrize("top_k", [0, -1, 6, 100, 1.5, 2.0, "2", NAN, True])
def test_a_top_k_out_of_range_is_refused(top_k):
    with refusal("top_k", "between 1 and 5", repr(top_k)):
        sample_names(table(2), ABC, 2, 3, top_k=top_k)


@pytest.mark.parametrize("count", [-1, -100, 2.5, 3.0, "3", None, NAN, True])
def test_a_count_that_is_not_a_whole_number_from_0_is_refused(count):
    with refusal("count", "at least 0", repr(count)):
        sample_names(table(2), ABC, 2, count)


# sample_names: prefix and length


@pytest.mark.parametrize("prefix", ["a", "ab", "abcdabcd"])
@pytest.mark.parametrize("context_size", [1, 2, 4])
def test_a_prefix_is_kept_and_seen_by_the_model(prefix, context_size):
    model = Recorder(table(context_size))
    names = sample_names(model, ABC, context_size, 50, prefix=prefix, generator=seeded())
    assert all(name.startswith(prefix) for name in names), "every name begins with the prefix"
    assert len(set(names)) > 1, "what follows the prefix is drawn"
    padded = "." * context_size + prefix
    assert {ABC.decode(row) for row in model.contexts[0]} == {padded[-context_size:]}, (
        "the first context is the end of the prefix"
    )


def test_a_name_may_end_right_after_its_prefix_or_be_empty():
    ends = constant([5.0, -INF, -INF, -INF, -INF])
    assert sample_names(ends, ABC, 2, 2, prefix="ab") == ["ab", "ab"], "'.' ends the name: 'ab'"
    assert sample_names(ends, ABC, 2, 2) == ["", ""], "'.' at once is the empty name"


@pytest.mark.parametrize("max_length", [1, 2, 7, 40])
@pytest.mark.parametrize("prefix", ["", "b"])
def test_a_model_that_never_ends_a_name_is_cut_at_max_length_prefix_included(max_length, prefix):
    endless = Recorder(constant([-INF, 1.0, 0.0, 0.0, 1.0]))
    names = sample_names(
        endless, ABC, 3, 5, prefix=prefix, max_length=max_length, generator=seeded()
    )
    assert [len(name) for name in names] == [max_length] * 5, "max_length counts the prefix too"
    assert len(endless.contexts) == max_length - len(prefix), "one forward a character, no more"


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 2}, {"prefix": "ab"}])
def test_sampling_ends_without_being_told_a_max_length(options):
    names = sample_names(constant([-INF, 1.0, 0.0, 0.0, 1.0]), ABC, 3, 4, **options)
    assert len(names) == 4, "the default max_length must end every name"
    assert all(len(name) >= 15 for name in names), "the default must leave room for real names"


def test_max_length_only_cuts_and_changes_nothing_shorter():
    short = sample_names(constant([0.0] * 5), ABC, 2, 400, max_length=3, generator=seeded())
    names = sample_names(constant([0.0] * 5), ABC, 2, 400, max_length=30, generator=seeded())
    assert short == [name[:3] for name in names], "a limit cuts names, it does not change them"
    assert {len(name) for name in short} == {0, 1, 2, 3}, "names of all lengths up to the limit"


def test_a_prefix_as_long_as_max_length_comes_back_as_it_is():
    assert sample_names(table(2), ABC, 2, 3, prefix="abc", max_length=3) == ["abc"] * 3


@pytest.mark.parametrize("max_length", [2, -1, 3.5, "9", None])
def test_a_max_length_that_does_not_hold_the_prefix_is_refused(max_length):
    with refusal("max_length", "at least 3", repr(max_length)):
        sample_names(table(2), ABC, 2, 3, prefix="abc", max_length=max_length)


@pytest.mark.parametrize("character", ["A", "z", "é", " ", "\U00010428"])
def test_a_prefix_with_an_unknown_character_is_refused(character):
    with refusal(repr(character), repr("a" + character), "vocabulary", ".abcd"):
        sample_names(table(2), ABC, 2, 3, prefix="a" + character)


@pytest.mark.parametrize("prefix", [".", "a.", ".a", "a.b"])
def test_a_prefix_with_a_boundary_is_refused(prefix):
    with refusal("prefix", "'.'", repr(prefix)):
        sample_names(table(2), ABC, 2, 3, prefix=prefix)


def test_names_beyond_ascii_are_sampled_character_by_character():
    vocab = Vocabulary.from_names([LETTERS])
    wanted = LETTERS + "."
    follow = torch.full((len(vocab), len(vocab)), -INF)
    for now, then in zip("." + LETTERS, wanted, strict=True):
        follow[vocab.stoi[now], vocab.stoi[then]] = 0.0
    names = sample_names(lambda contexts: follow[contexts[:, -1]], vocab, 2, 3)
    assert names == [LETTERS] * 3, "one id is one character, however many bytes it takes"


# sample_names: the generator


def test_one_generator_seed_gives_one_result_whatever_the_global_seed():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = sample_names(table(2), ABC, 2, 50, generator=seeded(5))
        torch.manual_seed(2)
        two = sample_names(table(2), ABC, 2, 50, generator=seeded(5))
    assert one == two, "every draw must come from the generator that was given"
    assert one != sample_names(table(2), ABC, 2, 50, generator=seeded(6)), "the seed must matter"


def test_a_generator_goes_on_where_it_stood():
    generator = seeded(5)
    one = sample_names(table(2), ABC, 2, 50, generator=generator)
    assert one != sample_names(table(2), ABC, 2, 50, generator=generator), (
        "the second call must go on drawing, not start again from the seed"
    )


def test_the_global_generator_is_left_alone_where_a_generator_is_given():
    state = torch.get_rng_state()
    sample_names(table(2), ABC, 2, 50, top_k=3, prefix="a", generator=seeded())
    assert torch.equal(torch.get_rng_state(), state), "sampling must not use the global generator"


def test_without_a_generator_the_global_seed_decides():
    def names(seed):
        torch.manual_seed(seed)
        return sample_names(table(2), ABC, 2, 50)

    with torch.random.fork_rng():
        assert names(1) == names(1), "torch.manual_seed must fix the names"
        assert names(1) != names(2), "the global seed must matter"


# sample_names: what the model is asked, and what it may answer


@pytest.mark.parametrize("prefix", ["", "ab", "abcd"])
@pytest.mark.parametrize("context_size", [1, 2, 3, 6])
def test_the_model_sees_exactly_the_contexts_that_the_names_imply(context_size, prefix):
    model = Recorder(table(context_size, seed=2, scale=0.8))
    names = sample_names(
        model, ABC, context_size, 200, prefix=prefix, max_length=7, generator=seeded()
    )
    for step, contexts in enumerate(model.contexts):
        known = len(prefix) + step
        assert contexts.dtype == torch.int64, "contexts hold ids: int64"
        assert contexts.ndim == 2 and contexts.shape[1] == context_size, "(B, context_size)"
        running = [name for name in names if len(name) >= known]
        assert len(contexts) == len(running), (
            f"step {step}: {len(running)} names have not ended, so B must be that"
        )
        expected = [("." * context_size + name[:known])[-context_size:] for name in running]
        assert Counter(map(ABC.decode, contexts)) == Counter(expected), (
            f"step {step}: a context must hold the last {context_size} tokens of its name so far"
        )
    longest = max(map(len, names))
    assert len(model.contexts) == min(longest + 1, 7) - len(prefix), "one forward a character"


def test_names_that_have_ended_are_dropped_and_no_empty_batch_is_asked_for():
    model = Recorder(constant([1.0, 0.0, 0.0, 0.0, 0.0]))  # all names end long before max_length
    sample_names(model, ABC, 2, 100, generator=seeded())
    sizes = [len(contexts) for contexts in model.contexts]
    assert sizes[0] == 100, "the first forward holds all names"
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 100, "B must fall as names end"
    assert min(sizes) > 0, "a model may not be able to take a batch of 0"


def test_a_model_that_changes_its_contexts_does_no_harm():
    rows = table(2)

    def careless(contexts):
        logits = rows(contexts)
        contexts.zero_()
        return logits

    assert sample_names(careless, ABC, 2, 50, generator=seeded()) == sample_names(
        rows, ABC, 2, 50, generator=seeded()
    ), "contexts must be copies: the names came out different"


def test_sampling_tracks_no_gradients_and_restores_the_mode():
    weights = torch.randn(5, 5, generator=seeded(), requires_grad=True)
    modes = []

    def model(contexts):
        modes.append(torch.is_grad_enabled())
        return weights[contexts[:, -1]] * 2.0

    for options in ({}, {"top_k": 2}, {"temperature": 0}):
        names = sample_names(model, ABC, 2, 20, generator=seeded(), **options)
        assert len(names) == 20, "weights that require a gradient must not get in the way"
    assert not any(modes), "the forward must run without gradient tracking: it costs memory"
    assert torch.is_grad_enabled(), "gradient tracking must be on again after sampling"
    with refusal("shape"):
        sample_names(lambda contexts: torch.zeros(1), ABC, 2, 3)
    assert torch.is_grad_enabled(), "and after an error, too"


def test_logits_may_require_a_gradient_themselves():
    logits = torch.zeros(4, 5, requires_grad=True)
    for options in ({}, {"top_k": 2}, {"temperature": 0}):
        assert len(sample_names(lambda contexts: logits, ABC, 2, 4, max_length=1, **options)) == 4


def test_sampling_leaves_the_logits_as_they_were():
    rows = torch.randn(6, 5, generator=seeded())
    before = rows.clone()
    for options in ({}, {"top_k": 2, "temperature": 0.5}, {"temperature": 0}):
        sample_names(lambda contexts: rows, ABC, 2, 6, max_length=1, **options)
    assert torch.equal(rows, before), "next_logits may hand out its own table: do not write to it"


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 3}])
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("bad", ["one NaN", "all NaN", "+inf", "all -inf"])
def test_logits_without_a_distribution_in_them_are_refused(bad, step, options):
    calls = []

    def model(contexts):
        logits = torch.tensor([-9.0, 1.0, 0.5, 0.0, 0.2]).repeat(len(contexts), 1)
        if len(calls) == step:  # in one row of the batch, at one step
            logits[-1] = {"all NaN": NAN, "all -inf": -INF}.get(bad, logits[-1])
            logits[-1, 3] = {"one NaN": NAN, "+inf": INF}.get(bad, logits[-1, 3])
        calls.append(step)
        return logits

    with refusal("next_logits", "NaN", "inf", "model"):
        sample_names(model, ABC, 2, 10, generator=seeded(), **options)


@pytest.mark.parametrize(
    "shape", [(4, 6), (4, 4), (4,), (5,), (1, 5), (5, 4), (3, 5), (4, 1), (4, 1, 5), (4, 5, 1), ()]
)
def test_logits_of_the_wrong_shape_are_refused(shape):
    with refusal("next_logits", "shape", (4, 5), shape):
        sample_names(lambda contexts: torch.zeros(shape), ABC, 2, 4)
