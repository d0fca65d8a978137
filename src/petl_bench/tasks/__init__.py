"""Settings of a task: where its rows come from, what is asked, how it is scored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.settings import MISSING, check_choices, setting
from petl_bench.tasks.columns import FEWCLUE_SPLITS, find_transform

TYPES = ("classification", "regression", "multilabel", "tagging")


@dataclass
class ExtraSplit:
    """Another set of rows that the same checkpoint is scored on or predicts."""

    subset: str = MISSING
    split: str = MISSING
    metrics: list[str] = field(default_factory=list)
    submission: str | None = None
    optional: bool = False


@dataclass
class TaskConfig:
    """One task and the protocol it is run under."""

    name: str = MISSING
    source: str = setting(
        MISSING,
        "hub: a dataset of the Hugging Face hub, or a local folder laid out like it. files: your own. folder: files of "
        "the task's names in data_root. package: they ship with this program. demo: generated.",
        choices=("hub", "files", "folder", "package", "demo"),
    )
    dataset: str | None = setting(None, "Name of the dataset on the hub.")
    revision: str | None = setting(None, "Commit of the dataset on the hub.")
    subset: str | None = setting(None, "Configuration of the dataset, e.g. one task of GLUE.")
    train_file: str | None = setting(
        None, "File with training rows: CSV, TSV, JSON lines or parquet, by its ending.", is_path=True
    )
    validation_file: str | None = setting(
        None,
        "File with validation rows; null: num_held_out_examples training rows, at most a fifth of them.",
        is_path=True,
    )
    test_file: str | None = setting(
        None, "File with rows to report on; those of validation_file then only choose the checkpoint.", is_path=True
    )
    text_columns: list[str] = setting(
        MISSING, "Columns of the texts: one, or two for pairs; further ones are joined to the second."
    )
    label_column: str = setting("label", "Column of the label, the value, the labels or the tags.")
    type: str = setting("classification", "What is asked of each row.", choices=TYPES)
    labels: list[str] | None = setting(
        None, "Names of the classes in their order; null: the distinct values of the label column, sorted."
    )
    unlabelled: list[str] = setting(
        [], "Labels that mark a row without one: such rows are left out, and the record counts them."
    )
    transform: str | None = setting(None, "Name of the function that makes a text column of further columns.")
    label_separator: str = setting(
        ",", "Multi-label: what separates the labels of a row where they are written as one string."
    )
    threshold: float | None = setting(
        0.5, "Multi-label: probability from which a label is given; null: the best on the selection split."
    )
    units: str = setting(
        "words", "Tagging: how a text whose words are not given is cut.", choices=("words", "characters")
    )
    metrics: list[str] = setting(MISSING, "Metrics that are computed.")
    metric: str = setting(MISSING, "The primary metric: what `best` means and what tables show.")
    train_split: str = setting("train", "Name of the dataset's split that trains.")
    validation_split: str | None = setting(
        "validation",
        "Name of the validation split; null: rows held out of the training split take its place.",
    )
    test_split: str = setting("test", "Name of the test split.")
    also_report: dict[str, ExtraSplit] = setting({}, "Further sets of rows that the checkpoint is scored on, by name.")
    also_submit: dict[str, ExtraSplit] = setting({}, "Further sets of rows that `predict --submit` predicts, by name.")
    submission: str | None = setting(None, "Name of the file that the GLUE server expects.")
    trained_by: str | None = setting(None, "The task whose runs predict these rows, which have no training rows.")
    protocol: str = setting(
        "standard",
        "standard: select and report on the validation split. held_out: select on training rows kept apart, report on "
        "the validation split. test: select on the validation split, report on the test split.",
        choices=("standard", "held_out", "test"),
    )
    num_held_out_examples: int = setting(
        1000, "Training rows that are kept apart; of a task without validation rows at most a fifth."
    )
    held_out_draw: str = setting(
        "random",
        "How rows are held out of the training rows. stratified: of each class its share; at random where there are no "
        "classes, where some are too small, and where the training rows are drawn by class.",
        choices=("random", "stratified"),
    )
    group_column: str | None = setting(
        None,
        "Column that says which rows belong together, such as those of one document: they are held out together.",
    )
    fewclue_split: str | None = setting(
        None, "Of a task of FewCLUE, which of its splits: 0 to 4, or few_all; in place of rows that a seed draws."
    )
    num_train_examples: int | None = setting(None, "Training rows that are drawn by data_seed; null: all.")
    rows_per_class: int | None = setting(None, "Training rows of each class that are drawn by data_seed; null: all.")
    class_share: list[float] | None = setting(
        None, "Share of each class among num_train_examples rows, in the order of labels; null: as the rows fall."
    )
    ood: str | None = setting(
        None, "Rows that are out of distribution: classes (left out of training), oos, or the name of another data set."
    )
    ood_share: float | None = setting(None, "With ood=classes, the share of the classes that is kept.")
    data_seed: int = setting(
        42, "Seed of drawn and held-out rows, of classes left out and of generated sentences; apart from train.seed."
    )
    max_length: int = setting(128, "Tokens of a row at most, special tokens included; the rest is cut.")


@dataclass
class TextsConfig:
    """Where the texts come from: the training rows of tasks, and files with one text a line."""

    tasks: list[str] = setting([], "Tasks whose training rows are taken.")
    files: list[str] = setting([], "Files with one text a line.")
    most: int | None = setting(None, "Texts of each task or file at most, drawn by task.data_seed; null: all.")
    held_out: int = setting(64, "Texts of each task or file that are held out to measure progress.")


def has_validation(task: TaskConfig) -> bool:
    """Whether the task brings rows to report on; else they are held out of its training rows."""
    return (task.validation_split if task.source != "files" else task.validation_file) is not None


def holds_out(task: TaskConfig) -> bool:
    """Whether some of the training rows are held out."""
    return task.protocol == "held_out" or not has_validation(task)


def holds_out_by_class(task: TaskConfig) -> bool:
    """Whether held-out rows are drawn by class: not where groups, or training rows drawn by class, decide on them."""
    is_free = task.group_column is None and task.rows_per_class is None and task.class_share is None
    return task.held_out_draw == "stratified" and task.type == "classification" and holds_out(task) and is_free


def with_effective_draw(task: TaskConfig) -> TaskConfig:
    """The task with `held_out_draw=random` where its value changes no row, so that it changes no run key either."""
    return task if holds_out_by_class(task) else replace(task, held_out_draw="random")


def check_task(task: TaskConfig) -> None:
    """Raises RequestError if the settings contradict each other."""
    check_choices("task", task)
    if task.trained_by:
        raise RequestError(
            f"task={task.name} has no training rows: train task={task.trained_by}, "
            "then `petl-bench predict RUN_DIR --submit OUT_DIR` writes its predictions."
        )
    _check_files(task)
    _check_multilabel(task)
    if task.source == "files" and task.train_file is None:
        raise RequestError(f"task={task.name} reads your own rows: give task.train_file=FILE.")
    if task.metric not in task.metrics:
        raise RequestError(f"task.metric={task.metric} is not among task.metrics={list(task.metrics)}: add it.")
    _check_names(task)
    _check_draw(task)
    find_transform(task.transform)
    if task.unlabelled and task.type != "classification":
        raise RequestError(f"task.unlabelled={task.unlabelled} is for task.type=classification, not {task.type}.")
    _check_fewclue_split(task)
    for key in ("num_train_examples", "rows_per_class", "num_held_out_examples", "max_length"):
        count = getattr(task, key)
        if count is not None and count < 1:
            raise RequestError(f"task.{key}={count} must be at least 1.")
    if task.data_seed < 0:
        raise RequestError(f"task.data_seed={task.data_seed} must not be negative.")


def _check_draw(task: TaskConfig) -> None:
    """Checks that the training rows are chosen in only one way."""
    if task.class_share is not None:
        _check_shares(task, task.class_share)
    if task.rows_per_class is None:
        return
    if task.type != "classification":
        raise RequestError(
            f"task.rows_per_class={task.rows_per_class} is for classes, which task.type={task.type} has not: use "
            "task.num_train_examples."
        )
    if task.num_train_examples is not None:
        raise RequestError(
            f"task.rows_per_class={task.rows_per_class} and task.num_train_examples={task.num_train_examples} both say "
            "which rows train: set one of them to null."
        )


def _check_shares(task: TaskConfig, shares: list[float]) -> None:
    if task.type != "classification" or not task.labels or task.num_train_examples is None:
        raise RequestError(
            "task.class_share needs classes with names (task.labels) and a number of training rows "
            "(task.num_train_examples)."
        )
    # Written so that NaN is refused too.
    if len(shares) != len(task.labels) or not (min(shares) > 0 and abs(sum(shares) - 1) < 1e-6):
        raise RequestError(
            f"task.class_share={shares} must give a share above 0 for each of the {len(task.labels)} classes, with the "
            "sum 1."
        )


def _check_fewclue_split(task: TaskConfig) -> None:
    """Checks that a split of FewCLUE is chosen only for FewCLUE's tasks, and is one of theirs."""
    has_split = task.train_split == f"train_{task.fewclue_split}"
    if has_split and task.fewclue_split not in FEWCLUE_SPLITS:
        raise unknown_choice("task.fewclue_split", task.fewclue_split, FEWCLUE_SPLITS)
    if not has_split and task.fewclue_split is not None:
        raise RequestError(
            f"task.fewclue_split={task.fewclue_split} chooses among splits of FewCLUE's tasks, and task={task.name} is "
            "none of them: leave it out."
        )


