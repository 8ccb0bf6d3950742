"""What several tests share: stores to test, hostile files, programs that are started as processes of their own."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
