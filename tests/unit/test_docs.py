"""The documentation builds, its command lines parse, and what is generated in it is up to date."""

import ast
import enum
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from docs_code import CODE, code_lines

import tables
from snapkv_local import policies
from snapkv_local.cli import main
from snapkv_local.eval.tasks import TASKS

ROOT = tables.ROOT
PAGES = [*sorted(tables.DOCS.glob("*.md")), tables.README, *sorted(ROOT.glob("examples/**/*.md"))]

INLINE = re.compile(r"`(snapkv-local [^`]+)`")
NEXT_COMMAND = re.compile(r"\s\|\s|&&|;")


def command_lines(text):
    """What follows `snapkv-local` in each line of code and in each code span, as arguments."""
    found = INLINE.findall(CODE.sub("", text))
    found += code_lines(text)
    for line in found:
        for part in NEXT_COMMAND.split(line):
            words = shlex.split(part, comments=True) if "snapkv-local" in part else []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words and Path(words[0]).name == "snapkv-local":
                yield [word for word in words[1:] if word != "..."]


def check(arguments):
    """Raises click.UsageError if a command or an option is not there, or a value is refused.

    That files exist and that nothing is left out is not asked.
    """
    command, context = main, click.Context(main, **main.context_settings)
    while isinstance(command, click.Group):
        below = command.get_command(context, arguments[0]) if arguments else None
        if below is None:
            break
        command, arguments = below, arguments[1:]
        context = click.Context(command, parent=context)
    if command is main:
        if arguments and not arguments[0].startswith("-"):
            raise click.UsageError(f"no command {arguments[0]!r}")
        return
    context.resilient_parsing = True
    values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if rest:
        raise click.UsageError(f"too many arguments: {rest}")
    context.resilient_parsing = False
    for parameter in command.params:
        value = values.get(parameter.name)
        # click 8.3 has a constant for an argument that is left out
        if value is None or isinstance(value, enum.Enum) or isinstance(parameter.type, click.Path):
            continue
        parameter.type_cast_value(context, value)


