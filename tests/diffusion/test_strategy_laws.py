"""Each strategy against its own law, worked out over all canvases in float64 by other code."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_strategy import any_conditionals, table_denoiser
from oracle import CANVASES, MASK, PLACES, STRINGS, L, V, chi_square_p

from mdlm_jax import sample, strategies, transforms

ROWS = 20000
ALARM = 1e-3  # false-alarm rate of each chi-square test; seeds are fixed
BLANK = len(CANVASES) - 1  # the number of the canvas that is all masks
SUBSETS = np.array(list(itertools.product([False, True], repeat=L)))  # [16, L]


def drawn_counts(denoiser, strategy, steps, canvas=(MASK,) * L, seed=0, **options):
    """How often each of STRINGS came out of `ROWS` rows."""
    tokens = jax.jit(
        lambda key: sample(
            denoiser, key, jnp.broadcast_to(jnp.array(canvas), (ROWS, L)), mask_id=MASK,
            steps=steps, strategy=strategy, chunk=ROWS, **options,
        )
    )(jax.random.key(seed))  # fmt: skip
    numbers = np.asarray(tokens) @ (V ** np.arange(L - 1, -1, -1))
    return np.bincount(numbers, minlength=len(STRINGS))


def law_of(step, steps, canvas=(MASK,) * L):
    """The law over STRINGS of a chain: `step(canvas, index) -> {next canvas: probability}`."""
    now = {tuple(canvas): 1.0}
    for index in range(steps):
        then = {}
        for canvas, p in now.items():
            for following, q in step(canvas, index).items():
                then[following] = then.get(following, 0.0) + p * q
        now = then
    return np.array([now.get(tuple(string), 0.0) for string in STRINGS])


def drawn(canvas, conditionals):
    """Every way to draw a token for each blank: `(tokens [L], probability)`."""
    p = conditionals[np.array(canvas) @ PLACES]  # [L, V]
    choices = [range(V) if token == MASK else [token] for token in canvas]
    for tokens in itertools.product(*choices):
        of = [p[i, tokens[i]] for i in range(L) if canvas[i] == MASK]
        if np.prod(of) > 0:
            yield np.array(tokens), np.prod(of)


def keeping(kept, conditionals):
    """A chain's step that draws all blanks and keeps `kept(canvas, tokens, p, index)` of them."""

    def step(canvas, index):
        then = {}
        for tokens, q in drawn(canvas, conditionals):
            p = conditionals[np.array(canvas) @ PLACES]
            stays = kept(np.array(canvas), tokens, p, index)
            following = tuple(np.where(stays, tokens, MASK).tolist())
            then[following] = then.get(following, 0.0) + q
        return then

    return step


def writing(stays, taken_back, conditionals):
    """A step in which each blank stays, and each token is taken back, alone.

    Args: functions of (canvas, index) -> probabilities that broadcast to [L].
    """

    def step(canvas, index):
        blank = np.array(canvas) == MASK
        stay, back = stays(canvas, index), taken_back(canvas, index)
        gone = np.where(blank, stay, back) * np.ones(L)  # the probability of a mask then
        p = conditionals[np.array(canvas) @ PLACES]
        then = {}
        for following in CANVASES:
            old = np.where(
                blank, p[np.arange(L), np.minimum(following, V - 1)], following == canvas
            )
            q = np.where(following == MASK, gone, (1 - gone) * old).prod()
            if q > 0:
                then[tuple(following.tolist())] = q
        return then

    return step


@pytest.mark.parametrize("canvas", [(MASK,) * 4, (MASK, 1, MASK, MASK)])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (strategies.exact_count(), {}),
        (strategies.exact_count(), {"blocks": 2}),
        (strategies.first_hitting(), {}),
        (strategies.confidence("margin", grid="uniform"), {}),
        (strategies.confidence("entropy", temperature=0.0, grid="uniform"), {}),
        (strategies.entropy_bounded(0.0), {}),
        (strategies.threshold(1.0), {"blocks": 4}),
    ],
)
def test_a_token_a_step_in_an_order_that_the_draws_do_not_choose_is_exact(
    oracle, strategy, options, canvas
):
    counts = drawn_counts(oracle.denoiser(), strategy, L, canvas, **options)
    assert chi_square_p(counts, oracle.posterior(np.array(canvas))) > ALARM


