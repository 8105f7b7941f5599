"""What ``pyproject.toml`` cannot say: the top-level ``kernels/`` becomes ``minisrcnn.kernels``.

The kernels stand at the top level of the repository, where readers look for them, but are
installed inside the package: a bare top-level ``kernels`` belongs to another project on PyPI.
"""

from setuptools import find_packages, setup

SUBPACKAGES = find_packages(include=["minisrcnn", "minisrcnn.*"])
KERNELS = ["minisrcnn.kernels"] + [f"minisrcnn.kernels.{name}" for name in find_packages("kernels")]

setup(
    packages=SUBPACKAGES + KERNELS,
    package_dir={"minisrcnn": "minisrcnn", "minisrcnn.kernels": "kernels"},
    package_data={
        "minisrcnn": ["py.typed", "**/*.h", "**/*.txt", "**/*.json", "models/*.safetensors",
                      "models/*.md", "learn/exercises/*.py", "_gradcheck_np/pyproject.toml",
                      "_gradcheck_np/setup.py", "_gradcheck_np/.gitignore"],
        "minisrcnn.kernels": ["**/*.cu", "**/*.h", "**/*.md"],
    },
)
