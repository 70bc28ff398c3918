"""OpenML's files, made out of the pack of tables, and a local server that offers them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

IDENTIFIERS = {
    "timestamp": "numeric",
    "cylinder_number": "string",
    "MouseID": "{m1,m2}",
    "V1": "numeric",
}
"""What kind some of the columns have that OpenML ignores."""


def raw_rows(pack: Path, did: int) -> tuple[Any, Any, dict[str, Any]]:
    """A table of the pack in OpenML's order, with its codes as they are."""
    with np.load(pack) as opened:
        x_NF, y_N = opened[f"{did}_X"], opened[f"{did}_y"]
        meta = next(m for m in json.loads(str(opened["meta"])) if m["did"] == did)
    order = np.arange(len(y_N))
    np.random.RandomState(13).shuffle(order)
    raw_NF, raw_N = np.empty_like(x_NF), np.empty_like(y_N)
    raw_NF[order], raw_N[order] = x_NF, y_N
    return raw_NF, raw_N, meta


def level(code: int) -> str:
    """The name of a category; every kind of name that has to be quoted occurs."""
    return [f"it's {code}", f"b,{code}", f'"c" {code}', f"d{code}", f"{code} %"][code % 5]


def quoted(text: str) -> str:
    """A name as Weka writes it."""
    if text.isalnum():
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def as_arff(pack: Path, did: int, ignored: tuple[str, ...]) -> str:
    """A table as OpenML's ARFF file: declared levels, ignored columns first, the label second."""
    x_NF, y_N, meta = raw_rows(pack, did)
    names, coded = meta["attributes"], set(meta["cat"])
    classes = [quoted(f"class {label}") for label in range(int(y_N.max()) + 1)]
    lines = ["% made by a test", f"@RELATION '{meta['name']} of a test'", ""]
    columns: list[list[str]] = []
    for name in ignored:
        kind = IDENTIFIERS.get(name, "string")
        lines.append(f"@ATTRIBUTE {quoted(name)} {kind}")
        values = [quoted(f"no {n}") if kind == "string" else str(n) for n in range(len(y_N))]
        columns.append(["m1" if kind.startswith("{") else value for value in values])
    lines.append(f"@attribute 'the label' {{{','.join(classes)}}}")
    columns.append([classes[label] for label in y_N])
    for place, name in enumerate(names):
        cells = x_NF[:, place]
        if place in coded:
            known = range(int(np.nanmax(cells)) + 2)  # the last of them does not occur
            kind = "{" + ", ".join(quoted(level(code)) for code in known) + "}"
            texts = ["?" if np.isnan(c) else quoted(level(int(c))) for c in cells]
        else:
            kind, texts = "REAL", ["?" if np.isnan(c) else str(c) for c in cells]
        lines.append(f"@ATTRIBUTE {quoted(name)} {kind}")
        columns.append(texts)
    rows = [",".join(row) for row in zip(*columns, strict=True)]
    return "\n".join([*lines, "@DATA", *rows, ""])


def description(ignored: tuple[str, ...], **more: Any) -> str:
    """OpenML's answer about a data set."""
    about = {
        "name": "of a test",
        "format": "ARFF",
        "default_target_attribute": "the label",
        "row_id_attribute": ignored[0] if len(ignored) == 1 else None,
        "ignore_attribute": list(ignored) if len(ignored) > 1 else None,
    }
    return json.dumps({"data_set_description": about | more})


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@contextlib.contextmanager
def served(folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    """The address of a server that offers these files."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
