"""Python in locales that are not ours."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def needs_python(environment: dict[str, str]) -> None:
    """Skip where Python itself does not start with these variables over ours.

    Told to read ASCII, it can't where the environment lies in a folder with another name: its own
    list of paths there does not decode.
    """
    command = [sys.executable, "-c", ""]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True)
    if done.returncode and b"Failed to import the site module" in done.stderr:
        pytest.skip("Python does not start here in ASCII: its folder has another name")