def surest(count, score):
    """Keeps the `count` best by `score(p at drawn tokens [L], p [L, V])`; ties to the left."""

    def kept(canvas, tokens, p, index):
        blank = canvas == MASK
        order = np.argsort(
            np.where(blank, -score(p[np.arange(L), tokens], p), np.inf), kind="stable"
        )
        due = count(blank, index, p, tokens, order)
        return ~blank | np.isin(np.arange(L), order[:due])

    return kept


def by_probability(of_drawn, p):
    return of_drawn


def by_entropy(of_drawn, p):
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)


def one_a_step(blank, index, p, tokens, order):
    return 1


def two_a_step(blank, index, p, tokens, order):
    return 2


def above(tau):
    def count(blank, index, p, tokens, order):
        return max(1, int((blank & (p[np.arange(L), tokens] >= tau)).sum()))

    return count


def by_factor(f):
    def count(blank, index, p, tokens, order):
        sure = p[order, tokens[order]]
        n = 1
        while n < blank.sum() and (n + 2) * (1 - sure[n]) <= f:
            n += 1
        return n

    return count


def by_entropy_bound(gamma):
    def count(blank, index, p, tokens, order):
        nats = -by_entropy(None, p)[order]
        fits = [n for n in range(1, blank.sum() + 1) if nats[:n].sum() - nats[:n].max() <= gamma]
        return max(fits, default=0)

    return count


EVENLY = {"temperature": 0.0, "grid": "uniform"}


@pytest.mark.parametrize(
    ("strategy", "kept", "steps"),
    [
        (strategies.confidence(**EVENLY), surest(one_a_step, by_probability), 4),
        (strategies.confidence(**EVENLY), surest(two_a_step, by_probability), 2),
        (strategies.confidence("entropy", **EVENLY), surest(two_a_step, by_entropy), 2),
        (strategies.threshold(0.6), surest(above(0.6), by_probability), 4),
        (strategies.factor(0.9), surest(by_factor(0.9), by_probability), 4),
        (strategies.entropy_bounded(0.8), surest(by_entropy_bound(0.8), by_entropy), 4),
    ],
)
def test_the_best_candidates_follow_their_own_law(strategy, kept, steps):
    conditionals = any_conditionals()
    law = law_of(keeping(kept, conditionals), steps)
    assert law.sum() == pytest.approx(1)
    counts = drawn_counts(table_denoiser(conditionals), strategy, steps)
    assert chi_square_p(counts, law) > ALARM


def test_an_adaptive_strategy_writes_all_that_is_left_in_the_last_step():
    conditionals = any_conditionals()
    step = keeping(surest(above(0.6), by_probability), conditionals)
    last = keeping(lambda canvas, tokens, p, index: np.ones(L, bool), conditionals)
    law = law_of(lambda canvas, index: (step, last)[index](canvas, index), 2)
    counts = drawn_counts(table_denoiser(conditionals), strategies.threshold(0.6), 2)
    assert chi_square_p(counts, law) > ALARM


