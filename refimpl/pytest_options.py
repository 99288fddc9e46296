"""Two options of the project's own test run, registered with pytest by name: `pytest --golden DIR`, `pytest --exactness FILE`."""

from pathlib import Path


def pytest_addoption(parser):
    parser.addoption("--golden", metavar="DIR", type=Path, help="folder of official figures, <DIR>/<stem>/<case>.json (default: tests/golden)")
    parser.addoption("--exactness", metavar="FILE", type=Path, help="write every case's largest deviation to this JSON file")
