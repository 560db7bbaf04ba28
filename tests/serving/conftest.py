import dataclasses

import exported
import pytest
import tiny_server

import mdlm_jax
from mdlm_jax import data

LENGTH = 48


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A model of bytes with random weights, loaded."""
    folder = tmp_path_factory.mktemp("serving") / "run"
    return mdlm_jax.load(exported.write(folder, kind="bpe", vocab_size=300, length=LENGTH))


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
