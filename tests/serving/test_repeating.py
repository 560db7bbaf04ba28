"""A look every so many seconds goes on after one that raised, and ends with its block."""

import logging
import threading

from mdlm_jax.serving.repeating import repeating


def test_a_look_that_raises_is_logged_and_is_not_the_last(caplog):
    looks, third = [], threading.Event()

    def look():
        looks.append(len(looks))
        if len(looks) == 1:
            raise OSError("the registry is away")
        if len(looks) == 3:
            third.set()

    with caplog.at_level(logging.ERROR), repeating(look, 0.001, "mdlm_jax test"):
        assert third.wait(30)
    ended = len(looks)
    assert "mdlm_jax test" not in {thread.name for thread in threading.enumerate()}
    assert caplog.text.count("mdlm_jax test: a look failed") == 1
    assert "the registry is away" in caplog.text
    assert len(looks) == ended
