"""Where the images of a set lie: a folder, or a zip file that is read member by member and never unpacked."""

import io
import os
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from repro.errors import ReproError
from repro.files.placeholders import refuse_placeholder
from repro.files.reading import open_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HIDDEN, HIDDEN_NAMES = (".", "@", "#recycle", "$"), ("__MACOSX", "__pycache__", "lost+found", "System Volume Information")
HIDDEN_IMAGES = "images that are hidden or in hidden folders"
LABELS = "dataset.json"  # that of EDM's dataset_tool.py
MOST_LABEL_BYTES = 2**28  # ImageNet's has some 50 MB
MOST_MEMBER_BYTES = 2**28  # of an image in a zip file: more than 64 million pixels take
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others may ask for gigabytes of memory
ENCRYPTED = 0x1  # of a member's flags
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, LookupError)


class Source(ABC):
    """The images of a set, and what else lies there.

    Attributes:
        path: Where they lie.
        names: The images, sorted, with forward slashes.
        left_out: What was left out -> how many: hidden folders, linked folders and files of other kinds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self.left_out = Counter[str]()

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Opens an image.

        Raises:
            ReproError: It cannot be read.
        """

    @abstractmethod
    def placed(self, name: str) -> str:
        """Names a file in a message."""

    @abstractmethod
    def has_labels(self) -> bool:
        """Says whether there is a `dataset.json` at the top."""

    def labels(self) -> bytes | None:
        """Returns the content of `dataset.json`, None where there is none.

        Raises:
            ReproError: It cannot be read, or is too large.
        """
        if not self.has_labels():
            return None
        with self.open(LABELS) as file:
            content = file.read(MOST_LABEL_BYTES + 1)
        if len(content) > MOST_LABEL_BYTES:
            raise ReproError(f"{self.placed(LABELS)}: has more than {MOST_LABEL_BYTES >> 20} MiB; take it out of data.folder")
        return content

    def close(self) -> None:
        """Closes what was opened."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take(self, name: str) -> bool:
        """Says whether a file is an image of the set, and counts it among what was left out where it is not."""
        *parents, own = name.split("/")
        is_image = own.lower().endswith(SUFFIXES)
        if own.startswith(".") or any(map(_is_hidden, parents)):
            self.left_out[HIDDEN_IMAGES] += is_image
        elif not is_image and name != LABELS:
            self.left_out[f"{Path(own).suffix.lower() or 'other'} files"] += 1
        elif is_image:
            return True
        return False


class Folder(Source):
    """The images below a folder, at any depth.

    Raises:
        ReproError: The folder or an image cannot be read, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for parent, folders, files in os.walk(path, onerror=self._refuse):
            below = Path(parent).relative_to(path)
            hidden = any(map(_is_hidden, below.parts))
            self.left_out["linked folders"] += 0 if hidden else sum(Path(parent, name).is_symlink() for name in folders)
            self.names += [name for name in ((below / file).as_posix() for file in files) if self._take(name) and self._is_regular(name)]
        self.names.sort()
        self.left_out = +self.left_out

    def open(self, name: str) -> IO[bytes]:
        """Opens the file."""
        try:
            return (self.path / name).open("rb")
        except OSError as error:
            raise self._unreadable(self.path / name, error) from error

    def placed(self, name: str) -> str:
        """Returns its path."""
        return str(self.path / name)

    def has_labels(self) -> bool:
        """Looks for the file."""
        return (self.path / LABELS).is_file()

    def _is_regular(self, name: str) -> bool:
        try:
            status = (self.path / name).stat()
        except OSError as error:
            raise self._unreadable(self.path / name, error) from error
        if not stat.S_ISREG(status.st_mode):
            raise ReproError(f"data.folder: {self.path / name}: no regular file; take it out of the folder")
        return True

    def _refuse(self, error: OSError) -> None:
        raise self._unreadable(error.filename, error) from error

    def _unreadable(self, path: object, error: OSError) -> ReproError:
        return ReproError(f"data.folder: {path}: cannot be read ({error.strerror}); name a folder of images")


class Archive(Source):
    """The images in a zip file, at any depth; one folder that holds all of them counts as the top.

    Raises:
        ReproError: It is no zip file, or an image in it is encrypted, neither stored nor deflated, declared as huge, or there twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open_regular(path))
                self._zip = zipfile.ZipFile(file)  # of an open file, so that threads may read from it at once
            except DAMAGED as error:
                refuse_placeholder(path)
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                raise ReproError(f"data.folder: {path}: not a readable zip file ({reason}); fetch it anew, or name another") from error
            self._members = self._listed()
            self.names = sorted(set(self._members) - {LABELS})
            self._closing = stack.pop_all()

    def open(self, name: str) -> IO[bytes]:
        """Reads the member, its checksum compared; no more of it is unpacked than it declares."""
        member = self._members[name]
        try:
            with self._zip.open(member) as packed:
                return io.BytesIO(packed.read(member.file_size))
        except DAMAGED as error:
            raise ReproError(f"{self.placed(name)}: damaged ({error}); fetch the zip file anew, or take the image out of it") from error

    def placed(self, name: str) -> str:
        """Returns the zip file and the member."""
        return f"{self.path}: {self._members[name].filename}"

    def has_labels(self) -> bool:
        """Looks for the member."""
        return LABELS in self._members

    def close(self) -> None:
        """Closes the file."""
        self._closing.close()

    def _listed(self) -> dict[str, zipfile.ZipInfo]:
        """Returns the images and `dataset.json`, by their names below the top."""
        files = [member for member in self._zip.infolist() if not member.is_dir()]
        seen = [member.filename for member in files if not any(map(_is_hidden, member.filename.split("/")))]
        top = _common_folder(seen)
        members: dict[str, zipfile.ZipInfo] = {}
        for member in files:
            name = member.filename.removeprefix(top)
            if self._take(name) or name == LABELS:
                _check_member(f"data.folder: {self.path}: {member.filename}", member, again=name in members)
                members[name] = member
        return members


def image_source(path: Path) -> Source:
    """Lists the images of a folder, or of a zip file, which is closed by its user.

    Raises:
        ReproError: It cannot be read.
    """
    return Archive(path) if path.suffix.lower() == ".zip" and path.is_file() else Folder(path)


def _check_member(place: str, member: zipfile.ZipInfo, *, again: bool) -> None:
    """Refuses a member before anything of it is unpacked."""
    if again:
        raise ReproError(f"{place}: is there twice; take one out of the zip file")
    if member.flag_bits & ENCRYPTED:
        raise ReproError(f"{place}: is encrypted; decrypt the zip file")
    if member.compress_type not in PACKINGS:
        raise ReproError(f"{place}: is packed by method {member.compress_type}; store or deflate it")
    if member.file_size > MOST_MEMBER_BYTES:
        raise ReproError(
            f"{place}: declares {member.file_size:,} bytes, more than the {MOST_MEMBER_BYTES:,} of an image; take it out of the zip file"
        )


def _common_folder(names: list[str]) -> str:
    """Returns the one folder at the top that holds all files, with a slash; empty where there is none."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""


def _is_hidden(name: str) -> bool:
    return name.startswith(HIDDEN) or name in HIDDEN_NAMES
