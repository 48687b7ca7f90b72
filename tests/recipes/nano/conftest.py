import sys
from pathlib import Path

# The recipe's files import each other as scripts do.
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes" / "nano"))
