"""What MLflow raises, as this library tells it: one line, of a kind that its callers know."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """What MLflow raises, as a ValueError of one line; that a server is away as an OSError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        why = " ".join(str(error).split())
        if error.error_code == "INTERNAL_ERROR" and "Max retries exceeded" in why:
            raise ConnectionError(f"MLflow at {_uri()} does not answer: {why[:200]}") from None
        raise ValueError(f"MLflow: {why.removesuffix('.')}") from None


def _uri() -> str:
    import mlflow

    return mlflow.get_registry_uri()
