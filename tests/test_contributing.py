"""The diffs that CONTRIBUTING.md shows apply to the source as it stands."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)


def test_both_walks_have_a_diff():
    assert len(DIFFS) == 2


@pytest.mark.parametrize("diff", DIFFS, ids=["finding", "setting"])
def test_a_diff_of_the_walks_applies(diff, tmp_path):
    # A copy outside every repository: inside one, git would pass over paths without
    # a word and succeed.
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__")
    )
    done = subprocess.run(
        ["git", "apply", "--check", "--unidiff-zero", "-"],
        input=diff,
        text=True,
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
