"""Runs the commands as a user does, on a text of our own with a tiny encoder."""

import itertools
import os
import random
import subprocess
import sys

TEXT = (
    "the river runs past an old stone mill and market where traders sold wool salt and honey later "
    "its people built a harbour two schools and the well known bridge that still stands today"
)


def write_text(path, documents=400):
    """A file of paragraphs, the same in every run."""
    draw = random.Random(0)
    texts = (
        " ".join(draw.choices(TEXT.split(), k=draw.randint(8, 40))) + "." for _ in itertools.count()
    )
    path.write_text("\n\n".join(itertools.islice(texts, documents)))
    return path


TINY = (
    "--config=quickstart",
    "--config.data.source=text_files",
    "--config.data.documents=paragraph",
    "--config.data.files={text}",
    "--config.data.vocab_size=120",
    "--config.data.length=16",
    "--config.model.layers=1",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.mlp_width=16",
    "--config.optimizer.warmup_steps=2",
    "--config.training.steps=4",
    "--config.training.save_every=2",
    "--config.training.log_every=2",
    "--config.evaluation.every=4",
    "--config.evaluation.rows=8",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.sample_steps=2",
)


def command(name, arguments, **places):
    """The command line, its {places} filled in."""
    filled = [argument.format(**places) for argument in arguments]
    return [sys.executable, "-m", f"mdlm_jax.{name}", *filled]


def run(name, *arguments, code=0, env=None, **places):
    done = subprocess.run(
        command(name, arguments, **places),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return done
