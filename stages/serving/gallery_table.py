"""The database of a gallery: a LanceDB table with a row for each picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.extras import one_line, optional

NAME = "pictures"
FACTS = ("path", "sha256", "person", "camera", "time", "face_path")
"""Columns of text; person, camera, time and face_path may be null."""
_REQUIRED = ("path", "sha256")
_FORMAT = {"new_table_data_storage_version": "2.0"}
"""Vectors lie in its files as in memory: they are read in a third of the time of 2.1."""
_READ_AHEAD = 32 * 2**20
"""Bytes that the database reads ahead of a search; its own default is 2 GB."""
_KEPT = timedelta(hours=1)
"""How long an earlier version stays for those who read it."""
_NAMES = 1000
"""Values in one condition."""


class Filter(NamedTuple):
    """Which pictures are meant: those that fulfil every condition that is given."""

    cameras: Sequence[str] = ()
    persons: Sequence[str] = ()
    after: str | None = None
    """First moment, as `pictures.moment` writes it."""
    before: str | None = None
    """First moment that isn't meant any more."""

    @property
    def sql(self) -> str | None:
        """The condition for the database, None for all pictures."""
        parts = [
            is_one_of(column, values)
            for column, values in (("camera", self.cameras), ("person", self.persons))
            if values
        ]
        parts += [f"time >= {_quoted(self.after)}"] if self.after is not None else []
        parts += [f"time < {_quoted(self.before)}"] if self.before is not None else []
        return " AND ".join(parts) or None


def is_one_of(column: str, values: Sequence[str | int]) -> str:
    """A condition: the column has one of these values."""
    return f"{column} IN ({', '.join(map(_quoted, values))})"


def _quoted(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


class PictureTable:
    """The rows of a gallery. What reads sees one version, whatever is written meanwhile.

    Columns: number int64, counted up in the order of adding; those of FACTS; has_face; and a
    descriptor for each part, float16 [length].
    """

    def __init__(self, folder: Path, parts: Mapping[str, int], *, create: bool = False) -> None:
        """parts: name → length. Raises InputError where there is no such table in the folder."""
        os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(_READ_AHEAD))
        lancedb = optional("lancedb", "deskpro gallery", "gallery")
        self.arrow = optional("pyarrow", "deskpro gallery", "gallery")
        self.folder, self.parts = folder, dict(parts)
        schema = self._schema()
        try:
            database = lancedb.connect(str(folder), storage_options=_FORMAT)
            if create:
                database.create_table(NAME, schema=schema)
            self.table = database.open_table(NAME)
            found = self.table.schema
        except Exception as error:  # noqa: BLE001 — the library raises anything
            raise self._damaged(error) from None
        if not found.equals(schema):
            raise InputError(
                f"{folder}: the columns of its table are {', '.join(found.names)}; must be "
                f"{', '.join(schema.names)}, of the types that deskpro gallery writes"
            )

    def __len__(self) -> int:
        return self.count(None)

    def count(self, where: str | None) -> int:
        """How many rows fulfil a condition."""
        try:
            return int(self.table.count_rows(where))
        except Exception as error:  # noqa: BLE001
            raise self._damaged(error) from None

    def batches(
        self, columns: Sequence[str], where: str | None = None, rows: int = 8192
    ) -> Iterator[dict[str, Any]]:
        """Columns, at most so many rows at a time, in no order that counts.

        Texts are lists with None for null, numbers and has_face arrays [n], descriptors float16
        [n, length].
        """
        try:
            for batch in self._query(columns, where).to_batches(batch_size=rows):
                for start in range(0, batch.num_rows, rows):
                    some = batch.slice(start, rows)
                    yield {name: self._values(some.column(name), name) for name in columns}
        except Exception as error:  # noqa: BLE001
            raise self._damaged(error) from None

    def read(self, columns: Sequence[str], where: str | None = None) -> dict[str, Any]:
        """`number`, and columns as `batches` gives them, in the order of `number`."""
        names = [*dict.fromkeys(("number", *columns))]
        try:
            found = self._query(names, where).to_arrow().sort_by("number")
        except Exception as error:  # noqa: BLE001
            raise self._damaged(error) from None
        return {name: self._values(found.column(name).combine_chunks(), name) for name in names}

    def facts(self, numbers: Iterable[int]) -> dict[int, dict[str, str | None]]:
        """The FACTS of the rows of these numbers, by number."""
        wanted, found = sorted(numbers), dict[int, dict[str, str | None]]()
        for start in range(0, len(wanted), _NAMES):
            rows = self.read(FACTS, is_one_of("number", wanted[start : start + _NAMES]))
            texts = zip(*(rows[name] for name in FACTS), strict=True)
            for number, values in zip(rows["number"].tolist(), texts, strict=True):
                found[number] = dict(zip(FACTS, values, strict=True))
        return found

    def _query(self, columns: Sequence[str], where: str | None) -> Any:
        query = self.table.search().select([*columns])
        return query if where is None else query.where(where)

    def write(self, rows: Mapping[str, Any], *, replace: bool = False) -> None:
        """Add rows at once: all of them are in afterwards, or none.

        Args:
            rows: every column, as `batches` gives them.
            replace: whether rows of the same paths go at the same moment.

        Raises:
            OSError, RuntimeError: the system refuses to write.
        """
        table = self.arrow.table(
            [self._array(rows[field.name], field) for field in self._schema()],
            schema=self._schema(),
        )
        if replace:
            merge = self.table.merge_insert("path").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(table)
        else:
            self.table.add(table)

    def remove(self, where: str) -> None:
        """Remove the rows that fulfil a condition, at once."""
        self.table.delete(where)

    def compact(self) -> None:
        """Make few files of many, and remove what killed processes and old versions left."""
        self.table.optimize(cleanup_older_than=_KEPT, delete_unverified=True)

    def _schema(self) -> Any:
        arrow = self.arrow
        texts = [arrow.field(name, arrow.string(), name not in _REQUIRED) for name in FACTS]
        vectors = [
            arrow.field(part, arrow.list_(arrow.float16(), length), False)
            for part, length in self.parts.items()
        ]
        number = arrow.field("number", arrow.int64(), False)
        return arrow.schema(
            [number, *texts, arrow.field("has_face", arrow.bool_(), False), *vectors]
        )

    def _array(self, values: Any, field: Any) -> Any:
        if field.name not in self.parts:
            return self.arrow.array(values, field.type)
        flat = self.arrow.array(np.ascontiguousarray(values, np.float16).ravel())
        return self.arrow.FixedSizeListArray.from_arrays(flat, type=field.type)

    def _values(self, column: Any, name: str) -> Any:
        if name in FACTS:
            return column.to_pylist()
        if name in self.parts:
            return column.flatten().to_numpy().reshape(-1, self.parts[name])
        return column.to_numpy(zero_copy_only=False)

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"{self.folder}: its table can't be read ({one_line(error)}). Restore it from a copy, "
            "or remove the folder and add the pictures again"
        )
