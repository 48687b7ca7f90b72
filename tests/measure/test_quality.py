"""KL, agreement and perplexity against their definitions, over windows and trimmed vocabularies."""

from contextlib import closing

import numpy as np
import pytest
from scipy.special import log_softmax

from aperto.errors import UsageError
from aperto.measure.quality import WINDOW_TOKENS, Measured

VOCAB = 50


def random_model(seed, vocab=VOCAB):
    table = np.random.default_rng(seed).normal(0, 2, (VOCAB, vocab)).astype(np.float32)
    return lambda ids: table[list(ids)]


def compared(ids, before, after, kept=None):
    with closing(Measured(ids, before, kept)) as measured:
        return measured.compare(after)


def test_figures_are_their_definitions():
    ids = np.random.default_rng(0).integers(0, VOCAB, 20).tolist()
    one, two = random_model(1), random_model(2)
    with Measured(ids, one) as measured:
        found = measured.compare(two)
    p, q = (log_softmax(m(ids).astype(np.float64), axis=1)[:-1] for m in (one, two))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    labels = np.array(ids[1:])
    assert found.num_tokens == 19
    np.testing.assert_allclose([found.kl, found.kl_max], [kl.mean(), kl.max()], rtol=1e-12)
    assert found.top1 == (p.argmax(1) == q.argmax(1)).mean()
    for values, perplexity in ((p, found.perplexity_before), (q, found.perplexity_after)):
        loss = -values[np.arange(19), labels]
        np.testing.assert_allclose(perplexity, np.exp(loss.mean()), rtol=1e-12)


def test_a_model_is_itself_over_windows():
    ids = [i % VOCAB for i in range(2 * WINDOW_TOKENS + 10)]
    with Measured(ids, random_model(1)) as measured:
        found = measured.compare(random_model(1))
    assert (found.kl, found.top1) == (0.0, 1.0)
    assert found.num_tokens == len(ids) - 3  # the first token of a window is predicted by nothing
    assert found.perplexity_before == found.perplexity_after


def test_a_trimmed_vocabulary_is_compared_over_what_it_kept():
    kept = [1, 4, 7, 30]
    full = random_model(3)
    small = lambda ids: full([kept[i] for i in ids])[:, kept]  # noqa: E731
    with Measured([4, 30, 1, 7, 7], full, kept) as measured:
        found = measured.compare(small)
    assert (found.kl, found.top1) == (0.0, 1.0)


def test_a_text_of_one_token_measures_nothing():
    with pytest.raises(UsageError, match="has 1 tokens"):
        Measured([3], random_model(1))
