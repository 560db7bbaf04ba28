import pytest
from oracle import make_oracle


@pytest.fixture(scope="session")
def oracle():
    return make_oracle()
