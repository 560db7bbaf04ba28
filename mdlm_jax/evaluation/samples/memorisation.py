"""Memorisation: the longest run of tokens of each row that occurs in the training split.

    memorisation.longest_overlaps(samples, train)  # i64[N], tokens

Real text overlaps with the training split too (phrases, quotations, tables). Compare the overlaps
of samples with those of equally long rows of the test split: what exceeds these is copied. (Carlini
et al. 2023, "Quantifying Memorization Across Neural Language Models", count such runs after a
prompt from the training text; here is no prompt.)
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mdlm_jax.data import Rows

# Tokens of the training split that are processed at a time.
_CHUNK = 2**22
# Tokens of the rows that one pass searches for: their automaton takes about a kilobyte a token.
_BLOCK = 2**20


class _Automaton(NamedTuple):
    """The suffix automaton of some texts: each of their runs leads from state 0 to one state.

    Attributes:
      edges: i64[E], `state * base + symbol` of every edge, sorted: often more than 32 bits.
      targets: i64[E], the state that each edge leads to.
      base: symbols are 1..base-1; 0 is no symbol.
      links: i64[S], the state of the longest suffix that occurs in more places; -1 for state 0.
      lengths: i32[S], tokens of the longest run that leads to the state.
      ends: for each text, the states of its prefixes of 1, 2, ... tokens.
    """

    edges: np.ndarray
    targets: np.ndarray
    base: int
    links: np.ndarray
    lengths: np.ndarray
    ends: list[list[int]]


def longest_overlaps(rows: Rows, train: Rows) -> np.ndarray:
    """The length of each row's longest run of tokens that occurs within one training row.

    The result is exact: the rows become a suffix automaton (Blumer et al. 1985, "The smallest
    automaton recognizing the subwords of a text"), and many training rows are matched with it at a
    time. One pass over the training split, which may be mapped from disk, serves 2**20 tokens of
    the rows. Runs lie within training rows, because a model is trained on whole rows. Separators
    count, padding does not.

    Args:
      rows: N rows.
      train: the training split, of any row length.

    Returns:
      i64[N], tokens, from 0 to the size of the row.

    Raises:
      ValueError: rows are no matrix, are empty, or hold a negative id.
    """
    texts = [
        np.asarray(text, np.int64) for part in rows.chunks("rows", _CHUNK) for text in part.texts()
    ]
    found = [
        _overlaps(texts[first:last], train) for first, last in _blocks([len(t) for t in texts])
    ]
    return np.concatenate(found)


def _overlaps(texts: Sequence[np.ndarray], train: Rows) -> np.ndarray:
    """`longest_overlaps` of texts, i64[tokens] each."""
    alphabet, symbols = np.unique(np.concatenate(texts), return_inverse=True)
    cuts = np.cumsum([len(text) for text in texts])[:-1]
    automaton = _automaton([part.tolist() for part in np.split(symbols + 1, cuts)])

    symbol_of = np.zeros(alphabet[-1] + 2, np.int64)  # the last entry stands for all higher ids
    symbol_of[alphabet] = np.arange(1, len(alphabet) + 1)
    best = np.zeros(len(automaton.links), np.int32)
    for part in train.chunks("train", _CHUNK):
        tokens = np.asarray(part.tokens, np.int64)
        symbols = symbol_of[np.minimum(tokens, len(symbol_of) - 1)]
        _walk(automaton, np.where(part.text, symbols, 0), best)
    found = _reach(automaton, best)
    return np.array([found[ends].max() for ends in automaton.ends], np.int64)


def _walk(automaton: _Automaton, symbols: np.ndarray, best: np.ndarray) -> None:
    """Matches rows of symbols, i64[n, L], with the automaton, all rows in parallel.

    After each symbol a row is in the state of its longest suffix that occurs in the texts, of a
    known length. `best[state]`, i32[S], is raised to the longest length seen in that state.
    """
    state = np.zeros(len(symbols), np.int64)
    length = np.zeros(len(symbols), np.int32)
    for symbol in np.ascontiguousarray(symbols.T):
        target = _follow(automaton, state, symbol)
        length += 1
        # Where no edge leads on, shorten the suffix until one does or the suffix is empty.
        stuck = np.flatnonzero(target < 0)
        while stuck.size:
            shorter = np.where(symbol[stuck] > 0, automaton.links[state[stuck]], -1)
            lost = stuck[shorter < 0]
            target[lost], length[lost] = 0, 0
            stuck, shorter = stuck[shorter >= 0], shorter[shorter >= 0]
            state[stuck], length[stuck] = shorter, automaton.lengths[shorter] + 1
            target[stuck] = _follow(automaton, shorter, symbol[stuck])
            stuck = stuck[target[stuck] < 0]
        state = target
        longer = np.flatnonzero(length > best[state])
        np.maximum.at(best, state[longer], length[longer])


def _follow(automaton: _Automaton, state: np.ndarray, symbol: np.ndarray) -> np.ndarray:
    """The states that symbols lead to from states, i64[n]; -1 where there is no edge."""
    edge = state * automaton.base + symbol
    at = np.minimum(np.searchsorted(automaton.edges, edge), len(automaton.edges) - 1)
    return np.where(automaton.edges[at] == edge, automaton.targets[at], -1)


def _reach(automaton: _Automaton, best: np.ndarray) -> np.ndarray:
    """For each state, tokens of its longest suffix that occurs in the training split: i32[S].

    Args:
      automaton: of the texts.
      best: i32[S], the longest run found that leads to each state, 0 if none was found.
    """
    reach, links, lengths = best.tolist(), automaton.links.tolist(), automaton.lengths.tolist()
    order = np.argsort(automaton.lengths, kind="stable").tolist()[1:]  # links lead to shorter ones
    for state in reversed(order):
        if reach[state]:
            reach[links[state]] = lengths[links[state]]  # where a run occurs, so do its suffixes
    for state in order:
        reach[state] = reach[state] or reach[links[state]]
    return np.array(reach, np.int32)


def _automaton(texts: Sequence[list[int]]) -> _Automaton:
    """The suffix automaton of texts in symbols from 1 on, built token by token."""
    edges: list[dict[int, int]] = [{}]
    links, lengths = [-1], [0]

    def add(length: int, leaving: dict[int, int], link: int) -> int:
        edges.append(leaving)
        lengths.append(length)
        links.append(link)
        return len(edges) - 1

    def redirect(state: int, symbol: int, old: int | None, new: int) -> int:
        """Redirects edges from `old` to `new`, along a state's links; returns the last state."""
        while state >= 0 and edges[state].get(symbol) == old:
            edges[state][symbol] = new
            state = links[state]
        return state

    def target(state: int, symbol: int) -> int:
        """The state an edge leads to, split from the runs that do not pass over this edge."""
        old = edges[state][symbol]
        if lengths[old] == lengths[state] + 1:
            return old
        links[old] = new = add(lengths[state] + 1, dict(edges[old]), links[old])
        redirect(state, symbol, old, new)
        return new

    def extend(state: int, symbol: int) -> int:
        if symbol in edges[state]:
            return target(state, symbol)
        new = add(lengths[state] + 1, {}, 0)
        known = redirect(state, symbol, None, new)
        if known >= 0:
            links[new] = target(known, symbol)
        return new

    ends = []
    for text in texts:
        state = 0
        ends.append([state := extend(state, symbol) for symbol in text])

    base = max(map(max, texts)) + 1
    keys = [i * base + symbol for i, leaving in enumerate(edges) for symbol in leaving]
    targets = [to for leaving in edges for to in leaving.values()]
    order = np.argsort(keys)
    return _Automaton(
        np.array(keys, np.int64)[order],
        np.array(targets, np.int64)[order],
        base,
        np.array(links, np.int64),
        np.array(lengths, np.int32),
        ends,
    )


def _blocks(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive texts of about `_BLOCK` tokens: the index of the first, and of the one after."""
    first = tokens = 0
    for i, size in enumerate(sizes):
        if tokens and tokens + size > _BLOCK:
            yield first, i
            first, tokens = i, 0
        tokens += size
    yield first, len(sizes)
