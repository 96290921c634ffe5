"""Commands that these tests start find the `conclave` package of this checkout."""

import os
from pathlib import Path

os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2] / "python")
