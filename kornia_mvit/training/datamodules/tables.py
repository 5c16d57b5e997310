"""Images listed in a table, with a label each."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from kornia_mvit.data.formats.tables import Row, find_names, number_labels, read_table
from kornia_mvit.data.reading import DataError
from kornia_mvit.data.splits import SPLITS, split_of
from kornia_mvit.parsing import cut, is_file, repeated
from kornia_mvit.training.datamodules.labelled import Classes, LabelledFiles
from kornia_mvit.training.datamodules.settings import LabelledSettings
from kornia_mvit.training.settings import accepts

__all__ = ["TableData", "TableSettings"]


@dataclass
class _Train:
    train: str


@dataclass
class TableSettings(LabelledSettings, _Train):
    """The settings of :class:`TableData`, which documents them."""

    _: KW_ONLY
    val: str | None = None
    test: str | None = None
    root: str | None = None
    path_column: str = "path"
    label_column: str = "label"
    split_column: str | None = None
    class_names: Sequence[str] | None = None


class TableData(LabelledFiles):
    r"""Images whose paths and labels stand in tables: ``.csv``, ``.tsv``, or ``.jsonl`` with an object in each line.

    There is a table for each split, or a single table. A single table may have a column with ``train``, ``val``
    (``valid``, ``validation``) or ``test``; without it, a part of each class is used for validation. A run that was
    stopped resumes in the middle of an epoch.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.datamodules.base.ImageData`.

    Args:
        train: table of the training images, or of all.
        val: table of the validation images.
        test: table of the test images.
        root: folder that paths in the tables start from; that of each table when None.
        path_column: name of the column of paths.
        label_column: name of the column of labels.
        split_column: name of the column of splits in a single table.
        class_names: names of the classes in the order of their numbers; labels are these names, or else these
            numbers. When None, the labels of the training images, sorted if they are text; integers count from 0.
        on_error: ``'raise'`` looks for every file before the start, stops at an image that cannot be read, and names
            it; ``'skip'`` tries every image before the start, which takes about as long as an epoch of reading, and
            counts and lists those that it leaves out, missing ones included.

    Raises:
        DataError: naming table and line, if a table or an image is missing, a row is incomplete or broken, or a
            label is not among the classes.
        ValueError: for ``split_column`` beside tables for val or test.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     names = [f'{i}.png' for i in range(4)]
        ...     for name in names:
        ...         Image.new('RGB', (8, 8)).save(pathlib.Path(folder, name))
        ...     table = pathlib.Path(folder, 'all.csv')
        ...     _ = table.write_text('path,label\n' + '\n'.join(f'{name},{i % 2}' for i, name in enumerate(names)))
        ...     TableData(str(table)).class_names
        ('0', '1')
    """

    _TEST = "give a table for it"

    @accepts(TableSettings)
    def __init__(self, settings: TableSettings) -> None:
        self._begin_labelled(settings)
        root, split_column = settings.root, settings.split_column
        given = {"train": settings.train, "val": settings.val, "test": settings.test}
        tables = {split: Path(file) for split, file in given.items() if file is not None}
        if split_column is not None and len(tables) > 1:
            raise ValueError("split_column is for a single table, given as train; leave it, or val and test, out")
        columns = settings.path_column, settings.label_column, split_column
        rows = {split: read_table(file, *columns) for split, file in tables.items()}
        if split_column is not None:
            rows = _part(rows["train"], tables["train"], split_column)
        given_names = settings.class_names
        names = tuple(find_names(rows["train"]) if given_names is None else given_names)
        if repeated(names) or len(names) < 2:
            raise DataError(f"class_names are {', '.join(map(repr, names))}; give two or more, each once")
        folders = {split: Path(root) if root else tables.get(split, tables["train"]).parent for split in rows}
        files = {split: self._place(part, folders[split], names) for split, part in rows.items()}
        self._list(files, tables["train"])

    def _place(self, rows: Sequence[Row], root: Path, names: Sequence[str]) -> Classes:
        """Return the files of each class."""
        paths = [root / row.path for row in rows]
        if self.on_error == "raise":
            missing = [i for i, path in enumerate(paths) if not is_file(path)]
            if missing:
                raise DataError(
                    f"{rows[missing[0]].place}: no such image: {cut(paths[missing[0]])}; "
                    f"{len(missing)} of {len(rows)} images are missing; give the folder that paths start from as root, "
                    "or on_error='skip'"
                )
        classes: Classes = {name: [] for name in names}
        for path, number in zip(paths, number_labels(rows, names), strict=True):
            classes[names[number]].append(path)
        return classes


def _part(rows: Sequence[Row], file: Path, column: str) -> dict[str, list[Row]]:
    """Sort a table's rows by their split."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        split = split_of(str(row.split))
        if split is None:
            raise DataError(f"{row.place}: {column} is {row.split!r}; available: {', '.join(map(repr, SPLITS))}")
        parts.setdefault(split, []).append(row)
    if "train" not in parts:
        raise DataError(f"{file} has no row whose {column} is 'train'")
    return parts
