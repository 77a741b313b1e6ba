"""A comparison as tables: for the terminal, Markdown and LaTeX as it is read, for CSV with every digit."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from captioning.analysis.bootstrap import LEVEL
from captioning.analysis.compare import Comparison, Line
from captioning.analysis.cost import Cost, pareto
from captioning.analysis.plots import LOWER_IS_BETTER, name_of
from captioning.errors import UserError


class Costs(NamedTuple):
    of: Mapping[str, Cost]  # each group's
    about: str  # what times were taken of, and where; empty where none were


class Table(NamedTuple):
    title: str
    columns: list[str]  # the first is the rows' name
    rows: list[list[str]]
    notes: list[str]


def tables(comparison: Comparison, costs: Costs) -> list[Table]:
    """All metrics at a glance if there are several, one table for each, and one of costs."""
    overview = [overview_table(comparison)] if len(comparison.lines) > 1 else []
    return [*overview, *(metric_table(comparison, metric) for metric in comparison.lines), cost_table(comparison, costs)]


def overview_table(comparison: Comparison) -> Table:
    """As papers print it: a row for each group, a column for each metric."""
    names = [name_of(metric) + (" (lower is better)" if metric in LOWER_IS_BETTER else "") for metric in comparison.lines]
    rows = [
        [its[0].group, str(its[0].seeds), *(mean_of(line) + "*" * bool(line.is_found) for line in its)]
        for its in zip(*comparison.lines.values())
    ]
    notes = [f"mean ± sd over seeds; * differs from {comparison.baseline}, p (Holm) below {LEVEL:g}; intervals are below"]
    return Table(f"All metrics, x100 but for loss and perplexity: {comparison.about}", ["", "seeds", *names], rows, notes)


def metric_table(comparison: Comparison, metric: str) -> Table:
    lines, name = comparison.lines[metric], name_of(metric)
    unit = "" if metric in LOWER_IS_BETTER else ", x100"
    columns = ["", "seeds", "mean ± sd", "95% interval", "difference", "95% interval", "p", "p (Holm)", "resolves"]
    others = len(lines) - 1
    notes = [
        f"difference to {comparison.baseline}; intervals and p over seeds and images, p (Holm) for {others} "
        f"comparison{'s' * (others != 1)} by this metric, * below {LEVEL:g}",
        "resolves: the smallest difference that this data would find in 4 of 5 such studies; a smaller one seen has a <",
    ]
    title = f"{name}{unit}{' (lower is better)' if metric in LOWER_IS_BETTER else ''}: {comparison.about}"
    width = len(columns) if others else 4  # a single group has nothing to differ from
    return Table(title, columns[:width], [cells(line)[:width] for line in lines], notes if others else [])


def cells(line: Line) -> list[str]:
    row = [line.group, str(line.seeds), mean_of(line), span(line.mean.interval)]
    if line.difference is None:
        return [*row, "baseline", "", "", "", ""]
    its, mark = line.difference, "*" if line.is_found else ""
    assert line.p_holm is not None
    small = "< " if line.is_below_resolution else ""
    return [
        *row,
        minus(f"{its.value:+.2f}"),
        span(its.interval),
        probability(its.p),
        probability(line.p_holm) + mark,
        f"{small}{its.resolvable:.2f}",
    ]


def cost_table(comparison: Comparison, costs: Costs) -> Table:
    metric = next(iter(comparison.lines))
    best, which = undominated(comparison, costs)
    rows = []
    for group in comparison.groups:
        its = costs.of[group.name]
        times = [f"{1000 * seconds:.1f}" for seconds in (its.greedy, its.beam) if seconds is not None]
        training = "" if its.training is None else duration(its.training)
        memory = "" if its.memory is None else f"{its.memory / 2**30:.2f}"
        counts = [f"{its.parameters / 1e6:.2f}", f"{its.trained / 1e6:.2f}", f"{its.flops / 1e9:.3g}"]
        rows.append([group.name, *counts, *times, training, memory, "◆" if group.name in best else ""])
    times = ["ms, greedy", "ms, beam 3"] if costs.about else []
    columns = ["", "parameters, M", "trained, M", "GFLOPs a caption", *times, "training", "peak GiB", "Pareto"]
    notes = [
        f"◆: no other has a better {name_of(metric)} for no more {which}",
        "GFLOPs: encoder and greedy decoding of a caption of the mean length; training: mean over seeds, no validation; peak: the most",
    ]
    return Table("Costs", columns, rows, [*notes, *filter(None, [costs.about])])


def undominated(comparison: Comparison, costs: Costs) -> tuple[set[str], str]:
    """The groups that no other beats in the first metric and in cost, and which cost."""
    metric, lines = next(iter(comparison.lines.items()))
    sign = -1 if metric in LOWER_IS_BETTER else 1
    values = {line.group: sign * line.mean.value for line in lines}
    return pareto(values, {name: spent(its) for name, its in costs.of.items()}), "ms (greedy)" if costs.about else "FLOPs"


def spent(cost: Cost) -> float:
    """Milliseconds a greedy caption, or FLOPs where nothing was timed."""
    return cost.flops if cost.greedy is None else 1000 * cost.greedy


def mean_of(line: Line) -> str:
    return f"{line.mean.value:.2f}" + ("" if line.sd is None else f" ± {line.sd:.2f}")


def span(interval: tuple[float, float]) -> str:
    return f"[{minus(f'{interval[0]:.2f}')}, {minus(f'{interval[1]:.2f}')}]"


def minus(number: str) -> str:
    return number.replace("-", "−")


def probability(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# As text


def show(shown: Sequence[Table]) -> None:
    """To the terminal; where there is none, as wide as it is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    for its in shown:
        grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
        for place, column in enumerate(its.columns):
            grid.add_column(column, justify="right" if place else "left", no_wrap=place > 0, overflow="fold")
        for row in its.rows:
            grid.add_row(*map(escape, row))
        console.print(escape(its.title), style="bold")
        console.print(grid)
        for note in its.notes:
            console.print(escape(note), style="dim")
        console.print()


