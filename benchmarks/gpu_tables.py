"""What `gpu.py` found, as tables and as lines of the summary; also the lines of a machine without a GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import report
import timing

SHARE, WAITING, IN_PROCESS, WHOLE = 0.4, 0.05, 3000, 500  # the targets
ROWS = (
    ("GPU: 4-stem training, share of the floor", f"at least {SHARE:.0%}"),
    ("GPU: time that training waits for 16 loader workers", f"under {WAITING:.0%}"),
    ("GPU: separation of 4 stems, in process", f"at least {IN_PROCESS} × real time"),
    ("GPU: separation of 4 stems, whole command on 4 minutes", f"at least {WHOLE} × real time"),
)


def tables(found: Mapping[str, Any]) -> list[str]:
    """Headings and tables of the parts that were measured."""
    text = [_ceiling_table(found["ceilings"])]
    if "train" in found:
        text += ["## Training, 4 stems", _train_table(found["train"])]
    if "loader" in found:
        text += ["## Loader", report.table(("what", "measured"), _loader_rows(found["loader"]))]
    if "separate" in found:
        text += ["## Separation, 4 stems", _separate_table(found["separate"]), _command_text(found["command"])]
    return text


def summary(found: Mapping[str, Any]) -> list[report.Row]:
    """Each target of the parts that were measured, and whether it is met."""
    rows = []
    if "train" in found:
        rows.append(_share_row(found["train"]))
    if "loader" in found:
        rows.append(_waiting_row(found["loader"]))
    if "separate" in found:
        rows += _speed_rows(found["separate"], found["command"])
    return rows


def _ceiling_table(rates: Mapping[str, float]) -> str:
    products = [(f"matrix product, {name}", f"{rates[name] / 1e12:.2f}", "TFLOP/s") for name in sorted(rates)
                if name not in ("memory", "copy")]  # fmt: skip
    copies = [
        ("copy in its memory, read and written", f"{rates['memory'] / 1e9:.0f}", "GB/s"),
        ("copy from pinned host memory", f"{rates['copy'] / 1e9:.1f}", "GB/s"),
    ]
    return report.table(("ceiling", "measured", "unit"), [*products, *copies])


def _train_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ("network", "precision", "compile", "batch", "ms per step", "examples/s", "floor, ms", "share", "GB",
               "first step, s")  # fmt: skip
    lines = []
    for row in rows:
        head = (row["network"], row["precision"], row["compile"] or "", row["batch"])
        least = f"{row['floor'] * 1e3:.2f}"
        if row["seconds"]:
            time = timing.Timing(tuple(row["seconds"])).text(1e-3)
            tail = (f"{row['share']:.0%}", f"{row['peak'] / 1e9:.1f}", f"{row['first']:.1f}")
            lines.append((*head, time, f"{row['examples']:.1f}", least, *tail))
        else:
            lines.append((*head, row["why"], "", least, "", "", ""))
    return report.table(columns, lines)


def _share_row(rows: Sequence[Mapping[str, Any]]) -> report.Row:
    done = [row for row in rows if row["seconds"] and row["network"] == "stemwise"]
    best = max(done, key=lambda row: row["share"])
    plain = [row for row in rows if row["seconds"] and row["network"] != "stemwise" and row["batch"] == best["batch"]]
    time = timing.Timing(tuple(best["seconds"])).median
    what, target = ROWS[0]
    return report.Row(
        what=what,
        peer=f"plain PyTorch fp32: {_median(plain[0]) * 1e3:.1f} ms" if plain else "",
        ours=f"{time * 1e3:.1f} ms, {best['share']:.0%} ({best['precision']}, batch {best['batch']}, "
        f"{best['compile'] or 'eager'})",
        ratio=_median(plain[0]) / time if plain else None,
        floor=f"{best['floor'] * 1e3:.1f} ms",
        target=target,
        met=best["share"] >= SHARE,
    )


def _median(row: Mapping[str, Any]) -> float:
    return timing.Timing(tuple(row["seconds"])).median


def _loader_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("workers, batch", f"{found['workers']}, {found['batch']}"),
        ("loader alone, to the device", f"{found['loader, examples per second']:.0f} examples/s"),
        ("step in bf16, one batch in memory", f"{found['step, one batch in memory'] * 1e3:.2f} ms"),
        ("step in bf16, batches from the loader", f"{found['step, batches from the loader'] * 1e3:.2f} ms"),
        ("time spent waiting", f"{found['waiting']:.1%}"),
    ]


def _waiting_row(found: Mapping[str, Any]) -> report.Row:
    what, target = ROWS[1]
    return report.Row(what, "", f"{found['waiting']:.1%}", target=target, met=found["waiting"] < WAITING)


def _separate_table(rows: Sequence[Mapping[str, Any]]) -> str:
    stages = list(rows[0]["stages"])
    columns = ("precision", "seconds", "× real time", *(f"{stage} of a window, ms" for stage in stages))
    return report.table(
        columns,
        [
            (
                row["precision"],
                timing.Timing(tuple(row["seconds"])).text(),
                f"{row['real time']:.0f}",
                *(f"{row['stages'][stage] * 1e3:.2f}" for stage in stages),
            )
            for row in rows
        ],
    )


def _command_text(found: Mapping[str, Any]) -> str:
    time = timing.Timing(tuple(found["seconds"])).text()
    return f"Whole process ({found['what']}): {time} s, {found['real time']:.1f} × real time."


def _speed_rows(rows: Sequence[Mapping[str, Any]], command: Mapping[str, Any]) -> list[report.Row]:
    best = max(rows, key=lambda row: row["real time"])
    speeds = ((best["real time"], best["precision"], IN_PROCESS), (command["real time"], command["what"], WHOLE))
    return [
        report.Row(
            what, "Spleeter's claim: 100 ×", f"{speed:.0f} × ({how})", speed / 100, target=target, met=speed >= least
        )
        for (what, target), (speed, how, least) in zip(ROWS[2:], speeds, strict=True)
    ]
