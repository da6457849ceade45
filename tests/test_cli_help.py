"""What the command line says about itself."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "vllm", "scipy", "sklearn", "matplotlib", "datasets", "pandas", "pyarrow", "numpy")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, estep.cli\n"
        "try:\n"
        "    estep.cli.main()\n"
        "finally:\n"
        f"    print('imported:', *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage: " in result.stdout
    assert result.stderr == "imported:\n"
