"""Rebuild the paper from its records: `python -m paper.build` makes tables, figures, numbers, blocks of pages and PDF.

Only paper/records is read, so that the same records give the same files, byte for byte.
"""

import latent.startup  # noqa: F401  first of all: it says what goes wrong before we have begun

# isort: split
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from kernels.errors import UserError
from latent import plugins
from latent.cli import guarded, parse, program, there_are
from latent.files import check_writable, write_text
from paper import claims, figures, latents, markup, method_figure, overview, records, search, tables
from paper.ablations import ABLATIONS, METHODS
from paper.controls import CONTROLS
from paper.design import cells, search_cells
from paper.records import OUT
from paper.searches import SEARCHES

HERE = Path(__file__).parent
# their blocks that are made here
PAGES = {"README.md": ("main", "results"), "latent/README.md": ("methods", "text")} | {
    f"latent/methods/{method}/README.md": (method,) for method in METHODS
}
N_BOOT = 4000  # bootstrap resamples of each interval
ENGINES = ("latexmk", "tectonic", "pdflatex")


@dataclass(frozen=True)
class Options:
    """What to build, and where."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Make only the tables and figures of these ablations; by default the whole paper."""
    records: Path = HERE / "records"
    """Folder of the records."""
    out: Path = OUT
    """Folder to write into; for an installed package latent-paper in the working directory."""
    smoke: bool = False
    """The records are those of a smoke run."""