def markdown(shown: Sequence[Table], warnings: Sequence[str]) -> str:
    parts = ["\n".join(f"- {marked(warning)}" for warning in warnings)] if warnings else []
    for its in shown:
        lines = [its.columns, ["---", *["---:"] * (len(its.columns) - 1)], *its.rows]
        grid = "\n".join(f"| {' | '.join(map(marked, line))} |" for line in lines)
        parts.append(f"**{marked(its.title)}**\n\n{grid}\n\n" + "  \n".join(map(marked, its.notes)))
    return "\n\n".join(parts) + "\n"


def marked(text: str) -> str:
    """Text that Markdown would read as its own marks; a separator of columns is none."""
    return text if set(text) <= set("-:") else "".join(f"\\{letter}" if letter in r"\|*_`<>#" else letter for letter in text)


ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
           "−": "$-$", "±": r"$\pm$", "◆": r"$\blacklozenge$", **{letter: f"\\{letter}" for letter in "&%$#_{}"}}  # fmt: skip


def latex(shown: Sequence[Table], warnings: Sequence[str]) -> str:
    """Tables for booktabs; ◆ needs amssymb."""
    parts = ["% \\usepackage{booktabs,amssymb}", *(f"% {' '.join(warning.split())}" for warning in warnings)]
    for its in shown:
        columns = "l" + "r" * (len(its.columns) - 1)
        lines = [" & ".join(map(escaped, row)) + r" \\" for row in (its.columns, *its.rows)]
        grid = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        caption = " ".join(f"{escaped(text)}." for text in (its.title, *its.notes))
        parts += ["", r"\begin{table}", r"\centering\small", f"\\caption{{{caption}}}", f"\\begin{{tabular}}{{{columns}}}", *grid]
        parts += [r"\end{tabular}", r"\end{table}"]
    return "\n".join(parts) + "\n"


def escaped(text: str) -> str:
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def as_csv(comparison: Comparison, costs: Costs) -> str:
    """A row for each metric and group, numbers in full; empty where there is none."""
    best, _ = undominated(comparison, costs)
    file = io.StringIO()
    rows: list[dict[str, object]] = []
    for metric, lines in comparison.lines.items():
        for line in lines:
            its = line.difference
            low, high = line.mean.interval
            row: dict[str, object] = {"metric": metric, "group": line.group, "seeds": line.seeds, "mean": line.mean.value, "sd": line.sd}
            row |= {"low": low, "high": high, "baseline": comparison.baseline}
            row |= dict.fromkeys(("difference", "difference_low", "difference_high", "p", "p_holm", "resolvable"))
            if its:
                row |= {"difference": its.value, "difference_low": its.interval[0], "difference_high": its.interval[1]}
                row |= {"p": its.p, "p_holm": line.p_holm, "resolvable": its.resolvable}
            cost = costs.of[line.group]
            row |= {"parameters": cost.parameters, "trained": cost.trained, "flops": cost.flops, "greedy_ms": milliseconds(cost.greedy)}
            row |= {"beam_ms": milliseconds(cost.beam), "training_s": cost.training, "peak_bytes": cost.memory}
            rows.append(row | {"pareto": int(line.group in best)})
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


Rendering = Callable[[Comparison, Costs], str]
RENDERINGS: dict[str, Rendering] = {
    ".csv": as_csv,
    ".md": lambda comparison, costs: markdown(tables(comparison, costs), comparison.warnings),
    ".tex": lambda comparison, costs: latex(tables(comparison, costs), comparison.warnings),
}


def check_out(file: Path) -> None:
    """Before anything is computed: UserError for a file of no known kind, or in no folder."""
    kinds = [*RENDERINGS, ".html"]
    if file.suffix.lower() not in kinds:
        raise UserError(f"--out {file}: must end in {', '.join(kinds)}")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--out {file}: no such folder")
