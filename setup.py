"""The list of packages; pyproject.toml has everything else.

`experiments/` stands at the top of the repository and ships as `jestcli/experiments`: a package
that discovery does not find, and that a list in pyproject.toml would have to repeat all others for.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["jestcli*"]), "jestcli.experiments"])
