import pytest
from training_runs import script, write_pictures

__all__ = ["script"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 12 photograph-like images; not to be changed."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))
