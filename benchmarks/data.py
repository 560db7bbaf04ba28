"""How fast the data come, beside how fast a training step eats them.

    python -m benchmarks.data

Prints one JSON line a figure, with the median, the lowest and the highest of its repetitions:

  tokenizing      MB of text a second through each trained tokenizer, on all cores
  batches         rows a second of `train_batches(...).iterate()`, on the quickstart's data at its
                  batch size
  training_step   rows a second that the quickstart's own training step takes on this machine
  batches_per_step  how many times faster than the step the batches come (of the medians)

The quickstart's data are prepared first if they are not yet (some seconds).
"""

import itertools
import json
import runpy
import statistics
import time
from collections.abc import Callable, Sequence

import jax

from mdlm_jax import data
from mdlm_jax.data.corpora import wikipedia
from mdlm_jax.host import command_line, host_memory, parallel
from mdlm_jax.runs.experiment import Experiment
from mdlm_jax.runs.program import make_program

REPETITIONS = 9
BATCHES = 500  # a repetition
STEPS = 10  # a repetition
CHARACTERS = 1_000_000  # a repetition


def main() -> None:
    """Prints all figures."""
    host_memory.keep_freed()  # as `train` does
    experiment = Experiment.of(_quickstart())
    prepared = data.prepare(experiment.data)
    texts = [article["extract"] for article in wikipedia.load_summaries()]
    for kind in ("wordpiece", "bpe", "characters"):
        _tell(f"tokenizing_{kind}", "MB/s", _tokenizing(texts, kind))
    batches = _tell("batches", "rows/s", _batches(prepared, experiment))
    step = _tell("training_step", "rows/s", _training_step(prepared, experiment))
    print(
        json.dumps({"figure": "batches_per_step", "unit": "times", "median": round(batches / step)})
    )


def _tokenizing(texts: Sequence[str], kind: str) -> list[float]:
    sizes = itertools.accumulate(len(text) for text in texts)
    some = [text for text, size in zip(texts, sizes, strict=True) if size <= CHARACTERS]
    tokenizer = data.train_tokenizer(some, kind=kind, vocab_size=2048, lowercase=True)
    megabytes = sum(len(text.encode()) for text in some) / 1e6
    return _rates(lambda: list(data.encode_documents(tokenizer, some)), megabytes)


def _batches(prepared: data.Prepared, experiment: Experiment) -> list[float]:
    size = experiment.training.batch_size
    stream = data.train_batches(prepared.splits["train"], batch_size=size, seed=0).iterate()
    return _rates(lambda: [next(stream) for _ in range(BATCHES)], BATCHES * size)


def _training_step(prepared: data.Prepared, experiment: Experiment) -> list[float]:
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    program = make_program(experiment, experiment.encoder(prepared), mesh, start_id=prepared.sep_id)
    rows = experiment.training.batch_size
    batches = data.train_batches(prepared.splits["train"], batch_size=rows, seed=0)
    ready = itertools.cycle([parallel.put_batch(batches.at(i), mesh, rows) for i in range(STEPS)])
    state = program.init()

    def some_steps() -> None:
        nonlocal state
        for batch in itertools.islice(ready, STEPS):
            state, _ = program.step(state, batch)
        jax.block_until_ready(state)

    return _rates(some_steps, STEPS * rows)


def _rates(work: Callable[[], object], amount: float) -> list[float]:
    """`amount` a second, of every repetition but the first, which compiles and fills caches."""
    rates = []
    for _ in range(REPETITIONS + 1):
        begun = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - begun))
    return rates[1:]


def _tell(figure: str, unit: str, rates: list[float]) -> float:
    median = statistics.median(rates)
    told = {"median": median, "lowest": min(rates), "highest": max(rates)}
    rounded = {name: float(f"{rate:.4g}") for name, rate in told.items()}
    print(json.dumps({"figure": figure, "unit": unit, **rounded, "repetitions": len(rates)}))
    return median


def _quickstart() -> dict:
    path = command_line.shipped_configs()["quickstart"]
    return runpy.run_path(str(path))["get_config"]().to_dict()


if __name__ == "__main__":
    main()
