"""Bring the files of gradcheck-np together, and read the version from the checker itself."""

import re
import shutil
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "gradcheck_np"
SOURCE = HERE.parent
INIT = '''"""Check hand-written gradients; see :mod:`gradcheck_np.gradcheck`."""

from .gradcheck import *
from .gradcheck import __all__, __version__
'''

if (SOURCE / "gradcheck.py").exists():  # a source distribution carries the copies
    PACKAGE.mkdir(exist_ok=True)
    for name in ("gradcheck.py", "gradcheck_pytest.py", "py.typed"):
        shutil.copy(SOURCE / name, PACKAGE / name)
    (PACKAGE / "__init__.py").write_text(INIT)
    for file in (SOURCE.parent / "LICENSE", SOURCE.parent / "docs" / "gradcheck.md"):
        if file.exists():
            shutil.copy(file, HERE / ("README.md" if file.suffix else "LICENSE"))

(VERSION,) = re.findall(r'^__version__ = "(.+?)"', (PACKAGE / "gradcheck.py").read_text(), re.M)

setup(version=VERSION)
