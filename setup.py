"""Copies configs/ and the page of examples/space/ into the wheel; everything else is in pyproject.toml."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """The top-level folders stay the only source; an editable installation reads them from there."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree("configs", f"{self.build_lib}/hf_distil_whisper/configs")
            self.copy_tree("examples/space", f"{self.build_lib}/hf_distil_whisper/space")


setup(cmdclass={"build_py": BuildWithData})
