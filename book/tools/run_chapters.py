"""Run the stored chapters as a learner would: from the built wheel, in an empty folder, offline.

    python book/tools/run_chapters.py [stem …] [-j 2]

nbval executes every cell and compares what cells tagged `nbval-check-output` print. A chapter that
takes longer than its limit fails.
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
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)


def run(stem: str, site: Path, limit: int) -> tuple[str, int, float, str]:
    """One chapter in an empty folder: (stem, exit status, seconds, what pytest printed)."""
    folder = site.parent / "empty" / stem
    folder.mkdir(parents=True)
    shutil.copy(NOTEBOOKS / f"{stem}.ipynb", folder)
    path = f"{site}{os.pathsep}{ROOT / 'tests' / 'offline'}"
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder), "-q"]
    command += ["-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
    command += [f"--nbval-cell-timeout={limit}", f"{stem}.ipynb"]
    begun = time.perf_counter()
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    seconds = time.perf_counter() - begun
    return stem, result.returncode, seconds, result.stdout + result.stderr


def report(stem: str, code: int, seconds: float, output: str, limit: int) -> bool:
    """Print how a chapter went; whether it passed."""
    late = seconds > limit
    passed = not code and not late
    print(f"chapter {stem}: {'passed' if passed else 'FAILED'} in {seconds:.0f} s", flush=True)
    if not passed:
        print(output if code else f"took longer than {limit} s", flush=True)
    return passed


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
        help="seconds for one chapter (default 400: 60 on a quiet machine, and this may be busy)",
    )
    arguments = parser.parse_args()
    limit = arguments.limit
    known = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    stems = arguments.stems or known
    if unknown := sorted(set(stems) - set(known)):
        parser.error(f"no notebooks/{unknown[0]}.ipynb; there are: {', '.join(known) or 'none'}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        site = Path(folder) / "site"
        install_wheel(site)
        runs = pool.map(lambda stem: run(stem, site, limit), stems)
        passed = [report(*result, limit) for result in runs]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
