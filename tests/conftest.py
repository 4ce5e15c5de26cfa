"""Makes `cascade` and `tests.support` importable, whichever way pytest was started."""

from __future__ import annotations

import sys
from pathlib import Path

# Appended, never put first: ahead of a ComfyUI host our `nodes/` would hide its `nodes.py`.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)
