"""The Hugging Face hub: quiet requests, and errors in one line."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def asked(subject: str, accepted: str) -> Iterator[None]:
    """For requests of a file or a folder of the hub.

    Args:
      subject: the beginning of the message: what was asked for, and what it is not.
      accepted: the end of the message: what is accepted.

    Raises:
      ValueError: in place of whatever the network, the hub or the reader of its files raised.
    """
    from huggingface_hub.utils import logging  # a dependency of `tokenizers`; it takes a moment

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report every retry
    try:
        yield
    except Exception as error:  # of the network, the hub or `tokenizers`
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"{subject}, and the Hugging Face hub does not give it "
            f"({type(error).__name__}: {reason}): {accepted}"
        ) from None
    finally:
        logging.set_verbosity(before)
