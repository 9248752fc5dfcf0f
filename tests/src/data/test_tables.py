"""Tables of one's own videos: CSV and Parquet alike, and what no table may be."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from listings import config, put, refused, rows, touch

from vidpipe.data.layouts import list_items, tables

TABLE = pd.DataFrame(
    {
        "path": ["./a.mp4", "sub//b.mp4", "c.mp4", "d.mp4"],
        "label": ["x", "y", "x", "y"],
        "split": ["train", "Validation", "test", "train"],
        "take": [1, 2, 1, 1],
    }
)


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_a_table_is_read_alike_from_csv_and_parquet(tmp_path: Path, name: str) -> None:
    table = TABLE.astype({"label": "category"})
    if name.endswith("csv"):
        table.to_csv(tmp_path / name, index=False)
    else:
        table.assign(embedding=[[1.0]] * 4).to_parquet(tmp_path / name)
    touch(tmp_path, "a.mp4", "sub/b.mp4", "c.mp4", "d.mp4")
    # There is a validation split, so test is not used.
    expected = [("a.mp4", "x", "train"), ("d.mp4", "y", "train"), ("sub/b.mp4", "y", "val")]
    assert rows(list_items(config(tmp_path, "table", annotations=name))) == expected
    first = config(tmp_path, "table", annotations=name, keep={"val": {"take": 1}})
    # The rule leaves no validation row: test rows are what is left to validate on.
    assert ("c.mp4", "x", "val") in rows(list_items(first))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,label,split\na,x,train\nb,y\n", {}, "row 3: split '' of b; expected train or val"),
        ("path,label\na,x,1\nb,y,2\n", {}, "not a readable table"),
        ("path,label\na,x\n\nb,\n", {}, "row 4 has no path or no label"),
        ("path,label,split\na,x,train\n..\\b,y,val\n", {}, "row 3: path .* leaves data.root"),
        ("path,label,split\na,x,train\nC:\\b,y,val\n", {}, "row 3: path .* leaves data.root"),
        ("path,label\na,x\nb,y\n", {"keep": {"val": {"label": "x"}}}, "has no column 'split'"),
        (
            "path,label,split\na,x,val\n",
            {"keep": {"dev": {"label": "x"}}},
            "data.keep.dev: no such",
        ),
        ("path,label,split\na,x,val\n", {"keep": {"val": {"lable": "x"}}}, "nearest is label"),
        ("", {}, "not a readable table"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, options: dict, message: str) -> None:
    put(tmp_path, "index.csv", text)
    refused(config(tmp_path, "table", annotations="index.csv", **options), message)


WIDE = "," * 10_000


@pytest.mark.parametrize(
    "text",
    [
        f"path,label,{WIDE}\na,x{WIDE}\nb,y{WIDE}\n",
        f"path,lable,{WIDE}\na,x{WIDE}\n",
        f"path,label\na,x\nb,y{WIDE}\n",
        "path,label\na,x" + 2**20 * "x",
    ],
)
def test_a_table_of_a_million_columns_is_not_read(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took minutes. Nothing but the lines up to the first wide one is read, and of that 1 MiB."""
    put(tmp_path, "index.csv", text + "," * 2**22)
    monkeypatch.delattr("pandas.read_csv")
    refused(config(tmp_path, "table", annotations="index.csv"), r"line \d has over 10000 columns")


def test_a_wide_parquet_is_refused_and_an_empty_cell_shows_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_COLUMNS", 200)
    wide = pd.DataFrame({f"c{i}": ["x"] for i in range(201)})
    wide.to_parquet(tmp_path / "wide.parquet")
    refused(config(tmp_path, "table", annotations="wide.parquet"), "over 200 columns")
    narrow = wide.iloc[:, :100].assign(path="a", label="")
    narrow.to_csv(tmp_path / "narrow.csv", index=False)
    refused(config(tmp_path, "table", annotations="narrow.csv"), r"row 2 has no path or .{1,200}$")