def main(args: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend, in one line."""

    def body() -> None:
        plugins.load_all()  # they may register ablations
        options = parse(Options, args, program("paper.build", "latent-paper-build"), __doc__)
        if unknown := [name for name in options.names if name not in ABLATIONS]:
            raise UserError(f"no ablation {unknown[0]!r}; {there_are(unknown[0], ABLATIONS)}")
        check_writable(options.out, "--out", folder=True)
        build(options)

    return guarded(body)


def build(options: Options) -> None:
    """Make all files. Raises UserError naming a missing record or number."""
    lines, left_out = records.read(options.records)
    all_cells = {name: cells(ablation, CONTROLS, options.smoke) for name, ablation in ABLATIONS.items()}
    asked = {name: all_cells[name] for name in options.names or ABLATIONS}
    every = {c.run.id for each in all_cells.values() for c in each}
    left_out += records.unlisted(lines, every)
    print(*left_out, sep="\n", end="\n" if left_out else "")
    n_boot = 200 if options.smoke else N_BOOT
    found = claims.find({name: ABLATIONS[name] for name in asked}, lines)
    made = [tables.gather(name, ABLATIONS[name], each, lines, n_boot, found.get(name)) for name, each in asked.items()]
    for table in made:
        if table.end:
            level = f"; they differ most at level {table.telling_level}" if table.telling_level else ""
            print(f"table {table.name}: all arms are {table.end} at {table.metric}{level}")
    out, whole = options.out.resolve(), not options.names
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:  # old files stay until all new ones are made
        stage = Path(scratch)
        for folder in ("tables", "figures"):
            (stage / folder).mkdir()
        for table in made:
            figures.draw(table, stage / "figures")
            latents.draw(table, stage / "figures")
        if overview.TASKS.keys() <= asked.keys():
            figures.save(overview.figure({table.name: table for table in made}), stage / "figures", "overview")
        if whole:
            figures.save(method_figure.figure(), stage / "figures", "method")
        known = numbers(made, [lines[id] for id in sorted(every) if id in lines]) if whole else None
        searched = searches(options.records) if whole and not options.smoke else {}
        for name, text in (texts(made, known) | searched).items():
            (stage / name).write_text(text)
        new_pages: dict[Path, str] = {}
        if known is not None:
            check_quoted(HERE / "main.tex", known)
            if out == HERE and records.IN_CHECKOUT:
                found_blocks = blocks(made)
                new_pages = {HERE.parent / name: page(HERE.parent / name, PAGES[name], found_blocks) for name in PAGES}
            for name in ("main.tex", "references.bib") if out != HERE else ():
                shutil.copy(HERE / name, stage / name)
        for path in [p for p in sorted(stage.rglob("*")) if p.is_file()]:
            place = out / path.relative_to(stage)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
    for path, text in new_pages.items():
        write_text(path, text)
    if new_pages:
        claims.write(found.values())
    print(f"{len(made)} tables in {out}/tables, figures beside them")
    if whole:
        print(compile(out))


def numbers(made: list[tables.Table], lines: list[dict]) -> dict[str, str]:
    """Every number that the paper may quote, by key: those of its tables, and those of all runs together."""
    of_tables = {k: v for table in made for k, v in (markup.numbers(table) | latents.numbers(table)).items()}
    return of_tables | about(lines)


def texts(made: list[tables.Table], known: dict[str, str] | None) -> dict[str, str]:
    """The text files by name: two for each table, and for its latents where they were diagnosed; and where all tables
    are made (`known`), numbers and contrasts."""
    files = {f"tables/{table.name}.md": markup.markdown(table) for table in made}
    files |= {f"tables/{table.name}.tex": markup.latex(table) for table in made}
    files |= {file: text for table in made for file, text in latents.texts(table).items()}
    by_name = {table.name: table for table in made}
    if overview.TASKS.keys() <= by_name.keys():
        files |= {"tables/main.tex": overview.latex(by_name), "tables/setup.tex": overview.setup(by_name)}
    if overview.METHODS_ON.keys() & by_name.keys():
        files["tables/methods.tex"] = overview.methods_latex(by_name)
    return files if known is None else files | {"numbers.tex": macros(known), "tables/contrasts.md": contrasts(made)}


def searches(folder: Path) -> dict[str, str]:
    """The tables of all searches by file name. Raises UserError naming a missing record."""
    lines = records.read(folder, records.SEARCH_FILE)[0]
    return {
        f"tables/search-{name}.md": search.markdown(name, each, search_cells(name, each, ABLATIONS), lines)
        for name, each in SEARCHES.items()
    }


def contrasts(made: list[tables.Table]) -> str:
    """The page of differences that claims rest on."""
    out = [
        "# Contrasts",
        "",
        "Made by `python -m paper.build`. Differences on the same problems, 95 % intervals over seeds and",
    ]
    out += [
        "problems, p-values corrected within an ablation; what an interval does not exclude is written as no effect.",
        "",
    ]
    out += ["| ablation | contrast | found |", "|---|---|---|"]
    for table in made:
        for c, d, p in table.contrasts:
            if c.claim:
                effect = markup.effect(d, p, c.metric or table.ablation.metric)
                out.append(f"| [{table.name}]({table.name}.md) | {c.name} | {effect} |")
    return "\n".join([*out, ""])


def check_quoted(path: Path, known: dict[str, str]) -> None:
    """Raise UserError where a text quotes a number that does not exist."""
    keys = [" ".join(key.split()) for key in re.findall(r"\\result\{([^}]*)\}", path.read_text())]
    if unknown := [key for key in keys if key not in known]:
        raise UserError(f"{path} quotes a number that there is not: {unknown[0]!r}")


def about(lines: list[dict]) -> dict[str, str]:
    """Numbers of all runs together."""
    spent = sum(line["result"]["core_seconds"] for line in lines)
    counts = [line["result"]["parameters"] for line in lines]
    return {
        "all: runs": str(len(lines)),
        "all: core-hours": f"{spent / 3600:.1f}",
        "all: processors": ", ".join(sorted({str(line["env"]["cpu"]) for line in lines})),
        "all: commits": str(len({line["env"]["git"] for line in lines})),
        "all: parameters": f"{min(counts):,} to {max(counts):,}",
        "all: torch": ", ".join(sorted({line["env"]["packages"]["torch"] for line in lines})),
    }


def macros(known: dict[str, str]) -> str:
    r"""LaTeX definitions: \result{key} gives the number, and an unknown key is an error."""
    out = [f"\\expandafter\\def\\csname r@{key}\\endcsname{{{markup.tex(value)}}}" for key, value in known.items()]
    known_or_error = r"\ifcsname r@#1\endcsname\csname r@#1\endcsname\else\errmessage{no #1}\fi"
    out.append(rf"\newcommand{{\result}}[1]{{{known_or_error}}}")
    return "\n".join(out) + "\n"


def blocks(made: list[tables.Table]) -> dict[str, list[str]]:
    """The lines of each block of the repository's pages by its name, of those whose tables are made: the first table,
    the methods side by side and on text, each method beside its controls, and the claims with their verdicts."""
    rows = ["| ablation | claim | by these runs |", "|---|---|---|"]
    for table in made:
        claim, verdict = table.ablation.claim, table.verdict
        if table.reworded:
            claim, verdict = f"{claim} *", f"{verdict}, as reworded"
        rows.append(f"| [{table.name}](paper/tables/{table.name}.md) | {claim} | {verdict} |")
    found, known = {"results": rows}, {table.name: table for table in made}
    if overview.TASKS.keys() <= known.keys():
        found["main"] = overview.lines(known)
    if overview.METHODS_ON.keys() & known.keys():
        found["methods"] = overview.methods(known)
        found |= {method: overview.of_method(known, method) for method in METHODS}
    if "gsm8k" in known:
        found["text"] = overview.text(known["gsm8k"])
    return found


def page(path: Path, names: tuple[str, ...], found: dict[str, list[str]]) -> str:
    """A page's text with new lines in those of its blocks that are found. Raises UserError where it lacks a mark."""
    text = path.read_text()
    for name in names:
        if name in found:
            marks = f"<!-- {name}: made by python -m paper.build -->", f"<!-- end of {name} -->"
            if not all(mark in text for mark in marks):
                raise UserError(f"{path} has no block between {marks[0]} and {marks[1]}")
            before, _, rest = text.partition(marks[0])
            text = before + "\n".join([marks[0], *found[name], marks[1]]) + rest.partition(marks[1])[2]
    return text


def compile(folder: Path) -> str:
    """Make the PDF where a LaTeX engine is installed. Returns a line to print. Raises UserError where LaTeX fails."""
    engine = next((e for e in ENGINES if shutil.which(e)), None)
    if engine is None:
        return "no PDF: install latexmk (with TeX Live), tectonic or pdflatex, and run the same command again"
    tex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    passes = {
        "latexmk": [["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]],
        "tectonic": [["tectonic", "main.tex"]],
        "pdflatex": [tex, ["bibtex", "main"], tex, tex],
    }[engine]
    fixed_date = {"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"}  # the same PDF at any time
    for args in passes:
        done = subprocess.run(
            args, cwd=folder, env=os.environ | fixed_date, capture_output=True, text=True, check=False
        )
        if done.returncode:
            output = done.stdout.splitlines() or done.stderr.splitlines() or [""]
            raise UserError(f"{args[0]}: {next((line for line in output if line.startswith('!')), output[-1])}")
    return f"{folder}/main.pdf"


if __name__ == "__main__":
    sys.exit(main())
