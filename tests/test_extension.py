"""Tests of the compiled module's loader: where it looks, and when it warns of pure Python."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import cdrl_fast
from cdrl_fast import _extension

ROOT = Path(__file__).parents[1]


def install(site, version=cdrl_fast.__version__, module=None, absent=None):
    """Create an installed distribution in a folder: metadata, build note and perhaps a module."""
    package = site / "cdrl_fast"
    package.mkdir(parents=True)
    info = site / f"cdrl_fast-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cdrl-fast\nVersion: {version}\n")
    (package / "_build.json").write_text(json.dumps({"absent": absent}))
    if module is not None:
        shutil.copy(module, package)
    return metadata.PathDistribution(info)


@pytest.fixture
def distributions(tmp_path, monkeypatch):
    """Hide the module from the loader; yield a list of the distributions that it looks in."""
    distributions = []
    monkeypatch.setattr(_extension, "_PACKAGE", tmp_path / "package")
    monkeypatch.setattr(_extension, "_beside", lambda: None)
    monkeypatch.setattr(_extension.metadata, "distributions", lambda **_: iter(distributions))
    _extension._loaded.cache_clear()
    yield distributions
    _extension._loaded.cache_clear()


def warnings_of_load():
    """Return the warnings of two calls of the loader, and check that it finds no module."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert _extension.load() is None
        assert _extension.load() is None
    assert all(w.category is UserWarning for w in caught)
    return [str(w.message) for w in caught]


def test_the_package_and_its_distribution_have_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cdrl_fast.__version__ == project["version"]


def test_a_source_folder_takes_the_installed_module(tmp_path):
    """In a source folder without a module, Python uses the installed module."""
    module = _extension.load()
    if module is None:
        pytest.skip("there is no compiled module")
    source = tmp_path / "cdrl fast (1)"
    left_out = shutil.ignore_patterns("_C.*", "_build.json", "__pycache__", "pretrained")
    shutil.copytree(Path(cdrl_fast.__file__).parent, source / "cdrl_fast", ignore=left_out)
    (source / "cdrl_fast.egg-info").mkdir()  # as a build leaves it
    (source / "cdrl_fast.egg-info" / "PKG-INFO").write_text("Name: cdrl-fast\nVersion: 9.9\n")
    install(tmp_path / "site", module=module.__file__)
    code = (
        "import cdrl_fast, cdrl_fast._extension as n\n"
        "cdrl_fast.normal((2, 2), seed=0, draw=0, backend='native')\n"
        "import sys; assert sys.modules['cdrl_fast._C'] is n.load()\n"
        "print(cdrl_fast.__file__, n.load().__file__, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    package, file = done.stdout.splitlines()
    assert Path(package).parents[1] == source
    assert Path(file).parents[1] == tmp_path / "site"


def test_the_file_in_a_distribution(tmp_path):
    empty = install(tmp_path / "empty")
    assert _extension.module_file(empty) is None
    for i, suffix in enumerate(EXTENSION_SUFFIXES):
        distribution = install(tmp_path / str(i))
        file = tmp_path / str(i) / "cdrl_fast" / f"_C{suffix}"
        file.write_bytes(b"")
        (file.parent / "_C.of-another-python.so").write_bytes(b"")
        assert _extension.module_file(distribution) == file


def test_another_version_is_not_taken(tmp_path, distributions):
    file = tmp_path / f"_C{EXTENSION_SUFFIXES[0]}"
    file.write_bytes(b"")
    distributions.append(install(tmp_path / "site", "0.0.1", file))
    (message,) = warnings_of_load()
    assert "pure Python" in message
    assert "installed cdrl-fast is version 0.0.1" in message
    assert f"version {cdrl_fast.__version__}; run `pip install .`" in message
    assert _extension.reason() in message


def test_a_module_that_cannot_be_loaded_is_warned_of(tmp_path, distributions):
    file = tmp_path / f"_C{EXTENSION_SUFFIXES[0]}"
    file.write_bytes(b"no module")
    distributions.append(install(tmp_path / "site", module=file))
    (message,) = warnings_of_load()
    assert f"{tmp_path / 'site' / 'cdrl_fast' / file.name} cannot be loaded" in message


def test_a_module_with_another_interface_is_not_taken(monkeypatch):
    module = _extension.load()
    if module is None:
        pytest.skip("there is no compiled module")
    monkeypatch.setattr(_extension, "INTERFACE", -1)
    _extension._loaded.cache_clear()
    (message,) = warnings_of_load()
    _extension._loaded.cache_clear()
    assert f"has interface {module.interface}, expected -1" in message


def test_nothing_installed_is_warned_of(tmp_path, distributions):
    (message,) = warnings_of_load()
    assert f"neither {tmp_path / 'package'} nor an installed cdrl-fast has a compiled" in message
    assert message.endswith("; run `pip install .` in the source folder")


def test_an_install_that_lost_its_module_is_warned_of(tmp_path, distributions):
    distributions.append(install(tmp_path / "site"))
    (message,) = warnings_of_load()
    assert "nor an installed cdrl-fast has a compiled module" in message


@pytest.mark.parametrize("package", ["imported", "installed"])
def test_pure_python_that_was_chosen_is_not_warned_of(tmp_path, distributions, package):
    if package == "imported":
        install(tmp_path / "site", absent="switched off").locate_file("cdrl_fast").rename(
            tmp_path / "package"
        )
    else:
        distributions.append(install(tmp_path / "site", absent="switched off"))
    assert warnings_of_load() == []
    assert _extension.reason() == "the compiled module switched off"
