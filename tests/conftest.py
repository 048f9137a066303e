"""What several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real annotated H&E; its terms keep it out of the repository."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MITOSIS_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MITOSIS_DATA")
    return folder
