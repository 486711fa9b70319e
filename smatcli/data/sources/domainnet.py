"""Source `domainnet`: one domain of DomainNet (Peng et al., ICCV 2019), `<domain>/<class>/<image>` with its list files."""

from collections.abc import Sequence
from pathlib import Path

from smatcli.data.images import image_suffixes
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.imagetree import ImageTree, digest, file_stamp, first_few, read_pairs, safe_name, whole_number
from smatcli.errors import UserError, nearest

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


class DomainNetSource:
    """All images listed in `<domain>_train.txt` and `<domain>_test.txt` (lines like "sketch/zebra/sketch_345_000001.jpg 344"), by class.

    The lists split by image, which is ignored: classes are split as for any folder. Without list files, all images in the folder are
    used. `path` contains the folder or ZIP `<domain>`, and the lists, possibly in a folder `splits`. Classes are sorted by label.
    Raises UserError for an unknown domain, a missing folder, or lists that contradict the folders.
    """

    kind = "domainnet"

    def __init__(self, path: str | Path, domain: str):
        if domain not in DOMAINS:
            raise UserError(f"domain {domain!r}: DomainNet has {', '.join(DOMAINS)}{nearest(domain, list(DOMAINS))}")
        self.name, self.domain = f"domainnet_{domain}", domain
        self.remarks: list[str] = []
        self.ontology = None
        root, images = _find(Path(path), domain)
        self._tree = ImageTree(images)
        try:
            self._prefix = _prefix(self._tree.names, domain)
            lists = [file for part in ("train", "test") if (file := _list_file(root, f"{domain}_{part}.txt"))]
            self.fingerprint = digest([self._tree.fingerprint, *map(file_stamp, lists)])
            self._classes = self._listed(lists) if lists else self._all()
        except BaseException:
            self._tree.close()
            raise

    def classes(self) -> Sequence[SourceClass]:
        return self._classes

    def read(self, image: str) -> bytes:
        return self._tree.read(self._prefix + image)

    def close(self) -> None:
        self._tree.close()

    def _listed(self, lists: list[Path]) -> list[SourceClass]:
        labels: dict[int, str] = {}
        numbers: dict[str, int] = {}
        images: dict[str, dict[str, None]] = {}
        for file in lists:
            for line, name, label in read_pairs(file, last=True):
                where = f"{file}, line {line}"
                parts = safe_name(name, where).split("/")
                if len(parts) != 3 or parts[0] != self.domain:
                    raise UserError(f"{where}: {name!r} is not {self.domain}/<class>/<image>")
                number = whole_number(label, where)
                if labels.setdefault(number, parts[1]) != parts[1] or numbers.setdefault(parts[1], number) != number:
                    raise UserError(f"{where}: label {number} for the class {parts[1]!r} contradicts an earlier line")
                inside = "/".join(parts[1:])
                if inside in images.setdefault(parts[1], {}):
                    raise UserError(f"{where}: {name!r} is listed twice")
                images[parts[1]][inside] = None
        if not images:
            raise UserError(f"{lists[0]}: lists no image")
        self._compare(images, lists)
        return [SourceClass(labels[number], sorted(images[labels[number]])) for number in sorted(labels)]

    def _compare(self, images: dict[str, dict[str, None]], lists: list[Path]) -> None:
        """Remark on unlisted images. Raises UserError if no listed image exists; single missing images are reported by `read`."""
        listed = {image for group in images.values() for image in group}
        available = self._image_names()
        if not listed & available:
            raise UserError(f"{self._tree.path}: has none of the {len(listed)} images in {lists[0]}; is it unpacked here?")
        if extra := sorted(available - listed):
            self.remarks.append(f"{len(extra)} images that are not in a list file skipped: {first_few(extra)}")
        if len(lists) == 1:
            self.remarks.append(f"only {lists[0].name} found; the other list file of {self.domain} is missing")

    def _all(self) -> list[SourceClass]:
        grouped: dict[str, list[str]] = {}
        for image in sorted(self._image_names()):
            grouped.setdefault(image.split("/")[0], []).append(image)
        if not grouped:
            raise UserError(f"{self._tree.path}: has no {self.domain}/<class>/<image>")
        self.remarks.append(f"no list files {self.domain}_train.txt and {self.domain}_test.txt: all images in the folder are used")
        return [SourceClass(name, images) for name, images in sorted(grouped.items())]

    def _image_names(self) -> set[str]:
        inside = (name[len(self._prefix) :] for name in self._tree.names if name.startswith(self._prefix))
        return {n for n in inside if n.count("/") == 1 and not n.startswith((".", "__")) and Path(n).suffix.lower() in image_suffixes()}


def _find(path: Path, domain: str) -> tuple[Path, Path]:
    """Return the folder of the list files, and the folder or ZIP of the images."""
    if not path.exists():
        raise UserError(f"{path}: folder does not exist; it should contain {domain}/ and {domain}_train.txt")
    for images in (path / domain, path / f"{domain}.zip"):
        if images.exists():
            return path, images
    if path.name in (domain, f"{domain}.zip"):
        return path.parent, path
    available = [name for name in DOMAINS if (path / name).is_dir() or (path / f"{name}.zip").is_file()]
    raise UserError(f"{path}: has no {domain}/ or {domain}.zip{f' (available: {chr(44).join(available)})' if available else ''}")


def _list_file(root: Path, name: str) -> Path | None:
    return next((file for folder in ("", "splits") if (file := root / folder / name).is_file()), None)


def _prefix(names: frozenset[str], domain: str) -> str:
    """Return "<domain>/" if all files are inside the domain's folder, as in the published ZIPs, else ""."""
    return f"{domain}/" if names and all(name.startswith((f"{domain}/", "__MACOSX/", ".")) for name in names) else ""
