"""One open file of text, of any known kind -> the texts in it, a list at a time.

.txt and .md are cut into documents; .jsonl, .json, .csv, .tsv and .parquet have a text in one
column of each row. All but parquet may be packed, .gz or .zst.
"""
import csv
import gzip
import io
import itertools
import json
import os
import re
import zlib

import numpy as np

from lib.errors import InputError

PIECE = 10_000        # characters; a text file is cut into documents of at least this
CHUNK = 1_000_000     # characters that are read at a time
LARGEST = 64_000_000  # characters of one value in a JSON array
ROWS = 500            # in a list
KNOWN = ".txt, .md, .jsonl, .json, .csv, .tsv, each also .gz or .zst, and .parquet"
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
# where a text without blank lines is cut: at a line, a sentence, a word
OTHER_ENDS = [re.compile(end) for end in
              (r"\n", r"[.!?]['\")\]”’]*\s|[।॥。！？]\s*", r"\s")]
COMMAS = re.compile(r"[\s,]*")


class Damaged(InputError):
    """A file that cannot be read as what it should be; from a network it may come whole later."""


def kind_of(name):
    """A file's name -> (kind, packing), as ("jsonl", "gz"), or None if the kind is unknown."""
    found = re.search(r"\.(?:(parquet)|(txt|md|jsonl|json|csv|tsv)(?:\.(gz|zst))?)$", str(name),
                      re.IGNORECASE)
    if not found:
        return None
    return (found[1] or found[2]).lower(), (found[3] or "").lower()


# ---- documents ---------------------------------------------------------------------------------

def cut(text, size):
    """A text -> its pieces, which joined are the text. A piece has at least `size` characters and
    ends at a blank line; where none comes within four times the size, at a line, the end of a
    sentence, a space, or there."""
    pieces, at = [], 0
    while len(text) - at > size:
        limit = at + 4 * size
        found = BLANK_LINE.search(text, at + size - 1, limit)
        if not found and len(text) <= limit:
            break
        for end in OTHER_ENDS:
            found = found or end.search(text, at + size - 1, limit)
        stop = found.end() if found else limit
        pieces.append(text[at:stop])
        at = stop
    return [*pieces, text[at:]]


def separator_lines(separator):
    """A regular expression for lines that are the separator."""
    return re.compile(rf"^[^\S\n]*{re.escape(separator)}[^\S\n]*(?:\n|\Z)", re.MULTILINE)


def plain_text(chunks, separator):
    """The text of a file in chunks -> documents. They end at lines that are the separator; a file
    without one in its first chunk is cut into pieces of about PIECE characters."""
    line, rest, separated = separator_lines(separator), "", None
    for chunk in chunks:
        rest += chunk
        known, newline, unknown = rest.rpartition("\n")  # a separator may be cut in two
        *found, rest = line.split(known + newline)
        rest += unknown
        if separated is None:
            separated = bool(found)
        if not separated:
            found = [piece for document in found for piece in cut(document, PIECE)]
            *pieces, rest = cut(rest, PIECE)
            found += pieces
        for text in found:
            yield text.strip("\n")
    for text in line.split(rest):
        for piece in [text] if separated else cut(text, PIECE):
            yield piece.strip("\n")


def split_rows(texts, separator):
    """The texts of rows -> documents, without byte order marks, every line end a newline. A row
    without text stays None."""
    line, documents = separator_lines(separator), []
    for text in texts:
        if text is None:
            documents.append(None)
            continue
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        documents += line.split(text) if separator in text else [text]
    return documents


# ---- rows --------------------------------------------------------------------------------------

