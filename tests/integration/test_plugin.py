"""Methods and architectures of other packages join by their entry points, as the guides say, without a change here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from petl_bench import testing

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "templates" / "petl-bench-method"
METHODS_GUIDE = (ROOT / "docs" / "add-a-method.md").read_text()
BACKBONES_GUIDE = (ROOT / "docs" / "add-a-backbone.md").read_text()

# Forks a process for each list of commands, which sees a folder of packages. With the argument `peft` all but
# petl_bench is imported already, which takes seconds each time otherwise.
COMMANDS = """
import contextlib, io, json, os, sys, traceback
if "peft" in sys.argv:
    import accelerate, datasets, hydra, pandas, peft, pydantic, pytest, sklearn.metrics, transformers
    import transformers.models.auto.tokenization_auto
sys.dont_write_bytecode = True
for line in sys.stdin:
    folder, cwd, commands = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(cwd)
    sys.path.insert(0, folder)
    try:
        os.dup2(os.open("stderr", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        from petl_bench.cli import main
        printed = []
        for command in commands:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = main(command) if command[0] != "pytest" else int(pytest.main(command[1:]))
            printed.append([code, out.getvalue()])
        with open("stdout", "w") as answers:
            json.dump(printed, answers)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""
SHORT = ["task=smoke", "backbone=tiny_bert", "task.num_train_examples=64", "train.epochs=1", "measure.ledger=false",
         "measure.inference=false"]  # fmt: skip


def block(text, kind, number=0):
    """A block of code of a page, without the indentation that it has in a list."""
    found = re.findall(rf"^( *)```{kind}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    indent, code = found[number]
    return re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)


class Site:
    """A folder of installed packages, and commands that see them."""

    def __init__(self, cwd, server):
        self.folder, self.cwd, self._server = cwd / "site", cwd, server
        self.folder.mkdir()

    def install(self, project, files):
        """Puts files where pip would, with the entry points of a pyproject.toml, which takes pip seconds."""
        content = tomllib.loads(project)
        name = content["project"]["name"].replace("-", "_")
        metadata = self.folder / f"{name}-0.1.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        ((group, entries),) = content["project"]["entry-points"].items()
        lines = [f"[{group}]", *(f"{entry} = {target}" for entry, target in entries.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines))
        for file, text in files.items():
            (self.folder / file).parent.mkdir(exist_ok=True)
            (self.folder / file).write_text(text)

    def call(self, *commands):
        """Runs commands, all in one process; gives exit codes with stdout, and stderr."""
        print(json.dumps([str(self.folder), str(self.cwd), commands]), file=self._server.stdin, flush=True)
        code = self._server.stdout.readline().strip()
        errors = (self.cwd / "stderr").read_text()
        assert code == "0", errors
        return json.loads((self.cwd / "stdout").read_text()), errors

    def python(self, *arguments):
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.cwd, env=environment, capture_output=True, text=True, check=True
        )


@pytest.fixture(scope="module", params=["peft"])
def server(request):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", COMMANDS, request.param], text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def site(tmp_path, server):
    return Site(tmp_path, server)


def scales():
    """The files of the template's package, and their texts."""
    return {f"my_scales/{file.name}": file.read_text() for file in (TEMPLATE / "my_scales").glob("*.py")}


def test_the_guide_quotes_the_template():
    own_package = METHODS_GUIDE[METHODS_GUIDE.index("## In a package of your own") :]
    assert block(own_package, "toml") == (TEMPLATE / "pyproject.toml").read_text()
    assert block(own_package, "python", 0) == (TEMPLATE / "my_scales" / "__init__.py").read_text()
    assert block(own_package, "python", 1) == (TEMPLATE / "my_scales" / "model.py").read_text()


def test_the_guide_lists_the_checks():
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \|$", METHODS_GUIDE[METHODS_GUIDE.index("## Check it") :], flags=re.MULTILINE
    )
    assert rows == [(check.__name__, check.__doc__) for check in testing.CHECKS]


