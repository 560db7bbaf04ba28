import dataclasses
import random

import exported
import pytest
import tiny_server
from command_runs import TEXT

import mdlm_jax
from mdlm_jax import data

LENGTH = 48


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A model of bytes with random weights, loaded."""
    folder = tmp_path_factory.mktemp("serving") / "run"
    return mdlm_jax.load(exported.write(folder, kind="bpe", vocab_size=300, length=LENGTH))


@pytest.fixture(scope="session")
def canary_file(tmp_path_factory):
    """Words of the text that the tokenizers know, for a canary."""
    file = tmp_path_factory.mktemp("canary") / "canary.txt"
    file.write_text(" ".join(random.Random(0).choices(TEXT.split(), k=400)))
    return str(file)


@pytest.fixture(scope="session")
def models(tiny):
    """The same as one of texts, of prompts with responses, and of conversations."""
    talk = {"config": {"messages_field": "messages"}, "chat_template": data.ChatTemplate().text}
    return {
        "tiny": tiny,
        "pairs": dataclasses.replace(tiny, card={"config": {"prompt_field": "prompt"}}),
        "talk": dataclasses.replace(tiny, card=talk),
    }


@pytest.fixture(scope="session")
def server(models):
    with tiny_server.running(models) as running:
        yield running