@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_path_planning_follows_its_own_law(eta):
    """Of all that is or could be written the lowest `log p` are masked: 3, 1 and 0 of four."""
    conditionals, steps = any_conditionals(), 3

    def step(canvas, index):
        canvas, then = np.array(canvas), {}
        blank = canvas == MASK
        for tokens, q in drawn(canvas, conditionals):
            p = conditionals[canvas @ PLACES][np.arange(L), tokens]
            score = np.where(blank, 1, eta) * np.log(p)
            lowest = np.argsort(score, kind="stable")[: L * (steps - 1 - index) // steps]
            following = np.where(np.isin(np.arange(L), lowest), MASK, tokens)
            then[tuple(following.tolist())] = then.get(tuple(following.tolist()), 0.0) + q
        return then

    counts = drawn_counts(table_denoiser(conditionals), strategies.path_planning(eta), steps)
    assert chi_square_p(counts, law_of(step, steps)) > ALARM


RATES = {  # of masks, at each step's t
    "uniform": lambda x: 1 - x,
    "cosine": lambda x: np.cos(np.pi / 2 * x),
    "loop": lambda x: np.where(
        1 - x > 0.55,
        1 - 0.9 * x / 0.45,
        np.minimum(0.1, 0.1 * (1 - x) / 0.05),
    ),
}


def reverse_process(rate, sigma, steps, conditionals):
    """The step with mask rates `rate(i / steps)`, taking back with `sigma(t, highest)`."""

    def of(index):
        t = 1 - index / steps
        now, then = rate(index / steps), rate((index + 1) / steps)
        highest = min(1.0, then / (1 - now)) if now < 1 else 1.0
        return now, then, sigma(t, highest)

    def stays(canvas, index):
        now, then, back = of(index)
        return (then - back * (1 - now)) / now

    return writing(stays, lambda canvas, index: of(index)[2], conditionals)


@pytest.mark.parametrize(
    ("strategy", "rate", "sigma", "steps"),
    [
        (strategies.ancestral(), "uniform", lambda t, highest: 0, 3),
        (strategies.ancestral(grid="cosine"), "cosine", lambda t, highest: 0, 3),
        (strategies.remask("cap", 0.3), "uniform", lambda t, highest: min(0.3, highest), 5),
        (strategies.remask("rescale", 0.5), "uniform", lambda t, highest: 0.5 * highest, 5),
        (
            strategies.remask("loop", 0.3),
            "loop",
            lambda t, highest: min(0.3, highest) if 0.05 < t <= 0.55 else 0,
            8,
        ),
    ],
    ids=["ancestral", "cosine grid", "cap", "rescale", "loop"],
)
def test_the_reverse_process_follows_its_own_law(strategy, rate, sigma, steps):
    conditionals = any_conditionals()
    law = law_of(reverse_process(RATES[rate], sigma, steps, conditionals), steps)
    assert law.sum() == pytest.approx(1)
    counts = drawn_counts(table_denoiser(conditionals), strategy, steps)
    assert chi_square_p(counts, law) > ALARM


def test_remasking_by_confidence_follows_its_own_law():
    """Three steps: write; write and take back by the probabilities of the first; write the rest."""
    conditionals, steps, eta = any_conditionals(), 3, 0.9
    first = reverse_process(RATES["uniform"], lambda t, highest: 0, steps, conditionals)
    blank_p = conditionals[BLANK]  # all that the first step writes was drawn from it

    def sigma(canvas, index):
        written = np.array(canvas) != MASK
        p = blank_p[np.arange(L), np.minimum(canvas, V - 1)]
        weights = np.where(written, np.exp(-p), 0)
        return eta * (1 / 3) / (1 / 3) * weights / weights.sum() if written.any() else weights

    # From t = 2/3 to 1/3: rates 2/3 and 1/3, sigma_max = (1/3) / (1/3) = 1; blanks have sigma 0.
    second = writing(lambda canvas, index: 0.5, sigma, conditionals)
    steps_of = (first, second, first)
    law = law_of(lambda canvas, index: steps_of[index](canvas, index), steps)
    strategy = strategies.remask("confidence", eta)
    counts = drawn_counts(table_denoiser(conditionals), strategy, steps)
    assert chi_square_p(counts, law) > ALARM


def test_first_hitting_is_the_reverse_process_in_continuous_time(oracle):
    """A denoiser that is told the time; all orders of writing, their times integrated.

    The times of the four tokens are independent and uniform: of those in a given order the density
    is 1 on `1 > t_1 > ... > t_4 > 0`, integrated by the trapezoidal rule.
    """
    drift, nodes = 0.7, np.linspace(1, 0, 401)
    with np.errstate(divide="ignore"):
        logs = np.log(oracle.conditionals)

    def p_at(canvas, position, token):
        of_position = logs[canvas @ PLACES][position]
        tempered = (1 - drift * nodes[:, None]) * np.maximum(of_position, -1e9)
        powers = np.exp(tempered)
        return powers[:, token] / powers.sum(axis=-1)

    law = np.zeros(len(STRINGS))
    for i, string in enumerate(STRINGS):
        if oracle.joint[i] == 0:
            continue
        for order in itertools.permutations(range(L)):
            canvas, density = np.full(L, MASK), np.ones(len(nodes))
            for position in order:  # density[j]: that all so far were written before nodes[j]
                here = density * p_at(canvas, position, string[position])
                slices = (here[1:] + here[:-1]) / 2 * -np.diff(nodes)
                density = np.append(0, np.cumsum(slices))
                canvas[position] = string[position]
            law[i] += density[-1]
    law = np.where(law > 0, law, 0)
    assert law.sum() == pytest.approx(1, abs=1e-3)
    strategy = strategies.first_hitting()
    counts = drawn_counts(oracle.denoiser(drift), strategy, L)
    assert chi_square_p(counts, law / law.sum()) > ALARM


def test_a_greedy_last_step_takes_the_most_likely():
    conditionals = any_conditionals()
    first = keeping(lambda canvas, tokens, p, index: np.ones(L, bool), conditionals)

    def halves(canvas, index):
        then = {}
        for following, q in first(canvas, index).items():
            for subset in SUBSETS[SUBSETS.sum(axis=1) == 2]:
                to = tuple(np.where(subset, following, MASK).tolist())
                then[to] = then.get(to, 0.0) + q / 6
        return then

    def last(canvas, index):
        best = conditionals[np.array(canvas) @ PLACES].argmax(axis=-1)
        return {tuple(np.where(np.array(canvas) == MASK, best, canvas).tolist()): 1.0}

    law = law_of(lambda canvas, index: (halves, last)[index](canvas, index), 2)
    counts = drawn_counts(table_denoiser(conditionals), strategies.exact_count(last="greedy"), 2)
    assert chi_square_p(counts, law) > ALARM


@pytest.mark.parametrize(
    ("name", "transform", "of_p"),
    [
        ("top_p", lambda d: transforms.top_p(d, 0.7), lambda p: nucleus(p, 0.7)),
        ("top_k", lambda d: transforms.top_k(d, 2), lambda p: p * (p >= np.sort(p)[..., 1:2])),
        (
            "min_p",
            lambda d: transforms.min_p(d, 0.5),
            lambda p: p * (p >= 0.5 * p.max(axis=-1, keepdims=True)),
        ),
        ("temperature", lambda d: transforms.temperature(d, 0.5), lambda p: p**2),
        ("forbid", lambda d: transforms.forbid(d, [1]), lambda p: p * np.array([1, 0, 1])),
    ],
)
def test_a_transform_samples_from_its_own_law(name, transform, of_p):
    conditionals = any_conditionals()
    shaped = of_p(conditionals)
    shaped = shaped / shaped.sum(axis=-1, keepdims=True)
    step = reverse_process(RATES["uniform"], lambda t, highest: 0, 2, shaped)
    denoiser = transform(table_denoiser(conditionals))
    counts = drawn_counts(denoiser, strategies.ancestral(), 2)
    assert chi_square_p(counts, law_of(step, 2)) > ALARM


def nucleus(p, share):
    order = np.argsort(-p, axis=-1)
    descending = np.take_along_axis(p, order, axis=-1)
    inside = np.cumsum(descending, axis=-1) - descending < share
    return np.take_along_axis(inside, np.argsort(order, axis=-1), axis=-1) * p


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_guidance_samples_from_its_own_law(weight):
    with_it, without = any_conditionals(3), any_conditionals(4)
    guided = with_it**weight * without ** (1 - weight)
    guided = guided / guided.sum(axis=-1, keepdims=True)
    step = reverse_process(RATES["uniform"], lambda t, highest: 0, 2, guided)
    denoiser = transforms.guide(table_denoiser(with_it), table_denoiser(without), weight)
    counts = drawn_counts(denoiser, strategies.ancestral(), 2)
    assert chi_square_p(counts, law_of(step, 2)) > ALARM
