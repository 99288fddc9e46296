"""Run the stored chapters as a learner would: from the built wheel, each in an empty folder, without a network; compare tagged outputs.

    python book/tools/run_chapters.py [stem …] [-j 2]

nbval executes every cell and compares what cells tagged `nbval-check-output` print. A chapter over its time limit fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"


def install_wheel(site: Path) -> None:
    """Build the wheel and unpack it into `site`, with nothing of the checkout on the path."""
    dist = site.parent / "dist"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (wheel,) = dist.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True)


def run(stem: str, site: Path, limit: int) -> tuple[str, int, float, str]:
    """One chapter in an empty folder of its own: (stem, exit status, seconds, what pytest printed)."""
    folder = site.parent / "empty" / stem
    folder.mkdir(parents=True)
    shutil.copy(NOTEBOOKS / f"{stem}.ipynb", folder)
    environment = (
        {"OMP_NUM_THREADS": "1"}
        | dict(os.environ)
        | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT / 'tests' / 'offline'}", "PYTHONSAFEPATH": "1"}
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
        "-q",
        "--nbval-lax",
        "--nbval-current-env",
    ]
    begun = time.perf_counter()
    result = subprocess.run(
        [*command, f"--nbval-cell-timeout={limit}", f"{stem}.ipynb"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return stem, result.returncode, time.perf_counter() - begun, result.stdout + result.stderr


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stems", nargs="*", help="chapters (default: all)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="chapters at a time (default 2)")
    parser.add_argument(
        "--limit",
        type=int,
        default=400,
        help="seconds that one chapter may take (default 400: it is 60 on a quiet machine, and this one may be busy)",
    )
    arguments = parser.parse_args()
    stems = arguments.stems or sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        site = Path(folder) / "site"
        install_wheel(site)
        for stem, code, seconds, output in pool.map(
            lambda stem: run(stem, site, arguments.limit), stems
        ):
            late = seconds > arguments.limit
            print(
                f"chapter {stem}: {'passed' if not code and not late else 'FAILED'} in {seconds:.0f} s",
                flush=True,
            )
            if code or late:
                failed += 1
                print(output if code else f"took longer than {arguments.limit} s", flush=True)
    print(f"{len(stems) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