def json_lines(lines, where):
    """Lines of JSON -> their values."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Damaged(f"{where}, line {number}: not JSON ({error})") from None


def json_array(text, head, where):
    """The values of a JSON array, one at a time; `head` is its beginning, `text` the open rest."""
    decoder, buffer, at = json.JSONDecoder(), head, head.index("[") + 1
    while True:
        at = COMMAS.match(buffer, at).end()
        if buffer[at:at + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(buffer, at)
            yield value
        except (ValueError, RecursionError) as error:  # perhaps more of it has to be read
            left = len(buffer) - at
            more = text.read(max(CHUNK, left)) if left < LARGEST else ""
            if not more:
                raise Damaged(f"{where}: not a whole JSON array ({error})") from None
            buffer, at = buffer[at:] + more, 0


def json_rows(text, where):
    """A JSON array, or lines of JSON -> their values."""
    head = " "
    while head and not head.strip():
        head = text.readline(CHUNK)
    if head.lstrip().startswith("["):
        return json_array(text, head, where)
    if not head.endswith("\n"):
        head += text.readline()
    return json_lines(itertools.chain([head], text), where)


def table_rows(text, delimiter, where):
    """Lines of a table whose first line names the columns -> dicts."""
    csv.field_size_limit(2**31 - 1)
    rows = csv.DictReader(text, delimiter=delimiter)
    try:
        yield from rows
    except csv.Error as error:
        raise Damaged(f"{where}, line {rows.line_num}: {error}") from None


def column_of(rows, column, where):
    """Rows, objects or strings, -> the text in their column; None where there is none. InputError
    if the first ROWS rows, or all, have none."""
    some, without = False, []
    for row in rows:
        text = row.get(column) if isinstance(row, dict) else row
        if isinstance(text, str):
            some = True
        elif not some:
            without.append(row)
            if len(without) == ROWS:
                break
        yield text if isinstance(text, str) else None
    if without and not some:
        first = without[0]
        has = ", ".join(map(str, first)) if isinstance(first, dict) else type(first).__name__
        raise InputError(f"{where}: no text in column '{column}' (it has: {has}); "
                         "choose with --column")


def rows_from(file, row, column):
    """A column of an open parquet file from a row on, in lists of at most ROWS; row groups before
    it are not read."""
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    group = int(np.searchsorted(ends, row, "right"))  # the one that holds the row
    skip = row - int(ends[group - 1] if group else 0)
    groups = range(group, file.num_row_groups)
    for batch in file.iter_batches(ROWS, groups, [column], use_threads=False):
        texts = batch[column].to_pylist()[skip:]
        skip = max(0, skip - len(batch))
        if texts:
            yield texts


def parquet(raw, row, column, where):
    """An open parquet file from a row on -> (list of at most ROWS texts, share of it read)."""
    import pyarrow.parquet  # a dependency of datasets
    try:
        with pyarrow.parquet.ParquetFile(raw) as file:
            names = file.schema_arrow.names
            if names.count(column) != 1:
                what = "two columns" if column in names else "no column"
                raise InputError(f"{where}: {what} '{column}' (it has: {', '.join(names)}); "
                                 "choose with --column")
            kind = file.schema_arrow.field(column).type
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if str(kind) not in ("string", "large_string", "string_view"):
                raise InputError(f"{where}: column '{column}' is not text but {kind}")
            for texts in rows_from(file, row, column):
                row += len(texts)
                yield texts, row / file.metadata.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise Damaged(f"{where}: not a parquet file of UTF-8 text, or damaged ({error})") from None


def lists(texts, row):
    """Texts, of which `row` are passed over -> lists of at most ROWS, and of few characters more
    than 4 CHUNK."""
    some, size = [], 0
    for text in itertools.islice(texts, row, None):
        some.append(text)
        size += len(text or "")
        if len(some) == ROWS or size >= 4 * CHUNK:
            yield some
            some, size = [], 0
    if some:
        yield some


def read_texts(raw, name, row, column, separator):
    """An open file of any known kind, from its row `row` on -> (list of at most ROWS texts, share
    of the file read). A row without text is None. InputError if it cannot be read so."""
    kind, packing = kind_of(name)
    if kind == "parquet":
        yield from parquet(raw, row, column, name)
        return
    size = max(1, raw.seek(0, os.SEEK_END))
    raw.seek(0)
    try:
        unpacked = raw
        if packing == "gz":
            unpacked = gzip.open(raw)
        elif packing == "zst":
            import pyarrow
            unpacked = pyarrow.CompressedInputStream(raw, "zstd")
        text = io.TextIOWrapper(unpacked, "utf-8-sig")  # reads \r\n and \r as \n
        if kind in ("txt", "md"):
            texts = plain_text(iter(lambda: text.read(CHUNK), ""), separator)
        elif kind in ("csv", "tsv"):
            rows = table_rows(text, "\t" if kind == "tsv" else ",", name)
            texts = column_of(rows, column, name)
        else:
            rows = json_lines(text, name) if kind == "jsonl" else json_rows(text, name)
            texts = column_of(rows, column, name)
        for some in lists(texts, row):
            yield some, raw.tell() / size
    except UnicodeDecodeError as error:
        raise Damaged(f"{name}: not UTF-8 ({error})") from None
    except (EOFError, zlib.error, OSError) as error:
        if not packing:
            raise
        raise Damaged(f"{name}: damaged {packing} ({error})") from None
