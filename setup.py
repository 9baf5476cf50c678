"""Copies the recipes of configs/ into the wheel; everything else stands in pyproject.toml."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """The top-level folder stays the only source; an editable installation reads it where it lies."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree("configs", f"{self.build_lib}/hf_distil_whisper/configs")


setup(cmdclass={"build_py": BuildWithRecipes})
