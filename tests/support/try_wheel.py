"""Install wheel and sdist of dist/, each in a fresh environment without torch, and
read a run with it.

python -m build --no-isolation && python tests/support/try_wheel.py
"""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from synthetic import write_run


ROOT = Path(__file__).resolve().parents[2]
INSIDE = (
    "learndyn/py.typed",
    "learndyn/world/weights/seed-0/model.safetensors",
    "learndyn/paper/softmax/softmax.js",
)


def call(*words: str | Path, status: int = 0) -> str:
    """Run a command; its output, after a check of its exit status."""
    done = subprocess.run(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        # the wheel alone: no source of ours may stand beside it
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}"
    return done.stdout


def main() -> None:
    """Check what is inside, then install and use it."""
    (wheel,) = (ROOT / "dist").glob("*.whl")
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in INSIDE if name not in names]
    assert not missing, f"{wheel} lacks {missing}"
    for built in (wheel, sdist):
        install_and_read(built)


def install_and_read(built: Path) -> None:
    """Install a wheel or an sdist, and read a run by its command."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        venv.create(folder / "env", with_pip=True)
        binaries = folder / "env" / "bin"
        pip = (binaries / "python", "-m", "pip", "install", "--quiet")
        call(*pip, "--constraint", ROOT / "constraints.txt", built)
        run = write_run(folder / "run")
        call(binaries / "learndyn", "report", run)
        assert (run / "report.html").is_file()
        assert "What was looked for" in call(binaries / "learndyn", "diagnose", run)
        refused = call(binaries / "learndyn", "score", "m", "--run", run, status=2)
        assert "learndyn[measure]" in refused
    print(f"{built.name}: reads a run without torch")


if __name__ == "__main__":
    sys.exit(main())
