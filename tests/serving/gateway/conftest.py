"""Two regions and a gateway before them, each a process."""

import pytest
from gateway_places import FREE, PATIENT, QUICK

from benchmarks.fleet import FailingRegion, Gateway, running


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="session")
def regions():
    first, second = FailingRegion(), FailingRegion()
    with running(first, second):
        yield first, second


@pytest.fixture(scope="session")
def gateway(folder, regions):
    urls = {name: each.url for name, each in zip("ab", regions, strict=True)}
    made = Gateway(
        folder, urls, gateway=FREE, every_region={**PATIENT, **QUICK}, log=folder / "log"
    )
    with running(made):
        yield made


@pytest.fixture
def well(regions):
    """The regions, mended."""
    for each in regions:
        each.control(ready=True, fingerprint="fp_1", delay=0.002)
    return regions
