"""Build the book into book/_build/html, offline; a warning is an error.

python book/tools/build.py [OUTPUT]      (OUTPUT: the folder that gets `_build`, default `book`)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import contents

ROOT = Path(__file__).resolve().parents[2]


def build(output: Path = ROOT / "book") -> int:
    """Exit status of jupyter-book; nothing is executed, stored outputs are shown."""
    contents.refresh()
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(ROOT)]
    command += ["--config", str(ROOT / "_config.yml"), "--toc", str(contents.FILE)]
    command += ["--path-output", str(output), "-W", "-n", "--keep-going", "-q"]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(build(*map(Path, sys.argv[1:2])))
