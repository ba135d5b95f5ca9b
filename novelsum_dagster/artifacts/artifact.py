"""The artifact: the output of a step, a small record that names bulk data by its hash.

Belongs here: the base class of all artifacts. Does not: their kinds, which the steps define (`pool.snapshot`,
`embedding.store`, `diversity.tables`, `selection.subset`, `report`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from novelsum_dagster.common.files import is_name, unsealed


def _within_storage(name: str) -> str:
    if not is_name(name) or "\\" in name:
        raise ValueError(f"{name!r} cannot be the name of a file in the storage folder")
    return name


def _without_folders(key: str) -> str:
    if "/" in _within_storage(key):
        raise ValueError(f"{key!r} cannot be a key: it has a slash")
    return key


Key = Annotated[str, AfterValidator(_without_folders)]


class Artifact(BaseModel):
    """The output of one step and the input of later ones: a small record; bulk data stays in files that it names.

    Raises:
        ValidationError: if its key or a path that it names would lead out of the storage folder, or its file was
            edited.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Key
    """Hash of the content: equal keys mean equal content."""

    @model_validator(mode="before")
    @classmethod
    def _is_unchanged(cls, values: Any) -> Any:
        return unsealed(values)

    @model_validator(mode="after")
    def _stays_in_storage(self) -> Self:
        # Artifacts are read from files that others may have written, e.g. on S3.
        if self.place is not None:
            _within_storage(self.place)
        return self

    @property
    def place(self) -> str | None:
        """File or folder of the output, in the storage folder; None if this record is the whole output."""
        return getattr(self, "folder", getattr(self, "file", None))

    @property
    def drawn_with(self) -> int | None:
        """The random seed used; None if nothing was drawn."""
        return None

    def sources(self) -> dict[str, str]:
        """Return the SHA-256 of the source files outside of the storage folder, by name."""
        return {}

    def stored_files(self, root: Path) -> list[str]:
        """Return its files, as paths in the storage folder `root`, without hidden ones."""
        if self.place is None:
            return []
        if (root / self.place).is_file():
            return [self.place]
        found = (path.relative_to(root) for path in self.files_in(root, root / self.place))
        return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))

    def files_in(self, root: Path, folder: Path) -> Iterable[Path]:
        """Yield its files in its folder; an artifact that shares the folder with others omits theirs."""
        return (path for path in folder.rglob("*") if path.is_file())
