import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mdlm_jax import data
from mdlm_jax.evaluation.bounds import ngrams
from mdlm_jax.evaluation.samples import scorers

VOCAB = 4
TRAIN = np.array([[0, 1, 0, 1], [1, 0, 2, 2]])
matrices = hnp.arrays(
    np.int32, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=st.integers(0, VOCAB - 1)
)


def rows_of(tokens, sizes=None):
    tokens = np.array(tokens)
    return data.Rows(tokens, np.zeros(len(tokens), np.int32), sizes)


def trigram(train, test):
    return scorers.trigram(rows_of(train), VOCAB)(rows_of(test))


def test_trigram_by_hand():
    # Unigrams: c = 3, 3, 2, 0 of 8: p = 4/12, 4/12, 3/12, 1/12.
    # Bigrams: 01 10 01 | 10 02 22: c(0.) = 3, T = 2; c(1.) = 2, T = 1; c(2.) = 1, T = 1.
    # Trigrams: 010 101 | 102 022: c(01.) = 1, T = 1; c(10.) = 2, T = 2; c(02.) = 1, T = 1.
    p0, p1 = 4 / 12, 4 / 12
    p1_0 = (2 + 2 * p1) / (3 + 2)
    p0_1 = (2 + 1 * p0) / (2 + 1)
    p0_01 = (1 + 1 * p0_1) / (1 + 1)
    p3_0 = (0 + 2 * 1 / 12) / (3 + 2)
    p3_10 = (0 + 2 * p3_0) / (2 + 2)
    expected = -sum(map(math.log, (p0, p1_0, p0_01, p3_10)))
    assert trigram(TRAIN, [[0, 1, 0, 3]]) == pytest.approx([expected])
    # What nothing ever followed leaves it to the shorter context.
    unseen = -math.log(1 / 12) - math.log(p0) - math.log(p1_0)
    assert trigram(TRAIN, [[3, 0, 1]]) == pytest.approx([unseen])


@settings(deadline=None, max_examples=50)
@given(matrices, st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=3))
def test_probabilities_sum_to_one_after_any_context(train, context):
    endings = np.array([[*context, w] for w in range(VOCAB)])
    nats = ngrams.token_nats(ngrams.fit(rows_of(train), VOCAB, 3), rows_of(endings))
    assert np.exp(-nats[:, -1]).sum() == pytest.approx(1)


@settings(deadline=None, max_examples=50)
@given(matrices, matrices)
def test_trigram_is_the_plain_loop(train, test):
    def grams(n):
        return [tuple(row[i : i + n]) for row in train.tolist() for i in range(len(row) - n + 1)]

    unigrams, longer = grams(1), {n: grams(n) for n in (2, 3)}

    def probability(context, w):
        if not context:
            return (unigrams.count((w,)) + 1) / (len(unigrams) + VOCAB)
        followed = [gram for gram in longer[len(context) + 1] if gram[:-1] == context]
        types = len(set(followed))
        lower = probability(context[1:], w)
        return (
            (followed.count((*context, w)) + types * lower) / (len(followed) + types)
            if (followed)
            else lower
        )

    expected = [
        -sum(math.log(probability(tuple(row[max(i - 2, 0) : i]), row[i])) for i in range(len(row)))
        for row in test.tolist()
    ]
    np.testing.assert_allclose(trigram(train, test), expected)


def test_padding_costs_nothing():
    padded = rows_of([[0, 1, 3, 3], [2, 3, 3, 3]], np.array([2, 1]))
    score = scorers.trigram(rows_of(TRAIN), VOCAB)
    expected = [score(rows_of([[0, 1]]))[0], score(rows_of([[2]]))[0]]
    np.testing.assert_allclose(score(padded), expected)


def test_longer_contexts_help_where_there_is_something_to_learn():
    train = np.tile([0, 1, 0, 2], (50, 5))  # what follows a 0 depends on what came before it
    orders = [
        ngrams.token_nats(ngrams.fit(rows_of(train), VOCAB, n), rows_of(train)).mean()
        for n in (1, 2, 3)
    ]
    assert orders[0] > orders[1] > 0.2 > orders[2]


def test_numbers_that_overflow_are_refused():
    with pytest.raises(ValueError, match=r"order is 3: .* below 2\*\*63"):
        scorers.trigram(rows_of([[0, 1]]), 2**21)


@pytest.mark.parametrize("spec", ["trigrm", "hf:", "gpt2"])
def test_unknown_scorers_are_refused(spec):
    with pytest.raises(ValueError, match=f"scorer '{spec}' must be trigram, or hf:NAME_OR_FOLDER"):
        scorers.scorer(spec, rows_of(TRAIN), None, VOCAB)


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs torch: pip install 'mdlm_jax\[interop\]'"):
        scorers.scorer("hf:gpt2", rows_of(TRAIN), None, VOCAB)


@pytest.mark.parametrize("size", [2, 3, 5, 8, None])
def test_windows_score_every_id_once_with_context(size):
    ids = list(range(21))
    scored = []
    for window, first in scorers._windows(ids, size):
        assert len(window) <= (size or 21) and 1 <= first < len(window)
        assert first >= min(window[first], (size or 0) // 2)  # half a window, or all there is
        scored += window[first:]
    assert scored == ids[1:]


def word_tokenizer(words):
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


OURS = Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", "[SEP]", "[MASK]", "a", "b"])})
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with a random GPT-2 of 6 tokens that reads 8 of them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=4, n_positions=8, n_embd=8, n_layer=1, n_head=2, initializer_range=1.0,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(["?", "<end>", "a", "b"]),
        unk_token="?", bos_token="<end>", eos_token="<end>",
    ).save_pretrained(folder)  # fmt: skip
    return folder, torch, model


def nats_of(torch, model, ids, first=1):
    with torch.inference_mode():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(log_probs[i - 1, ids[i]]) for i in range(first, len(ids)))


@pytest.mark.slow
def test_hugging_face_scores_the_text(gpt2):
    folder, torch, model = gpt2
    score = scorers.scorer(f"hf:{folder}", rows_of(TRAIN), OURS, 6)
    rows = rows_of([[4, 5, 2, 4], [4, 4, 0, 0], [2, 2, 2, 2]], np.array([4, 2, 4]))
    expected = [nats_of(torch, model, ids) for ids in ([1, 2, 3, 1, 2], [1, 2, 2], [1, 1, 1, 1, 1])]
    np.testing.assert_allclose(score(rows), expected, rtol=1e-5)


@pytest.mark.slow
def test_hugging_face_scores_long_rows_in_windows(gpt2):
    folder, torch, model = gpt2
    score = scorers.scorer(f"hf:{folder}", rows_of(TRAIN), OURS, 6)
    row = [4, 5, 5, 4, 4, 5, 4, 5, 5, 5]
    ids = [1, 2, 3, 3, 2, 2, 3, 2, 3, 3, 3]
    expected = nats_of(torch, model, ids[:8]) + nats_of(torch, model, ids[4:], first=4)
    np.testing.assert_allclose(score(rows_of([row])), [expected], rtol=1e-5)


@pytest.mark.slow
def test_a_folder_without_a_model_is_told(gpt2, tmp_path):
    with pytest.raises(ValueError, match="no causal language model with its tokenizer there"):
        scorers.scorer(f"hf:{tmp_path}", rows_of(TRAIN), OURS, 6)