def test_the_template_is_installed_and_passes_its_own_tests(site, tmp_path):
    pytest.importorskip("pip")
    shutil.copytree(TEMPLATE, tmp_path / "package", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    alone = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    site.python("-m", "pip", "install", "-q", *alone, "--target", str(site.folder), str(tmp_path / "package"))
    package = str(tmp_path / "package")
    ((code, printed),), _ = site.call(["pytest", "-q", "-p", "no:cacheprovider", "--rootdir", package, package])
    assert (code, bool(re.search(r"^4 passed", printed, flags=re.MULTILINE))) == (0, True), printed


def test_a_plugin_method_is_listed_run_and_reported(site):
    site.install((TEMPLATE / "pyproject.toml").read_text(), scales())
    run = ["run", "--json", *SHORT, "method=scales"]
    commands = [["list", "methods", "--json"], run, [*run, "method.init_std=0.5"], ["report", "runs", "--format", "md"]]
    answers, errors = site.call(*commands)
    assert [code for code, _ in answers] == [0, 0, 0, 0], errors
    listed, record, wider = (json.loads(printed) for _, printed in answers[:3])
    summary = "a factor for each unit that attention and feed-forward network add"
    assert {"method": "scales", "origin": "reconstruction", "what is trained": summary} in listed
    assert record["config"]["train"]["learning_rate"] == 1e-2
    # Four layers with two factors of 32 units each.
    assert record["params"]["trainable_method"] == wider["params"]["trainable_method"] == 4 * 2 * 32
    report = answers[3][1]
    assert "| scales init_std=0.02 |" in report
    assert "| scales init_std=0.5 |" in report


INIT, MODEL = "my_scales/__init__.py", "my_scales/model.py"
# A file of the template, what is changed in it, and what must be said of that.
WRONG_METHODS = [
    (
        INIT,
        "from dataclasses",
        "import nothing_of_this_name\nfrom dataclasses",
        "No module named 'nothing_of_this_name'",
    ),
    (INIT, "SCALES = Method(", "SCALES = dict(", "it is no Method but dict"),
    (INIT, "SCALES = ", "raise SystemExit('it ends')\nSCALES = ", "it ends"),
    (INIT, 'name="scales"', 'name="lora"', "There are two methods named 'lora'"),
    (INIT, 'name="scales"', 'name="sc/ales"', "sc/ales"),
    (INIT, ' = setting(0.02, "Standard deviation of the factors, around 1, at first.")', "", "non-default argument"),
]
WRONG_TUNERS = [
    (MODEL, "import torch\n", "import nothing_of_this_name\n", "No module named 'nothing_of_this_name'"),
    (MODEL, "class ScalesModel", "class Others", "ScalesModel"),
]
ROW, PROJECT = block(BACKBONES_GUIDE, "python"), block(BACKBONES_GUIDE, "toml")
WRONG_ROWS = [
    ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
    ("CAMEMBERT = {}", "it is no Anatomy but dict"),
    (ROW.replace('model_type="camembert"', 'model_type="bert"'), "there is a row for bert already"),
]


def install_as(name, site, files):
    """Installs files of the template under another name."""
    project = (TEMPLATE / "pyproject.toml").read_text().replace("scales", name)
    site.install(project, {file.replace("scales", name): text.replace("scales", name) for file, text in files.items()})


@pytest.mark.parametrize("server", ["peft", "nothing"], indirect=True)
def test_what_is_wrong_with_a_plugin_is_said_and_it_is_left_out(site):
    """Many at once: each is told, and what is right works, whatever is imported first."""
    said = []
    for number, (file, old, new, sentence) in enumerate(WRONG_METHODS + WRONG_TUNERS):
        files, name = scales(), f"scales{number}"
        assert old in files[file]
        install_as(name, site, files | {file: files[file].replace(old, new, 1)})
        where = f"The tuner of the plugin method '{name}'" if file == MODEL else f"'{name}' (my_{name}:SCALES)"
        said.append((where, sentence.replace("scales", name)))
    install_as("loha", site, scales())
    said.append(("The tuner of the plugin method 'loha'", "PEFT has a type LOHA already: give the method another name"))
    for number, (row, sentence) in enumerate(WRONG_ROWS):
        site.install(PROJECT.replace("camembert", f"row{number}"), {f"my_row{number}.py": row})
        said.append((f"The plugin architecture 'row{number}' (my_row{number}:CAMEMBERT)", sentence))

    run = ["run", *SHORT]
    names = ("lora", "scales0", "scales6", "loha")
    answers, errors = site.call(["list", "methods", "--json"], *([*run, f"method={name}"] for name in names))
    assert [code for code, _ in answers] == [0, 0, 2, 2, 2], errors
    listed = {row["method"] for row in json.loads(answers[0][1])}
    assert {"lora", "full"} <= listed and not {f"scales{number}" for number in range(len(WRONG_METHODS))} & listed
    lines = errors.splitlines()
    for where, sentence in said:
        assert any(where in line and sentence in line and "it is left out" in line for line in lines), (where, sentence)
    assert f"petl-bench: The plugin method {said[0][0]} cannot be used: " in errors
    assert "Traceback" not in errors


def test_a_method_in_this_repository_needs_two_files(site):
    """Those of the guide, put into a copy."""
    package = site.folder / "petl_bench"
    shutil.copytree(ROOT / "src" / "petl_bench", package, ignore=shutil.ignore_patterns("__pycache__", "conf"))
    shutil.copytree(ROOT / "conf", package / "conf")
    (package / "methods" / "norms").mkdir()
    (package / "methods" / "norms" / "__init__.py").write_text(block(METHODS_GUIDE, "python"))
    (package / "conf" / "method" / "norms.yaml").write_text(block(METHODS_GUIDE, "yaml"))
    run = ["run", "--json", *SHORT, "method=norms"]
    ((first, record), (second, wider)), errors = site.call(run, [*run, "method.embeddings=true"])
    assert (first, second) == (0, 0), errors
    assert json.loads(record)["config"]["train"]["learning_rate"] == 1e-3
    assert json.loads(record)["params"]["trainable_method"] == 4 * 2 * 2 * 32
    assert json.loads(wider)["params"]["trainable_method"] == (4 * 2 + 1) * 2 * 32


def test_an_architecture_of_another_package_is_run(site, tmp_path):
    site.install(PROJECT, {"my_camembert.py": ROW})
    (tmp_path / "my_conf" / "backbone").mkdir(parents=True)
    (tmp_path / "my_conf" / "backbone" / "tiny_camembert.yaml").write_text(block(BACKBONES_GUIDE, "yaml"))
    run = ["run", "--json", *SHORT, "backbone=tiny_camembert", "method=houlsby", "--config-dir", "my_conf"]
    check = ["check", "prefix", "backbone=tiny_camembert", "--config-dir", "my_conf"]
    ((running, record), (checking, checks)), errors = site.call(
        [one for one in run if one != "backbone=tiny_bert"], check
    )
    assert (running, checking) == (0, 0), errors + checks
    assert json.loads(record)["config"]["backbone"]["model_type"] == "camembert"
    assert checks.endswith("13 checks on camembert: none failed\n")
