"""The Hugging Face hub: asked quietly, and its refusals in one line."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def asked(subject: str, accepted: str) -> Iterator[None]:
    """Within it the hub is asked for a file or a folder.

    Args:
      subject: how the message begins: what was asked for, and what it is not.
      accepted: how the message ends: what may be asked for.

    Raises:
      ValueError: in place of whatever the network, the hub or the reader of its files raised.
    """
    from huggingface_hub.utils import logging  # a dependency of `tokenizers`; it takes a moment

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report every retry
    try:
        yield
    except Exception as error:  # of the network, of the hub, of `tokenizers`: all are its answer
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"{subject}, and the Hugging Face hub does not give it "
            f"({type(error).__name__}: {reason}): {accepted}"
        ) from None
    finally:
        logging.set_verbosity(before)