def _check_names(task: TaskConfig) -> None:
    """Checks that columns and labels are named once, and that the texts do not reveal the label."""
    if not task.text_columns:
        raise RequestError("task.text_columns names no column: give those that hold the texts.")
    if task.label_column in task.text_columns:
        raise RequestError(f"task.text_columns and task.label_column are both {task.label_column!r}.")
    if task.group_column == task.label_column:
        raise RequestError(f"task.group_column and task.label_column are both {task.label_column!r}.")
    if task.group_column is not None and task.source == "demo":
        raise RequestError(f"task.group_column={task.group_column} names a column, but task={task.name} is generated.")
    for key, names in (("text_columns", task.text_columns), ("labels", task.labels or [])):
        if twice := [name for name in names if names.count(name) > 1]:
            raise RequestError(f"task.{key} names {twice[0]!r} twice.")
    if task.labels and len(task.labels) < 2 and task.type != "regression":
        raise RequestError("task.labels must name at least two classes.")
    if task.type == "tagging" and len(task.text_columns) != 1:
        raise RequestError("task.type=tagging reads one text a row: name one column in task.text_columns.")


def _check_files(task: TaskConfig) -> None:
    """Checks that the rows for selection and the rows to report on do not contradict each other."""
    on_test = task.protocol == "test"
    named = task.test_file is not None or (on_test and task.source in ("files", "folder"))
    if named and not (on_test and task.test_file and task.validation_file):
        raise RequestError(
            "task.test_file holds the rows to report on, and those of task.validation_file choose the checkpoint: give "
            "both, with task.protocol=test."
        )
    if task.validation_split is None and task.protocol != "standard":
        raise RequestError(f"task.protocol={task.protocol} needs task.validation_split: name one.")
    if task.source == "folder" and (task.train_file is None or task.validation_file is None):
        raise RequestError(f"task={task.name} must name task.train_file and task.validation_file.")


def _check_multilabel(task: TaskConfig) -> None:
    """Checks that labels can be separated, and that the threshold is not chosen on the rows to report on."""
    if task.type != "multilabel":
        return
    if not task.label_separator:
        raise RequestError("task.label_separator must not be empty.")
    if task.threshold is None and task.protocol == "standard":
        raise RequestError(
            "task.threshold=null chooses the threshold on the selection split, which must not be the rows that are "
            "reported on: give task.protocol=held_out, or test."
        )
    if task.threshold is not None and not 0 < task.threshold < 1:
        raise RequestError(f"task.threshold={task.threshold} must lie between 0 and 1.")
