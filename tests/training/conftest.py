"""Makes `toys` importable here, as it is in the processes that these tests start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