SHOWN = [
    pytest.param(arguments, id=f"{page.relative_to(ROOT)}: {' '.join(arguments)}")
    for page in PAGES
    for arguments in command_lines(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("arguments", SHOWN)
def test_command_line_in_the_docs(arguments):
    check(arguments)


def test_every_command_is_shown():
    assert {arguments[0] for (arguments,) in (p.values for p in SHOWN) if arguments} >= set(
        main.commands
    )


@pytest.mark.parametrize(
    "line",
    [
        "snapkv-local reserve model.gguf",
        "snapkv-local run model.gguf --bugdet 5",
        "snapkv-local run model.gguf --budget",
        "snapkv-local run model.gguf --ctx 128kb",
        "snapkv-local run one.gguf two.gguf",
        "snapkv-local bench make-model --shape llama9",
        "cat x | SNAPKV_API_KEY=x .venv/bin/snapkv-local serve demo --prot 1  # a comment",
        "true && snapkv-local plan model.gguf \\\n    --memroy 8GiB",
    ],
)
@pytest.mark.parametrize(
    "form",
    ["```sh\n{}\n```\n", "text\n\n    {}\n\ntext\n", "- text:\n\n    ```sh\n    {}\n    ```\n"],
)
def test_wrong_command_lines_are_found(form, line):
    (arguments,) = command_lines(form.format(line))
    with pytest.raises(click.UsageError):
        check(arguments)


def test_command_lines_in_text_are_found():
    assert list(command_lines("See `snapkv-local reserve`, not `snapkv_local`.")) == [["reserve"]]


def option_names(*commands):
    """All ways to write the options of some commands."""
    found = set()
    for command in commands:
        for option in command.params:
            if isinstance(option, click.Option):
                found.update(option.opts)
    return found


def test_every_policy_and_task_is_explained():
    text = (tables.DOCS / "eval.md").read_text()
    named = {*policies.POLICIES, *policies.PREFILLS, *TASKS}
    assert {name for name in named if f"\n| `{name}` |" not in text} == set()


def test_options_for_users_of_llama_cpp():
    """Each option of ours that the page names is one."""
    page = (tables.DOCS / "from-llama-cpp.md").read_text(encoding="utf-8")
    used, measured, refused = re.split(r"^## ", CODE.sub("", page), flags=re.M)[1:]
    names = {
        "run, ask and serve": option_names(*(main.commands[n] for n in ("run", "ask", "serve"))),
        "bench": option_names(main.commands["bench"]),
        "What is refused": option_names(main.commands["run"]),
    }
    for section in (used, measured, refused):
        title = section.splitlines()[0]
        cells = re.findall(r"^\| ([^|]*`[^|]*) \|", section, re.M)
        assert cells, title
        for option in re.findall(r"`(-[^`]+)`", " ".join(cells)):
            assert option in names[title], f"{title}: {option}"
    text = re.sub(r"^\|.*", "", CODE.sub("", page), flags=re.M)
    for option in re.findall(r"`(--?[a-z][a-z-]*)[^`]*`", text):
        assert option in option_names(*main.commands.values()), option


def test_cli_reference():
    # in a process of its own: click keeps the first --help that it made for a command
    command = [sys.executable, str(ROOT / "scripts" / "cli_reference.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["run", "bench", "bench make-model"])
def test_cli_reference_is_what_help_says(command):
    code = "from snapkv_local.cli import main; main(prog_name='snapkv-local')"
    result = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = "\n".join(line.rstrip() for line in result.stdout.splitlines())
    page = (tables.DOCS / "cli.md").read_text(encoding="utf-8")
    assert f"## snapkv-local {command}\n\n```text\n{shown}\n```\n" in page


def test_installing_is_said_in_one_way():
    """The pip lines of the first page are those of README."""
    readme = tables.README.read_text(encoding="utf-8")
    index = (tables.DOCS / "index.md").read_text(encoding="utf-8")
    section = index.split("## Install")[1].split("## ")[0]
    lines = re.findall(r"^(?:python3|pip) .*$", section, re.M)
    assert len(lines) == 3
    for line in lines:
        assert f"    {line}\n" in readme, line


def texts_of_the_source():
    """What messages are made of: Python's string constants, and C++ as it is."""
    for file in (ROOT / "snapkv_local").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    for file in (ROOT / "csrc").rglob("*.cpp"):
        yield file.read_text(encoding="utf-8")


def test_messages_in_troubleshooting_exist():
    page = (tables.DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.*)`$", page, re.M)
    assert len(messages) == page.count("\n### ") > 30
    source = "\0".join(texts_of_the_source())
    parts = [part for message in messages for part in message.split("...") if part.strip()]
    assert [part for part in parts if part not in source] == []


def test_the_glossary_is_in_order():
    page = (tables.DOCS / "glossary.md").read_text(encoding="utf-8")
    words = [word.lower() for word in re.findall(r"^\*\*(.+)\*\*$", page, re.M)]
    assert len(words) > 15
    assert words == sorted(words)


def test_extras_in_the_docs_exist():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(
        re.findall(r"^(\w+) = \[", project.split("optional-dependencies]")[1].split("\n[")[0], re.M)
    )
    for page in PAGES:
        for names in re.findall(
            r"pip install \"?(?:\.|snapkv-local)\[([\w,]+)\]", page.read_text(encoding="utf-8")
        ):
            assert set(names.split(",")) <= extras, f"{page.name}: {names}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'no {package}: pip install "snapkv-local[site]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def test_site_has_every_page(site):
    for page in tables.DOCS.glob("*.md"):
        name = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (site / name).exists(), name


def test_api_has_what_the_package_has(site):
    import snapkv_local

    html = (site / "api" / "index.html").read_text(encoding="utf-8")
    names = {*snapkv_local.__all__} - {"SnapKVError", "__version__", "errors"}
    kinds = [k for k in vars(snapkv_local.errors).values() if isinstance(k, type)]
    expected = [f"snapkv_local.{n}" for n in names] + [
        f"snapkv_local.errors.{k.__name__}" for k in kinds
    ]
    assert [name for name in expected if f'id="{name}"' not in html] == []


def test_site_asks_no_other_server(site):
    loads = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*\shref=\"?(?:https?:)?//|@import|url\([\"']?(?:https?:)?//"
    )
    for file in (*site.rglob("*.html"), *site.rglob("*.css")):
        assert not loads.search(file.read_text(encoding="utf-8")), file.relative_to(site)
